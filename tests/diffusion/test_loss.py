import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.diffusion import (
    PREDICTION_TYPES,
    WEIGHTINGS,
    Schedule,
    diffuse,
    diffusion_loss,
    draw_noise,
    draw_timesteps,
    loss_weight,
    to_x0,
    training_target,
    x0_to_epsilon,
)

SCHEDULE = Schedule.scaled_linear()
T = jnp.array([0, 1, 10, 100, 500, 998, 999])


@pytest.fixture(scope="module")
def example():
    """x_0, noise, x_t, alpha, sigma at the timesteps T."""
    x_0, noise = jax.random.normal(jax.random.key(0), (2, len(T), 4, 4, 3))
    alpha, sigma = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
    return x_0, noise, diffuse(x_0, noise, alpha, sigma), alpha, sigma


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_prediction_recovers_x0_and_noise(example, prediction_type):
    x_0, noise, x_t, alpha, sigma = example
    output = training_target(prediction_type, x_0, noise, alpha, sigma)
    estimate = to_x0(prediction_type, output, x_t, alpha, sigma)
    np.testing.assert_allclose(estimate, x_0, atol=2e-5)  # eps is divided by alpha_T = 0.068
    recovered = x0_to_epsilon(estimate, x_t, alpha, sigma)
    np.testing.assert_allclose(recovered[1:], noise[1:], atol=1e-4)


def test_v_is_the_published_rotation(example):
    x_0, noise, x_t, alpha, sigma = example
    v = training_target("v_prediction", x_0, noise, alpha, sigma)
    a, s = (u.reshape(-1, 1, 1, 1) for u in (alpha, sigma))
    np.testing.assert_allclose(a * x_t - s * v, x_0, atol=1e-5)  # arXiv:2202.00512, appendix D
    np.testing.assert_allclose(s * x_t + a * v, noise, atol=1e-5)


def test_x0_at_zero_snr_comes_from_v_alone():
    schedule = Schedule.zero_terminal_snr()
    t = jnp.array([999])
    v, x_t = jax.random.normal(jax.random.key(1), (2, 1, 2, 2, 1))
    x_0 = to_x0("v_prediction", v, x_t, schedule.alpha(t), schedule.sigma(t))
    np.testing.assert_array_equal(x_0, -v)


def test_arithmetic_stays_float32_for_a_bfloat16_network(example):
    x_0, noise, x_t, alpha, sigma = example
    output = training_target("v_prediction", x_0, noise, alpha, sigma).astype(jnp.bfloat16)
    estimate = to_x0("v_prediction", output, x_t, alpha, sigma)
    assert estimate.dtype == jnp.float32
    exact = to_x0("v_prediction", output.astype(jnp.float32), x_t, alpha, sigma)
    np.testing.assert_array_equal(estimate, exact)


@pytest.mark.parametrize("weighting", ["min_snr", "truncated_snr"])
def test_weighted_losses_agree_between_prediction_types(example, weighting):
    """One weighting is one loss: the same error of x_0 costs the same in every target."""
    x_0, noise, x_t, alpha, sigma = example
    wrong_x_0 = x_0 + 0.1 * jax.random.normal(jax.random.key(2), x_0.shape)
    wrong_noise = x0_to_epsilon(wrong_x_0, x_t, alpha, sigma)
    losses = []
    for prediction_type in PREDICTION_TYPES:
        target = training_target(prediction_type, x_0, noise, alpha, sigma)
        output = training_target(prediction_type, wrong_x_0, wrong_noise, alpha, sigma)
        weight = loss_weight(weighting, prediction_type, SCHEDULE.log_snr(T))
        losses.append(weight * jnp.mean((output - target) ** 2, axis=(1, 2, 3)))
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)  # eps loses digits at t = 0
    np.testing.assert_allclose(losses[2], losses[0], rtol=2e-3)


