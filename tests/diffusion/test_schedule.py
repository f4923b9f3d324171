import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.diffusion import SCHEDULES, Schedule

ALL_T = jnp.arange(1000)


@pytest.mark.parametrize("name", SCHEDULES)
def test_preserves_variance_and_grows_noisier(name):
    schedule = Schedule.from_name(name)
    assert schedule.alpha_bar.shape == (1000,)
    assert schedule.alpha_bar.dtype == np.float64
    assert np.all(np.diff(schedule.alpha_bar) < 0)
    alpha, sigma = schedule.alpha(ALL_T), schedule.sigma(ALL_T)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=2e-7)
    log_snr = np.asarray(schedule.log_snr(ALL_T), np.float64)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(
            log_snr, np.log(schedule.alpha_bar / (1 - schedule.alpha_bar)), rtol=1e-6, atol=1e-6
        )


def test_published_end_points():
    # Stable Diffusion: alpha_bar_T = 0.00466 (arXiv:2305.08891, table 1 gives sqrt = 0.068265).
    assert np.sqrt(Schedule.scaled_linear().alpha_bar[-1]) == pytest.approx(0.068265, abs=1e-6)
    assert np.sqrt(Schedule.linear().alpha_bar[-1]) == pytest.approx(0.006353, abs=1e-6)
    assert np.sqrt(Schedule.cosine().alpha_bar[-1]) == pytest.approx(4.928e-05, rel=1e-3)


def test_zero_terminal_snr_keeps_the_clean_end():
    base, rescaled = Schedule.scaled_linear(), Schedule.zero_terminal_snr()
    assert rescaled.ends_in_pure_noise
    assert not base.ends_in_pure_noise
    assert rescaled.alpha_bar[0] == pytest.approx(base.alpha_bar[0], rel=1e-12)
    assert rescaled.alpha(jnp.array(999)) == 0
    assert rescaled.sigma(jnp.array(999)) == 1
    assert rescaled.log_snr(jnp.array(999)) == -jnp.inf
    assert Schedule.zero_terminal_snr(Schedule.linear()).ends_in_pure_noise


def test_lookup_is_exact_float32_under_jit():
    schedule = Schedule.scaled_linear()
    t = jnp.array([0, 1, 500, 999])
    for values, table in (
        (jax.jit(schedule.alpha)(t), np.sqrt(schedule.alpha_bar)),
        (jax.jit(schedule.sigma)(t), np.sqrt(1 - schedule.alpha_bar)),
    ):
        assert values.dtype == jnp.float32
        np.testing.assert_array_equal(values, table[np.asarray(t)].astype(np.float32))


def test_a_timestep_out_of_range_is_nan():
    assert np.all(np.isnan(Schedule.linear().alpha(jnp.array([-1, 1000]))))


def test_hashes_and_compares_by_value():
    assert Schedule.scaled_linear() == Schedule.from_name("scaled_linear")
    assert len({Schedule.scaled_linear(), Schedule.scaled_linear(), Schedule.linear()}) == 2
    traces = []

    def program(schedule, t):
        traces.append(schedule)
        return schedule.alpha(t)

    jitted = jax.jit(program, static_argnums=0)
    jitted(Schedule.scaled_linear(), jnp.arange(3))
    jitted(Schedule.scaled_linear(), jnp.arange(3))
    assert len(traces) == 1


def test_is_immutable():
    schedule = Schedule.scaled_linear()
    with pytest.raises(ValueError, match="read-only"):
        schedule.alpha_bar[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.beta_end = 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_config_round_trip(name):
    schedule = Schedule.from_name(name)
    assert Schedule.from_config(schedule.to_config()) == schedule


def test_reads_a_stable_diffusion_config():
    config = {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "trained_betas": None,
    }
    assert Schedule.from_config(config) == Schedule.scaled_linear()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="schedule='cosin': did you mean 'cosine'"):
        Schedule.from_name("cosin")
    with pytest.raises(ValueError, match="beta_schedule='sigmoid'"):
        Schedule("sigmoid")
    with pytest.raises(ValueError, match=r"beta_start=0\.5, beta_end=0\.1: need"):
        Schedule.linear(0.5, 0.1)
    with pytest.raises(ValueError, match="num_train_timesteps=4000"):
        Schedule.from_config({"num_train_timesteps": 4000})
    with pytest.raises(ValueError, match="trained_betas"):
        Schedule.from_config({"trained_betas": [0.1]})
