"""T5's encoder against transformers' model, and its relative positions against exact arithmetic."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.encoders.t5 import T5, T5Config, relative_buckets
from tests.encoders.conftest import assert_close, root_mean_square

# Root mean square of bfloat16's errors, of the values'; seen: 0.018 (transformers' own: 0.021).
BFLOAT16 = 0.025


QUICK = {"xla_backend_optimization_level": 0}  # compiling is most of the time here


@pytest.fixture(scope="module")
def t5(load_golden, golden_params):
    """t5(name) -> config, variables, arrays."""

    @functools.cache
    def load(name):
        fields, arrays = load_golden(f"t5_{name}")
        config = T5Config(**fields)
        ids, mask = inputs(arrays, 9)
        return config, {"params": golden_params(T5(config), arrays, ids, mask)}, arrays

    return load


def inputs(arrays, length):
    return (arrays[f"{kind}_{length}"].astype(np.int32) for kind in ("ids", "mask"))


def run(config, variables, ids, mask):
    """States, zero at padding."""
    hidden = jax.jit(T5(config).apply, compiler_options=QUICK)(variables, ids, mask)
    assert hidden.dtype == jnp.float32
    return np.asarray(hidden) * mask[..., None]


@pytest.mark.parametrize("name", ["gated", "relu"])
@pytest.mark.parametrize("length", [9, 150])
def test_matches_transformers(t5, name, length):
    config, variables, arrays = t5(name)
    hidden = run(config, variables, *inputs(arrays, length))
    assert_close(hidden, arrays[f"hidden_{length}"])


@pytest.mark.parametrize("name", ["gated", "relu"])
@pytest.mark.parametrize("length", [9, 150])
def test_bfloat16_stays_near_transformers_float32(t5, name, length):
    config, variables, arrays = t5(name)
    rough = dataclasses.replace(config, dtype="bfloat16")
    hidden = run(rough, variables, *inputs(arrays, length))
    error = root_mean_square(hidden, arrays[f"hidden_{length}"])
    assert 1e-3 < error < BFLOAT16  # half precision was what ran
    theirs = root_mean_square(arrays[f"bfloat16_{length}"], arrays[f"hidden_{length}"])
    assert error < 1.1 * theirs


def test_padding_carries_no_information(t5):
    config, variables, arrays = t5("gated")
    ids, mask = inputs(arrays, 9)
    both = np.concatenate([ids, np.where(mask, ids, 7)])
    a, b = np.split(run(config, variables, both, np.concatenate([mask, mask])), 2)
    np.testing.assert_array_equal(a, b)
    short = run(config, variables, ids[1:, :6], mask[1:, :6])  # prompts of at most four tokens
    assert_close(short, a[1:, :6], 1e-5)


def exact_bucket(distance, buckets, max_distance):
    """Of a far distance: the largest k with near (max/near)^(k/far) <= distance, in integers."""
    half, near = buckets // 2, buckets // 4
    far, size = half - near, abs(distance)
    bucket = size
    if size >= near:
        # near^far (max/near)^k <= size^far, times near^k
        fits = [k for k in range(far) if near ** (far - k) * max_distance**k <= size**far]
        bucket = near + max(fits)
    return bucket + (half if distance > 0 else 0)


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 40), (64, 256)])
def test_buckets_are_those_of_exact_arithmetic_and_of_transformers(
    load_golden, buckets, max_distance
):
    table = relative_buckets(301, buckets, max_distance)
    found = np.concatenate([table[-1, :-1], table[0]])  # distances -300 .. 300
    exact = [exact_bucket(d, buckets, max_distance) for d in range(-300, 301)]
    np.testing.assert_array_equal(found, exact)
    _, arrays = load_golden("t5_buckets")
    np.testing.assert_array_equal(found, arrays[f"buckets_{buckets}_{max_distance}"])
    assert (found.min(), found.max()) == (0, buckets - 1)


def test_positions_are_relative(t5):
    """Padding in front moves every token and changes no state: there are no absolute positions."""
    config, variables, arrays = t5("gated")
    ids = next(inputs(arrays, 9))[:1]
    mask = np.ones_like(ids)
    shifted, behind = (np.pad(x, ((0, 0), (5, 0))) for x in (ids, mask))
    moved = run(config, variables, shifted, behind)[:, 5:]
    assert_close(moved, run(config, variables, ids, mask), 1e-5)


def test_parameter_count_is_that_of_v1_1_large():
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    params = jax.eval_shape(T5(T5Config()).init, jax.random.key(0), ids, ids)["params"]
    # transformers' T5EncoderModel with the config of google/t5-v1_1-large
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 341_231_104


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feed_forward_proj": "gated_gelu"}, "did you mean 'gated-gelu'"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"relative_attention_num_buckets": 30}, "multiple of 4"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        T5Config(**fields)
