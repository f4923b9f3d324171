"""LPIPS: how different two images look, from a network's activations (arXiv:1801.03924, eq. 1).

Unlike the room's other scores it is of pairs of images, and differentiable: it also serves as a
loss. The networks are in `ldm_scaling.encoders.lpips_backbones`.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_EPSILON = 1e-10  # of the `lpips` package: activations may be zero in all channels


def lpips_distance(
    activations: Sequence[Float[Array, "B _ _ _"]],
    others: Sequence[Float[Array, "B _ _ _"]],
    heads: Sequence[Float[Array | np.ndarray, "_"]],
) -> Float[Array, "B"]:
    """Weighted squared difference of unit activations, mean over pixels, sum over layers.

    Args:
      activations: of the images, a layer each [B, h, w, C].
      others: of what they are compared with; exchanging the two changes nothing.
      heads: weight of every channel, a layer each [C].

    Returns:
      Distances [B]; 0 for equal images. Finite gradients everywhere, zero where activations vanish.
    """
    total = jnp.zeros(len(activations[0]), jnp.float32)
    for a, b, head in zip(activations, others, heads, strict=True):
        squares = jnp.square(_unit(a) - _unit(b)) * jnp.asarray(head)[None, None, None]
        total = total + squares.sum(axis=-1).mean(axis=(1, 2))
    return total


def _unit(x):
    squares = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    # Zero stays zero without a division: its slope there would be infinite.
    alive = squares > 0
    norm = jnp.sqrt(jnp.where(alive, squares, 1.0))
    return jnp.where(alive, x / (norm + _EPSILON), 0.0)
