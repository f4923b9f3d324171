"""Examples in batches: every one once, in order, whatever the batch size and the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.evaluation.batches import InBatches
from ldm_scaling.sharding import make_mesh


def shifted_rows(params, x, y):
    return (x.astype(jnp.float32) + y) @ params["kernel"]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return (
        {"kernel": rng.normal(size=(3, 2)).astype(np.float32)},
        rng.integers(0, 256, (21, 3)).astype(np.uint8),
        rng.normal(size=(21, 3)).astype(np.float32),
    )


@pytest.mark.parametrize(
    ("batch_size", "devices"), [(1, 1), (8, 1), (21, 1), (64, 1), (8, 8), (24, 4)]
)
def test_all_examples_come_back_once_and_in_order(data, batch_size, devices):
    params, x, y = data
    mesh = make_mesh(devices=jax.devices()[:devices])
    run = InBatches(shifted_rows, params, batch_size=batch_size, mesh=mesh)
    expected = (x + y) @ params["kernel"]
    np.testing.assert_allclose(run(x, y), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(x[:1], y[:1]), expected[:1], rtol=1e-4, atol=1e-4)


def test_one_compilation_serves_any_number_of_examples(data):
    params, x, y = data
    traced = []

    def counted(*arguments):
        traced.append(1)
        return shifted_rows(*arguments)

    run = InBatches(counted, params, batch_size=4)
    for count in (1, 4, 9, 21):
        run(x[:count], y[:count])
    assert len(traced) == 1


def test_what_does_not_fit_is_refused(data):
    params, x, y = data
    with pytest.raises(ValueError, match=r"batch_size=12: must be a multiple of .* = 8"):
        InBatches(shifted_rows, params, batch_size=12, mesh=make_mesh())
    run = InBatches(shifted_rows, params, batch_size=8)
    with pytest.raises(ValueError, match=r"\[0, 0\] examples"):
        run(x[:0], y[:0])
    with pytest.raises(ValueError, match=r"\[21, 20\] examples"):
        run(x, y[:20])


def test_results_that_are_no_numbers_are_refused(data):
    params, x, y = data
    run = InBatches(shifted_rows, params, batch_size=8)
    y = y.copy()
    y[5, 1], y[20, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="NaN or Inf for 2 of 21 examples, the first is 5; its we"):
        run(x, y)
    broken = {"kernel": np.full_like(params["kernel"], np.nan)}
    with pytest.raises(ValueError, match="for 21 of 21 examples"):
        InBatches(shifted_rows, broken, batch_size=8)(x, y)
