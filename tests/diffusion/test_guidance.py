import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.diffusion import (
    check_guidance_rate,
    classifier_free_guidance,
    rescaled_guidance,
)

T = jnp.array([3, 500])


def model_fn(x, t, context):
    """Depends on every argument of its own example only."""
    level = jnp.mean(context, axis=(1, 2)) + 0.001 * t
    return jnp.tanh(x) * level.reshape(-1, 1, 1, 1) + x


@pytest.fixture(scope="module")
def inputs():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    context = jax.random.normal(jax.random.key(1), (2, 5, 6))
    return x, context, jnp.full((1, 5, 6), 0.1)


def test_is_the_published_extrapolation(inputs):
    x, context, empty = inputs
    conditional = model_fn(x, T, context)
    unconditional = model_fn(x, T, jnp.broadcast_to(empty, context.shape))
    for rate in (0.0, 1.0, 7.5):
        guided = classifier_free_guidance(model_fn, rate, empty)(x, T, context)
        expected = unconditional + rate * (conditional - unconditional)
        np.testing.assert_allclose(guided, expected, rtol=1e-5, atol=1e-6)


def test_one_call_on_twice_the_batch(inputs):
    x, context, empty = inputs
    sizes = []

    def spy(x, t, context):
        sizes.append((len(x), len(t), len(context)))
        return model_fn(x, t, context)

    classifier_free_guidance(spy, 3.0, empty)(x, T, context)
    assert sizes == [(4, 4, 4)]


def test_rates_may_differ_within_a_batch(inputs):
    x, context, empty = inputs
    both = classifier_free_guidance(model_fn, jnp.array([1.5, 8.0]), empty)(x, T, context)
    for i, rate in enumerate((1.5, 8.0)):
        one = classifier_free_guidance(model_fn, rate, empty)(x, T, context)
        np.testing.assert_array_equal(both[i], one[i])


def test_rescaling_equals_diffusers(goldens):
    unconditional, conditional, expected = np.load(goldens / "diffusion_trajectories.npz")[
        "rescaled_guidance"
    ]

    def recorded(x, t, context):
        chosen = context[:, 0, 0].reshape(-1, 1, 1, 1)
        return jnp.where(
            chosen == 1, jnp.repeat(conditional, 2, 0), jnp.repeat(unconditional, 2, 0)
        )

    args = jnp.zeros((2, 2, 4, 4)), T, jnp.ones((2, 1, 1))
    guided = rescaled_guidance(recorded, 7.5, jnp.zeros((1, 1, 1)), phi=0.7)(*args)
    np.testing.assert_allclose(guided, expected, rtol=1e-4, atol=1e-5)


def test_rescaling_keeps_the_conditional_deviation(inputs):
    x, context, empty = inputs
    conditional = model_fn(x, T, context)
    full = rescaled_guidance(model_fn, 8.0, empty, phi=1.0)(x, T, context)
    np.testing.assert_allclose(jnp.std(full, (1, 2, 3)), jnp.std(conditional, (1, 2, 3)), rtol=1e-5)
    none = rescaled_guidance(model_fn, 8.0, empty, phi=0.0)(x, T, context)
    plain = classifier_free_guidance(model_fn, 8.0, empty)(x, T, context)
    np.testing.assert_allclose(none, plain, rtol=1e-6)


@pytest.mark.parametrize("rate", [float("nan"), -1.0, float("inf"), np.array([2.0, np.nan])])
def test_bad_rates_are_refused(rate):
    with pytest.raises(ValueError, match=r"guidance=(nan|-1\.0|inf): a guidance rate is a finite"):
        check_guidance_rate(rate)


def test_good_rates_pass():
    check_guidance_rate(0)
    check_guidance_rate(np.array([1.5, 8.0]))
