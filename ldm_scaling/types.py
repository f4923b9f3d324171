"""Names for the arrays and functions that every room of the library speaks of.

Shapes are written with jaxtyping: `B` examples, `H W C` space and channels (NHWC throughout),
`L D` tokens and features of a text context.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
from jaxtyping import Array, Float, Int, Real

Latents: TypeAlias = Float[Array, "B H W C"]
Images: TypeAlias = Float[Array, "B H W 3"]  # in [-1, 1]
Timesteps: TypeAlias = Real[Array, "B"]  # 0 (clean) .. 999 (noise)
Context: TypeAlias = Float[Array, "B L D"]
TokenIds: TypeAlias = Int[Array, "B L"]
Keys: TypeAlias = jax.Array  # typed PRNG keys [B], one per example (jax.random.key)

Params: TypeAlias = Mapping[str, Any]  # nested dict of arrays, without the outer "params"
Batch: TypeAlias = Mapping[str, Any]  # arrays with a leading batch axis, and "example_id"

ModelFn: TypeAlias = Callable[[Latents, Timesteps, Context], Latents]
"""(x_t, t, context) -> the network's raw output: eps, x0 or v."""

DenoiseFn: TypeAlias = Callable[[Latents, Timesteps], Latents]
"""(x_t, t) -> an estimate of x_0. All a sampler ever sees."""
