"""Strict merging and the differences it reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.checkpoint.identity import weights_hash
from ldm_scaling.checkpoint.merge import KeyMismatchError, key_diff, strict_merge

TREE = {"a": {"kernel": np.ones((2, 3)), "bias": np.zeros(3)}, "b": {"scale": np.ones(2)}}


def test_equal_trees_have_no_difference():
    diff = key_diff(TREE, TREE)
    assert not diff
    assert str(diff) == "no difference"


def test_difference_is_named_and_cut_short():
    found = {"a": {"kernel": np.ones((3, 2))}, "c": {"scale": np.ones(2)}}
    found |= {f"x{i:02}": np.ones(1) for i in range(30)}
    diff = key_diff(TREE, found)
    assert diff.missing == ("a.bias", "b.scale")
    assert diff.mismatched == {"a.kernel": ((2, 3), (3, 2))}
    text = str(diff)
    assert "2 missing:" in text
    assert "b.scale  (near: c.scale)" in text
    assert "31 unexpected:" in text
    assert "x18" in text
    assert "x19" not in text
    assert "and 11 more" in text
    assert "a.kernel: [2, 3] expected, [3, 2] found" in text


def test_strict_merge_takes_values_and_the_dtype_of_the_template():
    template = jax.eval_shape(lambda: jax.tree.map(jnp.bfloat16, TREE))
    merged = strict_merge(template, TREE)
    assert jax.tree.structure(merged) == jax.tree.structure(TREE)
    assert merged["a"]["kernel"].dtype == jnp.bfloat16
    assert np.array_equal(strict_merge(TREE, TREE)["b"]["scale"], TREE["b"]["scale"])


def test_strict_merge_raises_with_source_and_diff():
    with pytest.raises(KeyMismatchError, match=r"old run: parameters .*\n.*1 missing") as error:
        strict_merge(TREE, {"a": TREE["a"]}, "old run")
    assert error.value.diff.missing == ("b.scale",)


def test_weights_hash_is_of_names_shapes_and_bytes_only():
    expected = weights_hash(TREE)
    assert len(expected) == 16
    assert int(expected, 16) >= 0
    turned = {"b": TREE["b"], "a": dict(reversed(TREE["a"].items()))}
    assert weights_hash(turned) == expected
    assert weights_hash(jax.tree.map(np.asfortranarray, TREE)) == expected
    bias = {"kernel": TREE["a"]["kernel"], "bias": np.array([0.0, -0.0, 0.0])}
    for other in (
        {**TREE, "a": bias},
        {"a": TREE["a"], "bb": TREE["b"]},
        {**TREE, "a": {**TREE["a"], "kernel": np.ones((3, 2))}},
        jax.tree.map(lambda x: x.astype(np.float32), TREE),
    ):
        assert weights_hash(other) != expected
    as_jax = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), TREE)
    assert weights_hash(as_jax) == weights_hash(jax.tree.map(np.float32, TREE))
