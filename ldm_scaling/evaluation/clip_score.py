"""How well images show their captions, by CLIP: what `launch/eval_clip.py` measures.

The number is the cosine of the two embeddings (arXiv:2103.00020), unscaled; what others make of it
stands beside it: torchmetrics' CLIPScore is 100 max(mean, 0), that of its paper (arXiv:2104.08718,
eq. 2) the mean of 2.5 max(cosine, 0).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from PIL import Image

from ldm_scaling import metrics
from ldm_scaling.checkpoint.diffusers import import_clip
from ldm_scaling.checkpoint.hub import find_model_folder
from ldm_scaling.checkpoint.identity import weights_hash
from ldm_scaling.encoders import Clip, ClipConfig
from ldm_scaling.encoders.clip_vision import clip_pixels
from ldm_scaling.encoders.tokenizers import load_tokenizer
from ldm_scaling.evaluation import presets
from ldm_scaling.evaluation.batches import InBatches, through
from ldm_scaling.evaluation.captions import Caption, read_captions
from ldm_scaling.evaluation.folder import METADATA, image_path
from ldm_scaling.evaluation.image_sets import ImageSet, drawn_facts, keys_hash, open_images
from ldm_scaling.evaluation.provenance import provenance
from ldm_scaling.records import Metric, Record
from ldm_scaling.types import Params


class ClipEmbedder:
    """Images and captions into CLIP's space, on one device or many.

    Attributes:
      config, params: the model.
      name: of the folder it came from.
    """

    def __init__(
        self,
        name: str,
        config: ClipConfig,
        params: Params,
        tokenizer: Path,
        *,
        batch_size: int = 32,
        mesh: Mesh | None = None,
    ):
        """`batch_size` and `mesh` as for `InBatches`; `tokenizer` is a folder."""
        self.name, self.config, self.params = name, config, params
        self._tokenize = load_tokenizer(tokenizer)
        module: Any = Clip(config)

        def images(params, pixels):
            pixels = clip_pixels(pixels.astype("float32") / 127.5 - 1)
            return module.apply({"params": params}, pixels, method="embed_images")

        def texts(params, ids, mask):
            return module.apply({"params": params}, ids, mask, method="embed_texts")

        self._images = InBatches(images, params, batch_size=batch_size, mesh=mesh)
        self._texts = InBatches(texts, params, batch_size=batch_size, mesh=mesh)

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> "ClipEmbedder":
        """Reads transformers' `CLIPModel` with its tokenizer: a folder, or "owner/name" of the Hub.

        Raises FileNotFoundError or ValueError, which name what is missing or does not fit.
        """
        home = find_model_folder(folder, "model")
        config, params = import_clip(home)
        return cls(Path(folder).name, config, params, home, **options)

    def images(self, images: ImageSet) -> Float[np.ndarray, "N P"]:
        """Embeddings of unit length; the short side is brought to CLIP's size, the middle cut."""
        size = self.config.vision.image_size

        def embed(piece: list[np.ndarray]) -> np.ndarray:
            return self._images(np.stack([central_square(image, size) for image in piece]))

        return through(embed, images, "CLIP")

    def texts(self, captions: Sequence[str]) -> Float[np.ndarray, "N P"]:
        """Embeddings of unit length; what exceeds CLIP's 77 tokens is cut, with a warning."""
        length = self.config.text.max_position_embeddings
        return self._texts(*self._tokenize(list(captions), length))


def central_square(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The short side to `size` by Pillow's bicubic filter, then the middle (openai/CLIP)."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    wide, high = (max(size, int(side * scale)) for side in (width, height))
    resized = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC))
    top, left = round((high - size) / 2), round((wide - size) / 2)
    return resized[top : top + size, left : left + size]


def clip_record(
    embedder: ClipEmbedder,
    samples: str | Path,
    captions: Path | None = None,
    *,
    reference: str | None = None,
    resamples: int = 1000,
    preset: str = "",
) -> Record:
    """Measures how well the images of a folder show their captions; processes share the images.

    Args:
      embedder: a CLIP.
      samples: folder of `launch/generate.py`, or of images named by their captions' ids.
      captions: see `captions.read_captions`; default what the folder itself says.
      reference: real images, see `open_images`: adds CMMD (arXiv:2401.09603).
      resamples: bootstrap resamples behind the interval of the cosine; 0 for none.
      preset: of `presets.PRESETS`: which CLIP ought to be asked, and which number is published;
        both go into the record's protocol.

    Raises:
      ValueError: an image is missing or cannot be read (named); an unknown preset.
      FileNotFoundError: no such folder, or no captions.
    """
    # No file says which CLIP it is: the record holds what was asked for beside what was used.
    asked = {}
    if preset:
        chosen = presets.preset(preset)
        asked = {"preset": preset, "preset_clip": chosen.clip, "published": chosen.clip_metric}
    folder = Path(samples)
    wanted = read_captions(captions or folder / METADATA)
    images = captioned_images(folder, wanted)
    shown = embedder.images(images)
    found = clip_metrics(embedder, shown, [caption.text for caption in wanted], resamples)
    if reference is not None:
        found["cmmd"] = Metric(metrics.cmmd(shown, embedder.images(open_images(reference))))
    return Record(
        kind="clip",
        **drawn_facts(folder),
        num_samples=len(images),
        metrics=found,
        protocol={
            "model": embedder.name,
            "model_hash": weights_hash(embedder.params),
            "image_size": embedder.config.vision.image_size,
            "images_hash": keys_hash(images),
            **({"reference": reference} if reference else {}),
            **asked,
        },
        provenance=provenance({}),
    )


def clip_metrics(
    embedder: ClipEmbedder, shown: Float[np.ndarray, "N P"], captions: Sequence[str], resamples: int
) -> dict[str, Metric]:
    """The cosine between embedded images and their captions, and what others make of it."""
    cosines = np.sum(shown.astype(np.float64) * embedder.texts(captions), axis=1)
    mean = float(cosines.mean())
    cosine = Metric(mean)
    if resamples and len(cosines) > 1:
        counts = metrics.resampling_counts(len(cosines), resamples, 0)
        cosine = Metric(mean, *metrics.interval(mean, metrics.resampled_means(cosines, counts)))
    return {
        "clip_cosine": cosine,
        "clip_score_torchmetrics": Metric(100 * max(mean, 0.0)),
        "clip_score_w25": Metric(float(2.5 * np.maximum(cosines, 0).mean())),
    }


def captioned_images(folder: Path, captions: Sequence[Caption]) -> ImageSet:
    """The image of each caption, in the captions' order; ValueError names one that is missing."""
    there = open_images(folder)
    place = {key: index for index, key in enumerate(there.keys)}
    wanted = [image_path(folder, caption).name for caption in captions]
    if missing := [name for name in wanted if name not in place]:
        raise ValueError(
            f"{folder}: {len(missing)} of {len(wanted)} captions have no image there, the first is "
            f"{missing[0]}; draw them with launch/generate.py, or score fewer captions"
        )
    return ImageSet(there.name, wanted, lambda i: there[place[wanted[i]]])
