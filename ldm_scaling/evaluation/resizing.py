"""How images reach the size that a network sees: three conventions, which give three FIDs.

All are linear and work along one axis at a time, so each is a matrix per axis. The differences
are large where images shrink: only "clean" filters, the others skip pixels (arXiv:2104.11222).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from ldm_scaling.naming import check_name

RESIZES = {
    "legacy": "bilinear between the nearest two pixels; pytorch-fid, torch's interpolate",
    "clean": "bicubic with antialiasing, in float; clean-fid, Pillow's filter",
    "tensorflow": "bilinear, pixels' corners for centres; the original FID, torch-fidelity",
}


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -1/2 (1981, eq. 15), as Pillow's BICUBIC has it."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


@functools.lru_cache(maxsize=256)
def resize_matrix(mode: str, size: int, target: int) -> Float[np.ndarray, "{target} {size}"]:
    """Weights of the `size` pixels along an axis in each of the `target` new ones; rows sum to 1.

    Raises ValueError for a mode that is not one of `RESIZES`.
    """
    check_name("resize", mode, RESIZES)
    scale, new, old = size / target, np.arange(target)[:, None], np.arange(size)[None]
    if mode == "clean":
        widening = max(scale, 1.0)  # the filter covers the pixels that fall together
        weights = _cubic((old + 0.5 - (new + 0.5) * scale) / widening)
    else:
        place = new * scale if mode == "tensorflow" else (new + 0.5) * scale - 0.5
        weights = _triangle(old - np.clip(place, 0, size - 1))  # edges repeat
    return weights / weights.sum(axis=1, keepdims=True)


def resize_one(
    image: Real[np.ndarray, "H W 3"], mode: str, size: int
) -> Float[np.ndarray, "{size} {size} 3"]:
    """`resize` of a single image on the host: images of many sizes would compile as many times."""
    rows, columns = (
        resize_matrix(mode, length, size).astype(np.float32) for length in image.shape[:2]
    )
    across = columns @ image.astype(np.float32)
    return np.clip(np.tensordot(rows, across, 1), 0.0, 255.0)


def resize(
    images: Real[Array | np.ndarray, "B H W 3"], mode: str, size: int
) -> Float[Array, "B {size} {size} 3"]:
    """Images of values 0..255, scaled to a square, not rounded; proportions are not kept.

    Float32, in full precision on every device. Sizes are static under jit.

    Args:
      images: uint8 or float.
      mode: of `RESIZES`.
      size: side of the result in pixels.
    """
    check_name("resize", mode, RESIZES)
    pixels = jnp.asarray(images, jnp.float32)
    if images.shape[1:3] == (size, size):
        return pixels
    rows, columns = (
        jnp.asarray(resize_matrix(mode, length, size), jnp.float32) for length in images.shape[1:3]
    )
    # Columns first, as Pillow does; the other order differs by rounding.
    across = jnp.einsum("pw,bhwc->bhpc", columns, pixels, precision=jax.lax.Precision.HIGHEST)
    scaled = jnp.einsum("oh,bhpc->bopc", rows, across, precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(scaled, 0.0, 255.0)  # a cubic overshoots
