"""Which images are kept, and in which form."""

import io
from dataclasses import dataclass, replace

from PIL import Image

from ldm_scaling.data.captioned_images.entries import Entry, Problem
from ldm_scaling.data.images import (
    MAX_PIXELS,
    TooManyPixelsError,
    UnreadableImageError,
    decode_rgb,
    read_size,
)

MAX_BYTES = 2**26  # 64 MiB: an image file that large is a mistake or an attack
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Rules:
    """What an image must be, and what becomes of it. Sides are in pixels, captions in characters.

    Attributes:
      min_side: shortest short side.
      max_aspect: largest long side / short side; 0 for any.
      min_caption, max_caption: lengths; captions outside them are left out, and an image that has
        none left is dropped. max_caption=0 for any.
      min_score: lowest aesthetic score; None for any. Images without a score are kept.
      max_side: images whose short side is longer are scaled down to it and encoded anew, as JPEG
        of quality 95 without chroma subsampling; 0 stores every file byte for byte.
      max_pixels: more, by the file's header, are not decoded.
      max_bytes: larger files are not read.
      test_share: share of the groups that goes into "test", where the source has no splits.
    """

    min_side: int = 0
    max_aspect: float = 0.0
    min_caption: int = 1
    max_caption: int = 0
    min_score: float | None = None
    max_side: int = 0
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    test_share: float = 0.01

    def __post_init__(self):
        for name in ("min_side", "max_caption", "max_side"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        for name in ("min_caption", "max_pixels", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.max_aspect and self.max_aspect < 1:
            raise ValueError(f"max_aspect={self.max_aspect}: long side / short side is at least 1")
        if self.max_caption and self.max_caption < self.min_caption:
            raise ValueError(
                f"max_caption={self.max_caption}: shorter than min_caption={self.min_caption}"
            )
        if self.max_side and self.max_side < self.min_side:
            raise ValueError(f"max_side={self.max_side}: shorter than min_side={self.min_side}")
        if not 0 <= self.test_share < 1:
            raise ValueError(f"test_share={self.test_share}: must lie in [0, 1)")

    def apply(self, entry: Entry) -> Entry | Problem:
        """The entry as it is stored, or why it is not. Decodes every image: broken ones show so."""
        if len(entry.image) > self.max_bytes:
            detail = f"{len(entry.image)} bytes, of {self.max_bytes} allowed"
            return Problem("too many bytes", entry.key, detail)
        captions = tuple(c for c in entry.captions if self._fits(c))
        if not captions:
            lengths = ", ".join(str(len(caption)) for caption in entry.captions)
            return Problem("caption length", entry.key, f"{lengths} characters")
        if self.min_score is not None and entry.score is not None and entry.score < self.min_score:
            return Problem("low score", entry.key, f"{entry.score:g}")
        try:
            width, height = read_size(entry.image, self.max_pixels)
            short, long = sorted((width, height))
            if short < self.min_side:
                return Problem("small", entry.key, f"{width}x{height}")
            if self.max_aspect and long > self.max_aspect * short:
                return Problem("long", entry.key, f"{width}x{height}")
            image = self._checked(entry.image, short)
        except TooManyPixelsError as error:
            return Problem("too many pixels", entry.key, str(error))
        except UnreadableImageError as error:
            return Problem("broken image", entry.key, str(error))
        return replace(entry, captions=captions, image=image)

    def _fits(self, caption: str) -> bool:
        longest = self.max_caption or len(caption)
        return self.min_caption <= len(caption) <= longest

    def _checked(self, data: bytes, short: int) -> bytes:
        pixels = decode_rgb(data, self.max_pixels)
        if not self.max_side or short <= self.max_side:
            return data
        height, width = pixels.shape[:2]
        scale = self.max_side / short
        size = tuple(max(self.max_side, round(side * scale)) for side in (width, height))
        file = io.BytesIO()
        smaller = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
        smaller.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return file.getvalue()
