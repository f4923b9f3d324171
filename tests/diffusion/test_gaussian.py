"""Mathematics where everything is known: data ~ N(mean, diag(deviation^2)).

The exact denoiser is linear, the probability-flow ODE keeps the standardised coordinate
z = (x_t - alpha mean) / sqrt(alpha^2 deviation^2 + sigma^2), and a table maps Gaussians to
Gaussians whose mean and variance follow by arithmetic.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.diffusion import (
    SamplerTable,
    Schedule,
    ddim,
    ddpm,
    dpmpp_2m,
    initial_noise,
    sample,
)
from ldm_scaling.diffusion.solvers import _dpmpp_2m_rows

MEAN = np.array([0.7, -0.4, 0.0])
DEVIATION = np.array([0.3, 1.0, 1.6])


def _gain(alpha_bar):
    """x_0 hat = mean + gain (x_t - alpha mean)."""
    return np.sqrt(alpha_bar) * DEVIATION**2 / _variance(alpha_bar)


def _variance(alpha_bar):
    return alpha_bar * DEVIATION**2 + 1 - alpha_bar


def _denoise(x, alpha_bar):
    return MEAN + _gain(alpha_bar) * (x - np.sqrt(alpha_bar) * MEAN)


def _walk(x, levels, a, b, c):
    """The deterministic walk in NumPy float64."""
    previous = 0.0
    for level, *row in zip(levels, a, b, c, strict=True):
        x_0 = _denoise(x, level)
        x, previous = row[0] * x + row[1] * x_0 + row[2] * previous, x_0
    return x


def _exact(x, start, end):
    """Where the probability-flow ODE takes x from level `start` to level `end`."""
    z = (x - np.sqrt(start) * MEAN) / np.sqrt(_variance(start))
    return np.sqrt(end) * MEAN + np.sqrt(_variance(end)) * z


X_T = np.array([0.9, -1.1, 1.3])


def _orders(errors):
    return np.log2(np.asarray(errors[:-1]) / np.asarray(errors[1:]))


def test_orders_of_convergence_on_a_smooth_grid():
    """Steps equal in log-SNR, where the theory applies without the schedule's own kinks."""
    errors = {"ddim": [], "dpmpp_2m": []}
    for steps in (20, 40, 80, 160, 320):
        half_log_snr = np.linspace(-2.5, 2.5, steps + 1)
        levels = 1 / (1 + np.exp(-2 * half_log_snr))
        now, then = levels[:-1], levels[1:]
        a, b, c = _dpmpp_2m_rows(now, then, final_first_order=False)
        exact = _exact(X_T, now[0], then[-1])
        errors["dpmpp_2m"].append(np.abs(_walk(X_T, now, a, b, c) - exact).max())
        first_order = np.sqrt(then) - a * np.sqrt(now)
        errors["ddim"].append(np.abs(_walk(X_T, now, a, first_order, 0 * a) - exact).max())
    np.testing.assert_allclose(_orders(errors["ddim"])[-2:], 1, atol=0.05)
    np.testing.assert_allclose(_orders(errors["dpmpp_2m"])[-2:], 2, atol=0.1)
    assert errors["dpmpp_2m"][0] < errors["ddim"][0] / 5


@pytest.mark.parametrize(("solver", "order"), [(ddim, 1), (dpmpp_2m, 2)])
@pytest.mark.parametrize("schedule", ["scaled_linear", "linear"])
def test_orders_of_convergence_of_the_shipped_tables(solver, order, schedule):
    """The public functions on training schedules, from t = 999 down to t = 99.

    The last stretch is left out: there log-SNR changes by more within one timestep than within a
    hundred before, and no step count up to 1000 is in the asymptotic regime.
    """
    schedule = Schedule.from_name(schedule)
    all_steps = (40, 100, 200, 500, 1000)  # 99 is in the trailing sequence of each
    errors = []
    for steps in all_steps:
        table = solver(schedule, steps, spacing="trailing")
        rows = int(np.sum(table.timestep > 99))
        assert table.timestep[rows] == 99
        levels = schedule.alpha_bar[table.timestep[:rows]]
        walked = _walk(X_T, levels, table.a[:rows], table.b[:rows], table.c[:rows])
        errors.append(np.abs(walked - _exact(X_T, levels[0], schedule.alpha_bar[99])).max())
    slopes = -np.diff(np.log(errors)) / np.diff(np.log(all_steps))
    np.testing.assert_allclose(slopes, order, atol=0.1)
    np.testing.assert_allclose(slopes[-1], order, atol=0.01)


