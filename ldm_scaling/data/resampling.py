"""Cuts a box out of a picture and scales it, with antialiasing.

The filters are Pillow's. Where `cykooz_resizer` (Rust, SIMD) has a package for the platform it does
the work, seven times as fast; Pillow does elsewhere. The two round differently: now and then a
value differs by one or two of 255.
"""

import functools
import math
import threading
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ldm_scaling.naming import check_name

SUPPORT = {"box": 0.5, "bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
"""Filter -> pixels it reaches to each side, where nothing is made smaller."""

Box = tuple[float, float, float, float]


def resample(
    pixels: UInt8[np.ndarray, "H W 3"], box: Box, size: int, method: str = "bicubic"
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The inside of `box`, scaled to a square; pixels beside the box enter where a filter reaches.

    Args:
      box: left, top, right, bottom in pixels, fractions allowed.
      size: pixels of a side.
      method: of `SUPPORT`.
    """
    check_name("filter", method, SUPPORT)
    height, width = pixels.shape[:2]
    if box == (int(box[0]), int(box[1]), int(box[0]) + size, int(box[1]) + size):
        left, top = int(box[0]), int(box[1])
        return pixels[top : top + size, left : left + size]
    # Only what the filters reach is handed on.
    reach = [SUPPORT[method] * max(1.0, (box[i + 2] - box[i]) / size) + 1 for i in (0, 1)]
    left, top = (max(0, math.floor(box[i] - reach[i])) for i in (0, 1))
    right, bottom = (
        min(width, math.ceil(box[2] + reach[0])),
        min(height, math.ceil(box[3] + reach[1])),
    )
    part = pixels[top:bottom, left:right]
    inside = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    scale = _simd() or _pillow
    return scale(part, inside, size, method)


def _pillow(part: np.ndarray, box: Box, size: int, method: str) -> np.ndarray:
    kernel = Image.Resampling[method.upper()]
    return np.asarray(Image.fromarray(part).resize((size, size), kernel, box=box))


@functools.cache
def _simd() -> Any:
    try:
        import cykooz_resizer as fast
    except ImportError:
        return None
    names = {"bicubic": "catmull_rom", "lanczos": "lanczos3"}
    kinds = {name: fast.FilterType[names.get(name, name)] for name in SUPPORT}
    methods = {name: fast.ResizeAlg.convolution(kind) for name, kind in kinds.items()}
    own = threading.local()  # a resizer keeps buffers, which threads cannot share

    def scale(part: np.ndarray, box: Box, size: int, method: str) -> np.ndarray:
        if not hasattr(own, "resizer"):
            own.resizer = fast.Resizer()
        height, width = part.shape[:2]
        source = fast.ImageData(width, height, fast.PixelType.U8x3, part.tobytes())
        target = fast.ImageData(size, size, fast.PixelType.U8x3)
        left, top, right, bottom = box
        # Rounding must not push the box over the edge, which is an error there.
        inside = fast.CropBox(left, top, min(right, width) - left, min(bottom, height) - top)
        options = fast.ResizeOptions(resize_alg=methods[method], crop_box=inside)
        own.resizer.resize(source, target, options)
        return np.frombuffer(target.get_buffer(), np.uint8).reshape(size, size, 3)

    return scale
