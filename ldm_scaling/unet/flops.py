"""What a UNet costs, read off its traced computation; no weight is ever allocated.

FLOPs are those of matrix products and convolutions, two for each multiply-add: what the paper's
Table 1 counts (arXiv:2404.01367) and what fills an accelerator. Norms and softmax are left out.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from ldm_scaling.unet.config import UNetConfig
from ldm_scaling.unet.unet import UNet

_TOKENS = 77  # of CLIP's context, with which the paper's FLOPs are reproduced


def parameter_count(config: UNetConfig) -> int:
    """Number of parameters of the UNet."""
    return _parameters_and_flops(config, _TOKENS, 1)[0]


def forward_flops(config: UNetConfig, tokens: int = _TOKENS, batch: int = 1) -> int:
    """FLOPs of one evaluation on `batch` latents of `config.sample_size`, 2 x multiply-adds.

    Args:
      config: the network. Its attention kernel and rematerialisation make no difference.
      tokens: length of the text context.
      batch: number of examples, guidance not counted.
    """
    return _parameters_and_flops(config, tokens, batch)[1]


def normalized_cost(config: UNetConfig, reference: UNetConfig, tokens: int = _TOKENS) -> float:
    """FLOPs of one evaluation relative to those of `reference`, the cost axis of the paper.

    The paper's reference is `unet_config(REFERENCE_WIDTH)`; the micro family's own is
    `micro_config(MICRO_REFERENCE_WIDTH)`.
    """
    return forward_flops(config, tokens) / forward_flops(reference, tokens)


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of `function(*args)`: 2 x multiply-adds of its matrix products and convolutions.

    Args:
      function: anything JAX can trace.
      *args: arrays, or `jax.ShapeDtypeStruct`s in their place.

    Returns:
      The count, loops unrolled; of branches the dearest. Padding and the zeros of a dilated
      convolution count as numbers like any other.

    Raises:
      ValueError: for a `while` loop that multiplies matrices: how often it runs is not known.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def _jaxpr_flops(jaxpr: core.Jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        arrays: list[Any] = [v.aval for v in (*equation.invars, *equation.outvars)]
        left, right, out = (array.shape for array in arrays)
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            return 2 * math.prod(left[axis] for axis in contracted) * math.prod(out)
        features = right[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(right) // features * math.prod(out)
    inner = [_jaxpr_flops(jaxpr) for jaxpr in _sub_jaxprs(params)]
    if name == "while" and any(inner):
        raise ValueError("a while loop with matrix products: its FLOPs depend on the data")
    if name == "cond":
        return max(inner)
    return params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _sub_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


@functools.cache
def _parameters_and_flops(config: UNetConfig, tokens: int, batch: int) -> tuple[int, int]:
    config = dataclasses.replace(config, attention="xla", remat="none")  # nothing hidden in kernels
    # Initialisation runs the network once (and multiplies no other matrices): one trace for both.
    init = functools.partial(UNet(config).init, jax.random.key(0))
    size = config.sample_size
    jaxpr, params = jax.make_jaxpr(init, return_shape=True)(
        jax.ShapeDtypeStruct((batch, size, size, config.in_channels), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.float32),
        jax.ShapeDtypeStruct((batch, tokens, config.context_size), jnp.float32),
    )
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return parameters, _jaxpr_flops(jaxpr.jaxpr)
