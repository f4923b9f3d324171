"""A scaling study: `configs/study.py:micro` (minutes on two cores) or `:micro-full` (hours).

A study is a grid of points for each sampler, over all models and seeds, and the protocol by which
every point is scored.
"""

import difflib

from ml_collections import ConfigDict

from ldm_scaling.unet import MICRO_WIDTHS

STUDIES = ("micro", "micro-full")


def get_config(study: str = "micro") -> ConfigDict:
    if study not in STUDIES:
        nearest = difflib.get_close_matches(study, STUDIES, n=1, cutoff=0.0)[0]
        raise ValueError(f"study {study!r}: the nearest is {nearest!r}, all are {STUDIES}")
    config = ConfigDict()
    config.models = tuple(f"micro-{width}" for width in MICRO_WIDTHS)
    config.seeds = (0,)
    config.grids = {
        "ddim": {"steps": (2, 4, 8, 16), "guidance": (1.5, 3.0, 5.0)},
        "ddpm": {"steps": (4, 8, 16), "guidance": (3.0,)},
        # Two steps of it are two of DDIM: both are of first order there.
        "dpmpp_2m": {"steps": (4, 8, 16), "guidance": (3.0,)},
    }
    config.protocol = {
        "dataset": "noto_emoji",
        "captions": "train",
        "prompts": (),
        "reference": "train",
        "variants": False,
        "captions_seed": 0,
        "num_samples": 96,
        "feature_size": 96,
        "resamples": 200,
    }
    config.batch_size = 96
    config.mesh = {"replica": -1, "fsdp": 1, "tensor": 1}
    if study == "micro-full":
        config.seeds = (0, 1, 2)
        config.grids = {
            "ddim": {
                "steps": (2, 3, 5, 10, 20, 50),
                "guidance": (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0),
            },
            "ddpm": {"steps": (5, 10, 20, 50), "guidance": (2.0, 4.0)},
            "dpmpp_2m": {"steps": (3, 5, 10, 20), "guidance": (2.0, 4.0)},
        }
        config.protocol.num_samples = 256
        config.batch_size = 128
    return config
