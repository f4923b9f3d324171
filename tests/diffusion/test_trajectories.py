"""Parity with diffusers on whole trajectories; golden_makers/diffusion.py says how and what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.diffusion import SAMPLERS, Schedule, pad, to_denoiser
from ldm_scaling.diffusion.sampling import _walk
from tests.golden_makers import diffusion as golden

VARIANTS = {
    "ddim_eta_half": ("ddim", {"eta": 0.5}),
    "dpmpp_2m_sigma_min": ("dpmpp_2m", {"final_sigma": "sigma_min"}),
}
NOISE = np.stack([golden.step_noise(index) for index in range(256)])


@pytest.fixture(scope="module")
def trajectories(goldens):
    return dict(np.load(goldens / "diffusion_trajectories.npz"))


@pytest.fixture(scope="module")
def walk():
    """One compiled program per schedule and prediction type, for all tables."""
    programs = {}

    def run(table, schedule, prediction_type):
        def program(table, x_T, noise):
            denoise = to_denoiser(
                lambda x, t, _: golden.model(x, t.reshape(-1, 1, 1, 1), jnp),
                jnp.zeros((1, 1, 1)),
                schedule,
                prediction_type,
            )
            return _walk(denoise, table, x_T, lambda index: noise[index])

        program = programs.setdefault((schedule, prediction_type), jax.jit(program))
        return np.asarray(program(table, jnp.asarray(golden.initial()), jnp.asarray(NOISE)))

    return run


def _states_after(walk, table, *point):
    """x after the first, the middle and the last step: later rows are made inactive."""
    steps = len(table.timestep)
    table = pad(table, 256)
    rows = np.arange(256)
    return np.stack(
        [walk(table._replace(active=rows < n), *point) for n in (1, steps // 2 + 1, steps)]
    )


def _cases(trajectories, sampler, schedule):
    for name in trajectories:
        if name.startswith(f"{sampler}/") and name.endswith(f"/{schedule}/states"):
            _, spacing, steps, prediction_type, *_ = name.split("/")
            yield name.removesuffix("/states"), spacing, int(steps), prediction_type


@pytest.mark.parametrize(
    ("sampler", "schedule", "count"),
    [
        ("ddim", "scaled_linear", 60),
        ("ddpm", "scaled_linear", 60),
        ("dpmpp_2m", "scaled_linear", 60),
        ("ddim_eta_half", "scaled_linear", 3),
        ("dpmpp_2m_sigma_min", "scaled_linear", 3),
        ("dpmpp_2m", "cosine", 6),
        ("ddim", "zero_terminal_snr", 3),
        ("ddpm", "zero_terminal_snr", 3),
    ],
)
def test_trajectories_equal_diffusers(trajectories, walk, sampler, schedule, count):
    cases = list(_cases(trajectories, sampler, schedule))
    assert len(cases) == count
    solver, options = VARIANTS.get(sampler, (sampler, {}))
    noise_schedule = Schedule.from_config(golden.SCHEDULES[schedule])
    for name, spacing, steps, prediction_type in cases:
        table = SAMPLERS[solver](noise_schedule, steps, spacing=spacing, **options)
        np.testing.assert_array_equal(
            table.timestep, trajectories[f"{name}/timesteps"], err_msg=name
        )
        states = _states_after(walk, table, noise_schedule, prediction_type)
        expected = trajectories[f"{name}/states"]
        error = np.abs(states - expected).max(axis=(1, 2, 3, 4))
        scale = np.abs(expected).max(axis=(1, 2, 3, 4))
        assert np.all(error <= 1e-4 * scale), (name, error, scale)


@pytest.mark.parametrize("name", ["scaled_linear", "linear", "cosine", "zero_terminal_snr"])
def test_alpha_bar_equals_diffusers(trajectories, name):
    # diffusers accumulates the product in float32.
    expected = trajectories[f"alpha_bar/{name}"]
    np.testing.assert_allclose(Schedule.from_name(name).alpha_bar, expected, rtol=1e-4, atol=1e-7)
