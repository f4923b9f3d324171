"""Randomness belongs to the example: every draw is a function of that example's key alone."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldm_scaling.types import Keys


def derive(keys: Keys, name: str) -> Keys:
    """Keys [B] for the purpose `name`, so that no key serves two.

    Folding in a hash of the name keeps them apart from keys that callers derive with small
    numbers such as a step.
    """
    return jax.vmap(jax.random.fold_in, (0, None))(keys, np.uint32(zlib.crc32(name.encode())))


def normal(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Standard normal float32 [B, *shape], row i from keys[i]: the same in a batch of any size."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
