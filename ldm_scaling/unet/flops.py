"""What a UNet costs, counted from the traced computation; no weights are allocated."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from ldm_scaling.unet.config import UNetConfig
from ldm_scaling.unet.unet import UNet

PAPER_TOKENS = 77  # of the context; reproduces Table 1 of arXiv:2404.01367 within 7 %


@functools.cache
def parameter_count(config: UNetConfig) -> int:
    """Number of parameters of the UNet."""
    params = jax.eval_shape(UNet(config).init, *_inputs(config, PAPER_TOKENS))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@functools.cache
def forward_flops(config: UNetConfig, tokens: int = PAPER_TOKENS) -> int:
    """FLOPs of one evaluation on one example: 2 x multiply-adds of convolutions and products.

    Args:
      config: of the UNet; its `sample_size` is the side of the latents.
      tokens: length of the context.
    """
    module = UNet(config)
    key, *inputs = _inputs(config, tokens)
    params = jax.eval_shape(module.init, key, *inputs)
    return jaxpr_flops(jax.make_jaxpr(module.apply)(params, *inputs).jaxpr)


def jaxpr_flops(jaxpr: core.Jaxpr) -> int:
    """2 x multiply-adds of every convolution and matrix product, loops counted by their length.

    A `while` loop's length is not known before it runs; its body is counted once.
    """
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape  # type: ignore[attr-defined]
        return 2 * _size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape  # type: ignore[attr-defined]
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * _size(equation.outvars[0]) * math.prod(kernel) // out_features
    times = params["length"] if name == "scan" else 1
    return times * sum(jaxpr_flops(inner) for inner in _inner_jaxprs(params))


def _inner_jaxprs(params: dict[str, Any]):
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _inputs(config: UNetConfig, tokens: int):
    size = config.sample_size
    return (
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((1, size, size, config.in_channels), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, tokens, config.context_size), jnp.float32),
    )
