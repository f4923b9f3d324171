"""Studies under one of the field's presets, with Inception and CLIP: `configs/sweep.py:paper`."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ldm_scaling.checkpoint.hub import find_model_folder, is_repository
from ldm_scaling.checkpoint.identity import files_hash
from ldm_scaling.checkpoint.published import load_inception
from ldm_scaling.evaluation.captions import Caption, captions_hash
from ldm_scaling.evaluation.clip_score import ClipEmbedder, clip_metrics
from ldm_scaling.evaluation.distances import Reference, distances, open_reference
from ldm_scaling.evaluation.features import Inception
from ldm_scaling.evaluation.image_sets import ImageSet
from ldm_scaling.evaluation.presets import preset, preset_captions, preset_reference
from ldm_scaling.evaluation.protocol import STRIP
from ldm_scaling.records import Metric


@dataclasses.dataclass(frozen=True)
class PresetProtocol:
    """Settings that decide what a score means; scores under different ones do not compare.

    Attributes:
      preset: of `presets.PRESETS`: which captions, which real images, how they are brought to size.
      captions: COCO's annotations.
      reference: folder of COCO's images, or statistics of them (.npz).
      inception: weights, see `checkpoint.published.load_inception`.
      clip: folder of a CLIPModel as transformers saves it, or its name on the Hub.
      num_samples: images a point, one a caption.
      published: whether the hash of Inception's weights is checked; without, nothing is called FID.
      resamples: bootstrap resamples behind the intervals of CLIP's cosine and, seconds each, of the
        Fréchet distance.
      keep_images: otherwise a point's images are deleted once it is scored: 30,000 of 512 pixels
        take some 12 GB.
    """

    preset: str
    captions: str
    reference: str
    inception: str
    clip: str
    num_samples: int = 30_000
    published: bool = True
    resamples: int = 0
    keep_images: bool = False

    def __post_init__(self):
        preset(self.preset)  # raises for one that is not
        if self.num_samples < 4:
            raise ValueError(f"num_samples={self.num_samples}: metrics need at least 4 images")

    def drawn_captions(self) -> list[Caption]:
        """The caption of each of the `num_samples` images. Raises as `read_captions`."""
        return _captions(self.preset, Path(self.captions), self.num_samples)

    def describe(self) -> dict[str, Any]:
        """For a record's `protocol`: JSON values, without what the record says elsewhere.

        Files stand in it by their contents, so that the place where they lie plays no role; real
        images by their folder's name, for which are meant is up to the captions.

        Raises FileNotFoundError where one of them is missing.
        """
        chosen, drawn = preset(self.preset), self.drawn_captions()
        if not Path(self.clip).is_dir() and not is_repository(self.clip):
            raise FileNotFoundError(f"protocol.clip={self.clip}: no such folder; get {chosen.clip}")
        clip, reference = find_model_folder(self.clip, "protocol.clip"), Path(self.reference)
        if not Path(self.inception).is_file():
            load_inception(self.inception)  # says where to get it
        of_file = reference.is_file()
        return {
            "preset": self.preset,
            "captions_hash": captions_hash(drawn),
            "strip_captions": [caption.text for caption in drawn[:STRIP]],
            "reference": _hash((reference,)) if of_file else reference.name,
            "features": f"inception_{chosen.resize}",
            "features_hash": _hash((Path(self.inception),)),
            "published_weights": self.published,
            "model_hash": _hash(tuple(sorted(path for path in clip.iterdir() if path.is_file()))),
            "resamples": self.resamples,
        }


class PresetScores:
    """A preset made ready: both networks loaded, the real images' statistics at hand."""

    def __init__(self, protocol: PresetProtocol, cache: Path, batch_size: int, mesh: Mesh):
        """Loads the networks; computes the statistics of real images, or finds them in `cache`."""
        self._protocol = protocol
        chosen, described = preset(protocol.preset), protocol.describe()
        params = load_inception(protocol.inception, published=protocol.published)
        self._inception = Inception(params, chosen.resize, batch_size, mesh)
        self._clip = ClipEmbedder.from_folder(protocol.clip, batch_size=batch_size, mesh=mesh)
        self.captions = protocol.drawn_captions()
        names = ("captions_hash", "reference", "features_hash")
        path = cache / f"real-{protocol.preset}-{'-'.join(described[name] for name in names)}.npz"
        self._reference = self._open(path)

    def _open(self, path: Path) -> Reference:
        reference = self._protocol.reference
        if Path(reference).is_file():
            return open_reference(self._inception, reference)
        if not path.exists():

            def choose(images: ImageSet) -> ImageSet:
                return preset_reference(self._protocol.preset, images, self.captions)

            open_reference(self._inception, reference, path, choose)
        return open_reference(self._inception, str(path))  # also now: so every job has the same

    def __call__(self, images: ImageSet) -> dict[str, Metric]:
        """All metrics of one image per caption of `captions`, in their order."""
        protocol = self._protocol
        found = distances(
            self._inception,
            images,
            self._reference,
            ("fid", "is"),
            published=protocol.published,
            resamples=protocol.resamples,
        ).metrics
        shown, texts = self._clip.images(images), [caption.text for caption in self.captions]
        return found | clip_metrics(self._clip, shown, texts, protocol.resamples)


@functools.lru_cache(maxsize=2)
def _captions(name: str, path: Path, count: int) -> list[Caption]:
    return preset_captions(name, path, count)


@functools.lru_cache(maxsize=8)
def _hash(paths: Sequence[Path]) -> str:
    return files_hash((path.name, path) for path in paths)
