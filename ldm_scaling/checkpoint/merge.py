"""Strict by default: what is loaded must be exactly what is expected, or the difference is said."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from flax import traverse_util

from ldm_scaling.types import Params

_SHOWN = 20  # names of each kind in a message


class KeyMismatchError(ValueError):
    """The parameters found are not those expected; `diff` says how.

    Attributes:
      diff: the `KeyDiff`, for those who want to act on it.
    """

    def __init__(self, diff: "KeyDiff", source: str = ""):
        self.diff = diff
        super().__init__((f"{source}: " if source else "") + str(diff))


@dataclasses.dataclass(frozen=True)
class KeyDiff:
    """How two sets of named parameters differ; false where they do not.

    Attributes:
      missing: expected and not found.
      unexpected: found and not expected.
      mismatched: name -> (expected shape, found shape).
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        if not self:
            return "no difference"
        near = {name: _nearest(name, self.unexpected) for name in self.missing[:_SHOWN]}
        missing = [f"{name}{near[name]}" for name in self.missing[:_SHOWN]]
        shapes = [
            f"{name}: {list(expected)} expected, {list(found)} found"
            for name, (expected, found) in list(self.mismatched.items())[:_SHOWN]
        ]
        return "parameters do not fit" + "".join(
            _section(title, lines, total)
            for title, lines, total in (
                ("missing", missing, len(self.missing)),
                ("unexpected", self.unexpected[:_SHOWN], len(self.unexpected)),
                ("of another shape", shapes, len(self.mismatched)),
            )
        )


def key_diff(expected: Mapping[str, Any], found: Mapping[str, Any]) -> KeyDiff:
    """Compares two trees of arrays (or of `jax.ShapeDtypeStruct`, or of shapes) by name and shape.

    Nested names are joined by dots. Order and dtype play no role.
    """
    wanted, given = flatten(expected), flatten(found)
    return KeyDiff(
        missing=tuple(sorted(wanted.keys() - given.keys())),
        unexpected=tuple(sorted(given.keys() - wanted.keys())),
        mismatched={
            name: (_shape(wanted[name]), _shape(given[name]))
            for name in sorted(wanted.keys() & given.keys())
            if _shape(wanted[name]) != _shape(given[name])
        },
    )


def strict_merge(template: Params, found: Params, source: str = "") -> dict[str, Any]:
    """The values of `found` in the order and with the dtypes of `template`.

    Args:
      template: tree of arrays or `jax.ShapeDtypeStruct`.
      found: tree of arrays.
      source: where `found` comes from, for the message.

    Raises:
      KeyMismatchError: a name is missing or unexpected, or a shape differs.
    """
    if diff := key_diff(template, found):
        raise KeyMismatchError(diff, source)
    wanted, given = flatten(template), flatten(found)
    merged = {
        name: given[name] if given[name].dtype == leaf.dtype else given[name].astype(leaf.dtype)
        for name, leaf in wanted.items()
    }
    return traverse_util.unflatten_dict(merged, sep=".")


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts -> {"a.b.c": leaf}."""
    return traverse_util.flatten_dict(dict(tree), sep=".")


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape) if hasattr(leaf, "shape") else tuple(leaf)


def _nearest(name: str, others: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
    return f"  (near: {close[0]})" if close else ""


def _section(title: str, lines: Iterable[str], total: int) -> str:
    if not total:
        return ""
    rest = f"\n    ... and {total - _SHOWN} more" if total > _SHOWN else ""
    return f"\n  {total} {title}:" + "".join(f"\n    {line}" for line in lines) + rest
