"""Decodes any picture to uint8 RGB, or says in one line why not."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

SPARE = 1.5  # 46 dB between pictures halved while decoded and exact ones; with 1.0 it is 41 dB
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
    return _decode(data, max_pixels, at_least=0)[0]


def decode_at_least(
    data: bytes | Path, short_side: int, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[float, float]]:
    """Decodes an image that will be made smaller, to no more than that takes.

    A JPEG whose short side exceeds `short_side` is decoded without interpolating its chroma, and at
    a half, a quarter or an eighth where `SPARE` times `short_side` is left: what the last resize
    makes of it differs from the exact way by about as much as another filter does.

    Args:
      data, max_pixels: as for `decode_rgb`.
      short_side: pixels that are needed.

    Returns:
      The pixels; and (width, height) of the picture in them, which is not whole where an odd side
      was halved.

    Raises:
      UnreadableImageError: with the reason.
    """
    return _decode(data, max_pixels, at_least=short_side)


def _decode(
    data: bytes | Path, max_pixels: int, at_least: int
) -> tuple[np.ndarray, tuple[float, float]]:
    if isinstance(data, Path):
        try:
            data = data.read_bytes()
        except FileNotFoundError:
            raise UnreadableImageError("no such file") from None
        except OSError as error:
            raise UnreadableImageError(f"cannot be read: {error.strerror}") from error
    found = _decode_jpeg(data, max_pixels, at_least)
    if found is not None:
        return found
    with _opened(data, max_pixels) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.asarray(_to_rgb(image))
        return pixels, (float(pixels.shape[1]), float(pixels.shape[0]))


def _decode_jpeg(
    data: bytes, max_pixels: int, at_least: int
) -> tuple[np.ndarray, tuple[float, float]] | None:
    """The same pixels as Pillow's in three quarters of the time, as an array from the start.

    None for what is left to Pillow: other formats, pictures that may have to be turned, and files
    that are not in order.
    """
    if not data.startswith(b"\xff\xd8\xff") or b"Exif" in data or b":Orientation" in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray", "RGB") or width * height > max_pixels:
            return None
        short = min(width, height)
        factor = max((f for f in (2, 4, 8) if short >= SPARE * f * at_least > 0), default=1)
        small = {"min_width": width // factor, "min_height": height // factor, "min_factor": factor}
        pixels = simplejpeg.decode_jpeg(
            data, fastupsample=short > at_least > 0, **(small if factor > 1 else {})
        )
    except ValueError:
        return None
    return pixels, (width / factor, height / factor)


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
