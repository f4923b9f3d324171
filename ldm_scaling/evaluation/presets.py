"""How published numbers on COCO's 2014 validation set are measured; none compares with another.

    mlperf     MLPerf's training benchmark (mlcommons/training, stable_diffusion)
    mosaicml   MosaicML's evaluation of Stable Diffusion 2 (mosaicml/diffusion)
    paper      arXiv:2404.01367 states 30,000 captions and no more; the rest is chosen here

A preset decides which captions are drawn, which real images they are held against and how those
are brought to size, how images reach Inception, and which CLIP is asked.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ldm_scaling.evaluation.captions import Caption, read_captions
from ldm_scaling.evaluation.image_sets import ImageSet
from ldm_scaling.naming import check_name


@dataclasses.dataclass(frozen=True)
class Preset:
    """One way to measure.

    Attributes:
      choice: of captions, see `captions.read_captions`.
      count: of captions.
      side: of real images, in pixels.
      fit: how they get there by Pillow's bicubic filter: "stretch" to a square, or "crop" the
        middle of what has the short side right.
      resize: of `resizing.RESIZES`, to Inception.
      clip: the model whose cosines are reported.
      clip_metric: which of `clip_score`'s numbers is the published one.
    """

    choice: str
    count: int
    side: int
    fit: str
    resize: str
    clip: str
    clip_metric: str


PRESETS = {
    "mlperf": Preset(
        "mlperf", 30_000, 512, "stretch", "legacy", "CLIP ViT-H/14 (OpenCLIP, LAION-2B)",
        "clip_cosine",
    ),
    "mosaicml": Preset(
        "first", 30_000, 512, "crop", "clean", "CLIP ViT-B/16 (OpenAI)", "clip_score_torchmetrics"
    ),
    "paper": Preset(
        "mlperf", 30_000, 512, "crop", "legacy", "CLIP ViT-L/14 (OpenAI)", "clip_cosine"
    ),
}  # fmt: skip


def preset(name: str) -> Preset:
    """The preset of a name; ValueError names the nearest."""
    return PRESETS[check_name("preset", name, PRESETS)]


def preset_captions(name: str, path: Path, count: int | None = None) -> list[Caption]:
    """The captions of a preset from COCO's annotations; fewer where `count` says so."""
    chosen = preset(name)
    return read_captions(path, choice=chosen.choice, count=count or chosen.count)


def preset_reference(name: str, images: ImageSet, captions: Sequence[Caption]) -> ImageSet:
    """The real images that captions describe, each once, brought to the preset's size.

    Raises:
      ValueError: captions name no images, or one that is not among `images`.
    """
    chosen = preset(name)
    wanted = sorted({caption.reference for caption in captions if caption.reference})
    if not wanted:
        raise ValueError(
            f"preset={name}: the captions name no real images; draw them from COCO's annotations"
        )
    place = {key: index for index, key in enumerate(images.keys)}
    if missing := [file for file in wanted if file not in place]:
        raise ValueError(
            f"{images.name}: {len(missing)} of {len(wanted)} real images are missing, the first is "
            f"{missing[0]}"
        )
    return ImageSet(
        images.name, wanted, lambda i: fitted(images[place[wanted[i]]], chosen.side, chosen.fit)
    )


def fitted(
    image: UInt8[np.ndarray, "H W 3"], side: int, fit: str
) -> UInt8[np.ndarray, "side side 3"]:
    """An image as a square of `side` pixels, see `Preset.fit`; bicubic, by Pillow."""
    height, width = image.shape[:2]
    if fit == "stretch":
        wide = high = side
    else:
        scale = side / min(height, width)
        wide, high = (max(side, round(length * scale)) for length in (width, height))
    resized = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC))
    top, left = (high - side) // 2, (wide - side) // 2
    return resized[top : top + side, left : left + side]