def _moments(schedule, table: SamplerTable):
    """Mean and variance of x_0 when x_T ~ N(0, 1), exactly; tables without c only."""
    mean, variance = np.zeros(3), np.ones(3)
    for t, a, b, _, d in zip(*table[:5], strict=True):
        level = schedule.alpha_bar[t]
        factor = a + b * _gain(level)
        mean = factor * mean + b * (MEAN - _gain(level) * np.sqrt(level) * MEAN)
        variance = factor**2 * variance + d**2
    return mean, variance


def test_ancestral_sampling_reaches_the_data_distribution():
    """The mean is exact; the error of the variance falls with the steps, to a few percent.

    What is left at 1000 steps is the chain's own discretisation; it is largest where the data are
    narrowest (deviation 0.3).
    """
    schedule = Schedule.zero_terminal_snr()  # so that x_T ~ N(0, 1) is right as well
    errors = []
    for steps in (50, 250, 1000):
        mean, variance = _moments(schedule, ddpm(schedule, steps, spacing="trailing"))
        np.testing.assert_allclose(mean, MEAN, atol=1e-9)
        errors.append(np.abs(variance / DEVIATION**2 - 1))
    assert np.all(errors[0] > 2 * errors[1])
    assert np.all(errors[1] > 2 * errors[2])
    assert np.all(errors[2] < [0.05, 0.01, 0.01])


@pytest.mark.parametrize("solver", [ddim, ddpm, dpmpp_2m])
def test_mean_from_pure_noise_at_zero_terminal_snr(solver):
    """With x_T = 0 the mean is followed exactly; an ordinary schedule misses it by design."""
    schedule = Schedule.zero_terminal_snr()
    table = solver(schedule, 20, spacing="trailing")
    levels = schedule.alpha_bar[table.timestep]
    walked = _walk(np.zeros(3), levels, table.a, table.b, table.c)
    np.testing.assert_allclose(walked, MEAN, atol=1e-9)

    ordinary = Schedule.scaled_linear()
    table = solver(ordinary, 20, spacing="trailing")
    levels = ordinary.alpha_bar[table.timestep]
    walked = _walk(np.zeros(3), levels, table.a, table.b, table.c)
    assert np.abs(walked - MEAN).max() > 1e-3


def test_sampled_moments():
    """The real thing: `sample` in float32 with keys, 4096 draws, against the predicted moments."""
    schedule = Schedule.zero_terminal_snr()
    table = ddpm(schedule, 100, spacing="trailing")
    mean, deviation = jnp.asarray(MEAN, jnp.float32), jnp.asarray(DEVIATION, jnp.float32)

    def denoise(x, t):
        alpha, sigma = (u.reshape(-1, 1, 1, 1) for u in (schedule.alpha(t), schedule.sigma(t)))
        mu, s2 = mean.reshape(1, 1, 1, 3), jnp.square(deviation).reshape(1, 1, 1, 3)
        return mu + alpha * s2 / (alpha**2 * s2 + sigma**2) * (x - alpha * mu)

    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(4096))
    draw = jax.jit(lambda table, keys: sample(denoise, table, initial_noise(keys, (1, 1, 3)), keys))
    x_0 = np.asarray(draw(table, keys)).reshape(-1, 3)
    mean_expected, variance_expected = _moments(schedule, table)
    standard_error = np.sqrt(variance_expected / 4096)
    assert np.all(np.abs(x_0.mean(0) - mean_expected) < 4 * standard_error)
    np.testing.assert_allclose(x_0.var(0), variance_expected, rtol=4 * np.sqrt(2 / 4096))
    assert np.abs(np.corrcoef(x_0.T) - np.eye(3)).max() < 4 / np.sqrt(4096)
