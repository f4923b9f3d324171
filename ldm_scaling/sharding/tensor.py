"""Tensor parallelism as data: which axis of which parameter is split over the mesh's tensor axis.

The layout of arXiv:1909.08053: of two linear layers in a row the first is split by its outputs,
the second by its inputs, so that one sum over the axis after the second is all that is exchanged.
Attention is split by whole heads, feed-forward by hidden units. The rules name parameters by
pattern, so the networks know nothing of them; `matched` checks that rules and networks still fit.
"""

import re
from collections.abc import Mapping
from typing import TypeAlias

Axes: TypeAlias = tuple[str | None, ...]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

TENSOR_RULES: Mapping[str, tuple[tuple[str, Axes], ...]] = {
    "transformer blocks": (
        (r"attn[12]/to_[qkv]/kernel", (None, "tensor")),
        (r"attn[12]/to_out_0/kernel", ("tensor", None)),
        (r"ff/net_0/proj/kernel", (None, None, "tensor")),  # [value and gate, inputs, hidden]
        (r"ff/net_0/proj/bias", (None, "tensor")),
        (r"ff/net_2/kernel", ("tensor", None)),
    ),
    "BERT layers": (
        (r"attention/self/(query|key|value)/kernel", (None, "tensor")),
        (r"attention/self/(query|key|value)/bias", ("tensor",)),
        (r"attention/output/dense/kernel", ("tensor", None)),
        (r"intermediate/dense/kernel", (None, "tensor")),
        (r"intermediate/dense/bias", ("tensor",)),
        (r"layer_\d+/output/dense/kernel", ("tensor", None)),
    ),
    "CLIP layers": (
        (r"self_attn/[qkv]_proj/kernel", (None, "tensor")),
        (r"self_attn/[qkv]_proj/bias", ("tensor",)),
        (r"self_attn/out_proj/kernel", ("tensor", None)),
        (r"mlp/fc1/kernel", (None, "tensor")),
        (r"mlp/fc1/bias", ("tensor",)),
        (r"mlp/fc2/kernel", ("tensor", None)),
    ),
    "T5 blocks": (
        (r"SelfAttention/[qkv]/kernel", (None, "tensor")),
        (r"SelfAttention/o/kernel", ("tensor", None)),
        (r"SelfAttention/relative_attention_bias/embedding", (None, "tensor")),  # a bias a head
        (r"DenseReluDense/wi(_[01])?/kernel", (None, "tensor")),
        (r"DenseReluDense/wo/kernel", ("tensor", None)),
    ),
}
"""Architecture -> (pattern of the end of a parameter's name, axes). Where one pattern of an
architecture is met, all of them must be."""


def matched(
    shapes: Shapes, tensor: int, rules: Mapping[str, tuple[tuple[str, Axes], ...]] = TENSOR_RULES
) -> dict[str, Axes]:
    """Name -> axes of every parameter that is split over a tensor axis of size `tensor`.

    Args:
      shapes: "a/b/kernel" -> shape.
      tensor: size of the axis; at 1 nothing is split.
      rules: as `TENSOR_RULES`.

    Raises:
      ValueError: two patterns claim one parameter; a pattern matches nothing although others of
        its architecture do; a rule has another rank than the parameter, or `tensor` does not
        divide the axis it splits.
    """
    if tensor == 1:
        return {}
    found: dict[str, tuple[str, Axes]] = {}
    for architecture, group in rules.items():
        hits = {pattern: _names(pattern, shapes) for pattern, _ in group}
        if not any(hits.values()):
            continue
        for pattern, axes in group:
            if not hits[pattern]:
                raise ValueError(
                    f"tensor rules of {architecture}: {pattern!r} matches no parameter, but others "
                    "of the group do; a module was renamed or the rule is misspelt"
                )
            for name in hits[pattern]:
                if name in found:
                    raise ValueError(
                        f"tensor rules: {name} is claimed by {found[name][0]!r} and {pattern!r}; "
                        "make one of the patterns narrower"
                    )
                _check_fit(name, shapes[name], axes, tensor)
                found[name] = (pattern, axes)
    return {name: axes for name, (_, axes) in found.items()}


def _names(pattern: str, shapes: Shapes) -> list[str]:
    whole = re.compile(rf"(?:.*/)?{pattern}")
    return [name for name in shapes if whole.fullmatch(name)]


def _check_fit(name: str, shape: tuple[int, ...], axes: Axes, tensor: int) -> None:
    if len(axes) != len(shape):
        raise ValueError(f"tensor rules: {axes} for {name}, which has shape {shape}")
    size = shape[axes.index("tensor")]
    if size % tensor:
        raise ValueError(
            f"mesh.tensor={tensor}: does not divide the {size} of {name} {shape}; choose a divisor"
        )
