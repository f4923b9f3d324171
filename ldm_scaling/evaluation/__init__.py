"""From weights to records: images from captions, scores with intervals, whole studies.

`Model` is a folder in the diffusers layout made ready, `Generator` draws with it, a
`FeatureNetwork` looks at the images, `score` compares features, and `sweep.run` walks the points of
a study. Everything ends in a `Record`; nothing here looks at more than one of them.
"""

from ldm_scaling.evaluation.features import Dinov2Features, FeatureNetwork, Inception, Lite0
from ldm_scaling.evaluation.generate import Generator, example_keys
from ldm_scaling.evaluation.model import Model, ModelCard, find_folder, packaged_models
from ldm_scaling.evaluation.perceptual import Lpips
from ldm_scaling.evaluation.points import Point, study_points
from ldm_scaling.evaluation.protocol import Evaluator, Protocol
from ldm_scaling.evaluation.score import Reference, feature_scores, score
from ldm_scaling.evaluation.statistics import (
    load_gaussian,
    merged_over_processes,
    save_statistics,
)
from ldm_scaling.evaluation.sweep import listing, planned, run, study_records
from ldm_scaling.evaluation.text import TextEncoder, sentence_embeddings

__all__ = [
    "Dinov2Features",
    "Evaluator",
    "FeatureNetwork",
    "Generator",
    "Inception",
    "Lite0",
    "Lpips",
    "Model",
    "ModelCard",
    "Point",
    "Protocol",
    "Reference",
    "TextEncoder",
    "example_keys",
    "feature_scores",
    "find_folder",
    "listing",
    "load_gaussian",
    "merged_over_processes",
    "packaged_models",
    "planned",
    "run",
    "save_statistics",
    "score",
    "sentence_embeddings",
    "study_points",
    "study_records",
]
