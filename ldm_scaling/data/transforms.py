"""What happens to one example between its source and its batch.

A transform is `fn(example, rng) -> example`. Its randomness comes only from `rng`, which belongs
to the example and the pass over the data (`example_rng`), so neither batch size nor hosts nor
workers change what an example looks like. Images stay uint8 until they are stacked. Transforms
that hold settings are frozen dataclasses: they travel to worker processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from jaxtyping import Float32, UInt8

from ldm_scaling.data.images import decode_at_least
from ldm_scaling.data.resampling import SUPPORT, resample
from ldm_scaling.data.source import Example
from ldm_scaling.naming import check_name

Transform: TypeAlias = Callable[[Example, np.random.Generator], Example]


def example_rng(seed: int, example_id: int, epoch: int) -> np.random.Generator:
    """The generator of one example in one pass: Philox (Salmon et al. 2011), keyed by all three."""
    key = np.array([seed, (example_id & 0xFFFFFFFF) << 32 | epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def to_float(images: UInt8[np.ndarray, "... H W 3"]) -> Float32[np.ndarray, "... H W 3"]:
    """Maps 0..255 to [-1, 1], both ends exactly."""
    values = images.astype(np.float32)
    values /= np.float32(127.5)  # in place: fresh memory costs more than the arithmetic
    values -= np.float32(1)
    return values


@dataclass(frozen=True)
class Compose:
    """Applies `steps` from left to right, all drawing from the one `rng`."""

    steps: tuple[Transform, ...]

    @property
    def takes_encoded(self) -> bool:
        """Whether "image" may be the bytes of a file: the first step decides."""
        return bool(self.steps) and getattr(self.steps[0], "takes_encoded", False)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Applies all steps."""
        for step in self.steps:
            example = step(example, rng)
        return example


@dataclass(frozen=True)
class Resize:
    """Scales the short side to `size` (antialiased), then crops to a square of `size`.

    Args:
      size: pixels.
      crop: "center", or "random" along the long side.
      filter: of `resampling.SUPPORT`.

    "image" may also be the bytes of a file: then no more of it is decoded than is needed.
    """

    size: int
    crop: Literal["center", "random"] = "center"
    filter: Literal["bicubic", "lanczos", "bilinear", "box"] = "bicubic"
    takes_encoded: ClassVar[bool] = True

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size={self.size}: an image needs at least 1 pixel")
        if self.crop not in ("center", "random"):
            raise ValueError(f"crop={self.crop!r}: either 'center' or 'random'")
        check_name("filter", self.filter, SUPPORT)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Scales and crops "image"."""
        pixels = example["image"]
        sides: Sequence[float] = pixels.shape[1::-1] if isinstance(pixels, np.ndarray) else ()
        if isinstance(pixels, bytes):
            pixels, sides = decode_at_least(pixels, self.size)
        shrink = self.size / min(sides)
        scaled = [max(self.size, round(side * shrink)) for side in sides]
        # Drawn even where nothing is left to cut, so that later steps see the same numbers.
        where = rng.random() if self.crop == "random" else 0.5
        starts = [int(where * (side - self.size + 1)) for side in scaled]
        if self.crop == "center":
            starts = [(side - self.size) // 2 for side in scaled]
        # The part of the picture that scaling the whole of it would put into the square.
        left, top = (at * a / b for at, a, b in zip(starts, sides, scaled, strict=True))
        right, bottom = (
            (at + self.size) * a / b for at, a, b in zip(starts, sides, scaled, strict=True)
        )
        box = (left, top, right, bottom)
        return {**example, "image": resample(pixels, box, self.size, self.filter)}


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors left and right with probability `p`."""

    p: float = 0.5

    def __post_init__(self):
        if not 0 <= self.p <= 1:
            raise ValueError(f"p={self.p}: a probability lies between 0 and 1")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Mirrors "image", or not."""
        if rng.random() >= self.p:
            return example
        return {**example, "image": np.ascontiguousarray(example["image"][:, ::-1])}


def random_caption(example: Example, rng: np.random.Generator) -> Example:
    """Draws "caption" from "captions" where an image has several; others keep theirs."""
    captions = example.get("captions")
    if captions is None or not len(captions):
        return example
    return {**example, "caption": captions[int(rng.integers(len(captions)))]}


def image_transform(
    size: int,
    *,
    crop: Literal["center", "random"] = "center",
    flip: float = 0.0,
    caption: str = "first",
) -> Transform:
    """The usual transforms, one after the other.

    Args:
      size: `Resize` to it, with `crop`.
      flip: probability of `RandomFlip`.
      caption: "first", or "random" for `random_caption`.

    Raises:
      ValueError: another `caption`, or what the transforms refuse.
    """
    check_name("data.caption", caption, ("first", "random"))
    transforms: list[Transform] = [Resize(size, crop)]
    if flip:
        transforms.append(RandomFlip(flip))
    if caption == "random":
        transforms.append(random_caption)
    return Compose(tuple(transforms))
