"""Decodes any picture to uint8 RGB, or says in one line why not."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 2**26  # 8192 x 8192, 200 MB decoded: more is taken for a decompression bomb


class UnreadableImageError(ValueError):
    """An image that does not decode; the message is a short reason."""


class TooManyPixelsError(UnreadableImageError):
    """An image that was not decoded, because of its size."""


def decode_rgb(data: bytes | Path, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image file; its EXIF orientation is applied, of an animation the first frame.

    Alpha is flattened on white; palette, grayscale (also 16-bit), CMYK, YCbCr, Lab and HSV are
    converted. Floating-point images have no known range and are refused.

    Args:
      data: the bytes of a file, or its path.
      max_pixels: more than that many pixels, by the file's header, are not decoded.

    Raises:
      UnreadableImageError: with the reason.
    """
    with _opened(data, max_pixels) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_to_rgb(image))


def read_size(data: bytes | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) by the header, before EXIF turns it; nothing is decoded.

    Raises:
      UnreadableImageError: as `decode_rgb`.
    """
    with _opened(data, max_pixels) as image:
        return image.size


@contextlib.contextmanager
def _opened(data: bytes | Path, max_pixels: int) -> Iterator[Image.Image]:
    """A Pillow image, its header read; whatever goes wrong with it becomes our error."""
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            if image.width * image.height > max_pixels:
                raise TooManyPixelsError(
                    f"{image.width}x{image.height} is more than max_pixels={max_pixels}"
                )
            yield image
    except UnreadableImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixelsError(str(error)) from None
    except FileNotFoundError:
        raise UnreadableImageError("no such file") from None
    except UnidentifiedImageError:
        raise UnreadableImageError("not an image in a format that Pillow knows") from None
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise UnreadableImageError(f"does not decode: {error}") from error


def array_to_rgb(image: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """Brings a decoded array, [H, W] or [H, W, 1 | 3 | 4] of uint8, to RGB as `decode_rgb` does."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise UnreadableImageError(f"{image.dtype}{list(image.shape)} is no uint8 image")
    if image.ndim == 3 and image.shape[-1] == 3:
        return image
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    elif image.ndim == 3 and image.shape[-1] != 4:
        raise UnreadableImageError(f"{image.shape[-1]} channels are neither gray, RGB nor RGBA")
    return np.asarray(_to_rgb(Image.fromarray(image)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels have no known range")
    if image.mode.startswith("I"):  # 16-bit gray; Pillow's own conversion would clip at 255
        gray = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        image = Image.fromarray(((gray + 128) // 257).astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