def test_published_weights():
    log_snr = jnp.log(jnp.array([1e-3, 0.5, 4.0, 100.0]))
    expected = {
        ("uniform", "epsilon"): [1, 1, 1, 1],
        ("min_snr", "sample"): [1e-3, 0.5, 4, 5],
        ("min_snr", "epsilon"): [1, 1, 1, 0.05],  # min(SNR, 5) / SNR
        ("min_snr", "v_prediction"): [1e-3 / 1.001, 0.5 / 1.5, 4 / 5, 5 / 101],
        ("truncated_snr", "sample"): [1, 1, 4, 100],
        ("truncated_snr", "epsilon"): [1000, 2, 1, 1],  # max(x-MSE, eps-MSE)
    }
    for (weighting, prediction_type), weights in expected.items():
        actual = loss_weight(weighting, prediction_type, log_snr)
        np.testing.assert_allclose(actual, weights, rtol=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_weights_are_finite_at_zero_snr(weighting, prediction_type):
    log_snr = Schedule.zero_terminal_snr().log_snr(jnp.arange(1000))
    weight = loss_weight(weighting, prediction_type, log_snr)
    assert np.all(np.isfinite(weight))
    assert np.all(weight >= 0)


@pytest.fixture(scope="module")
def keys():
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.arange(4096))


def _loss(prediction_type="v_prediction", model_fn=lambda x, t, _: 0.5 * x, **options):
    def run(x_0, keys):
        context = jnp.zeros((len(x_0), 1, 1))
        return diffusion_loss(model_fn, SCHEDULE, prediction_type, x_0, context, keys, **options)

    return jax.jit(run)


def test_loss_of_an_example_does_not_depend_on_its_batch(keys):
    loss = _loss(weighting="min_snr")
    x_0 = jax.random.normal(jax.random.key(0), (6, 4, 4, 2))
    whole = loss(x_0, keys[:6])
    assert whole.shape == (6,)
    assert whole.dtype == jnp.float32
    np.testing.assert_array_equal(
        jnp.concatenate([loss(x_0[:3], keys[:3]), loss(x_0[3:], keys[3:6])]), whole
    )
    np.testing.assert_array_equal(loss(x_0[::-1], keys[:6][::-1])[::-1], whole)


def test_loss_of_the_exact_denoiser_is_its_expectation(keys):
    """For x_0 ~ N(0, s^2), E|eps - eps_hat|^2 = alpha^2 s^2 / (alpha^2 s^2 + sigma^2)."""
    s2 = 0.25
    alpha_bar = SCHEDULE.alpha_bar

    def exact(x, t, _):
        alpha, sigma = (u.reshape(-1, 1, 1, 1) for u in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
        return sigma / (alpha**2 * s2 + sigma**2) * x

    x_0 = jnp.sqrt(s2) * jax.random.normal(jax.random.key(3), (4096, 4, 4, 1))
    expected = np.mean(alpha_bar * s2 / (alpha_bar * s2 + 1 - alpha_bar))
    assert _loss("epsilon", exact)(x_0, keys).mean() == pytest.approx(expected, rel=0.02)


def test_timesteps_are_uniform_and_independent_of_noise(keys):
    t = draw_timesteps(keys)
    assert t.dtype == jnp.int32
    assert (t.min() >= 0) & (t.max() <= 999)
    counts = np.bincount(np.asarray(t) // 100, minlength=10)
    assert ((counts - 409.6) ** 2 / 409.6).sum() < 30  # chi squared, 9 degrees: p = 4e-4
    noise = draw_noise(keys, (2,))
    assert abs(np.corrcoef(t, noise[:, 0])[0, 1]) < 0.06
    assert np.mean(noise) == pytest.approx(0, abs=0.04)
    assert np.std(noise) == pytest.approx(1, abs=0.04)


def test_bad_names_are_refused(keys):
    x_0 = jnp.zeros((1, 2, 2, 1))
    with pytest.raises(ValueError, match="weighting='minsnr': did you mean 'min_snr'"):
        _loss(weighting="minsnr")(x_0, keys[:1])
    with pytest.raises(ValueError, match="prediction_type='v_pred': did you mean 'v_prediction'"):
        _loss("v_pred")(x_0, keys[:1])
    with pytest.raises(ValueError, match="zero terminal SNR"):
        diffusion_loss(
            lambda x, t, _: x,
            Schedule.zero_terminal_snr(),
            "epsilon",
            x_0,
            jnp.zeros((1, 1, 1)),
            keys[:1],
        )
