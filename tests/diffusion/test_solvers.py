import numpy as np
import pytest

from ldm_scaling.diffusion import (
    SAMPLERS,
    SCHEDULES,
    SPACINGS,
    Schedule,
    bucket,
    ddim,
    ddpm,
    dpmpp_2m,
    pad,
    sampler_table,
    spaced_timesteps,
)

SCALED_LINEAR = Schedule.scaled_linear()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("leave_out_clean_end", [False, True])
def test_every_step_count_gives_that_many_decreasing_timesteps(spacing, leave_out_clean_end):
    for steps in range(1, 1000):
        t = spaced_timesteps(steps, spacing, leave_out_clean_end=leave_out_clean_end)
        assert len(t) == steps
        assert np.all(np.diff(t) < 0)
        assert t[-1] >= 0
        assert t[0] <= 999
        if spacing != "leading":
            assert t[0] == 999


def test_known_spacings():
    assert spaced_timesteps(50, "leading")[[0, 1, -1]].tolist() == [981, 961, 1]  # CompVis
    assert spaced_timesteps(10, "trailing").tolist() == list(range(999, 0, -100))
    assert spaced_timesteps(5, "linspace").tolist() == [999, 749, 500, 250, 0]
    assert spaced_timesteps(1, "linspace").tolist() == [999]
    assert len(spaced_timesteps(48, "leading")) == 48  # CompVis' own arange gives 50


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_tables_are_finite_and_keep_pure_signal(sampler, spacing, schedule):
    """Noise-free: a denoiser that already knows x_0 is left with alpha x_0 at every level."""
    schedule = Schedule.from_name(schedule)
    for steps in (1, 2, 3, 7, 48, 250, 999, 1000):
        table = SAMPLERS[sampler](schedule, steps, spacing=spacing)
        assert all(np.all(np.isfinite(column)) for column in table)
        assert table.a.dtype == np.float64
        assert table.timestep.dtype == np.int32
        assert len(table.timestep) == steps
        now = np.sqrt(schedule.alpha_bar[table.timestep])
        after = table.a * now + table.b + table.c
        np.testing.assert_allclose(after[:-1], now[1:], rtol=1e-9, atol=1e-12)
        assert table.d[-1] == 0 or spacing == "leading"


def test_full_eta_is_ancestral_sampling():
    for schedule in (SCALED_LINEAR, Schedule.zero_terminal_snr()):
        for steps in (1, 2, 10, 48, 1000):
            for spacing in SPACINGS:
                stochastic = ddim(schedule, steps, spacing=spacing, eta=1.0, final_sigma="zero")
                ancestral = ddpm(schedule, steps, spacing=spacing)
                for left, right in zip(stochastic, ancestral, strict=True):
                    np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)


def test_a_thousand_ancestral_steps_are_the_training_chain():
    """The last formula of DDPM with its own betas, no respacing (arXiv:2006.11239, eq. 7)."""
    schedule = Schedule.linear()
    table = ddpm(schedule, 1000, spacing="trailing")
    beta = np.linspace(1e-4, 0.02, 1000)[::-1]
    alpha_bar = schedule.alpha_bar[::-1]
    before = np.append(alpha_bar[1:], 1.0)
    np.testing.assert_allclose(table.b, np.sqrt(before) * beta / (1 - alpha_bar), rtol=1e-9)
    np.testing.assert_allclose(
        table.a, np.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar), rtol=1e-9
    )
    np.testing.assert_allclose(table.d**2, (1 - before) / (1 - alpha_bar) * beta, rtol=1e-9)


def test_first_order_steps_of_the_multistep_solver():
    assert np.nonzero(dpmpp_2m(SCALED_LINEAR, 20).c == 0)[0].tolist() == [0, 19]
    last = dpmpp_2m(SCALED_LINEAR, 20, final_sigma="sigma_min").c
    assert np.nonzero(last == 0)[0].tolist() == [0]
    last = dpmpp_2m(SCALED_LINEAR, 14, final_sigma="sigma_min").c
    assert np.nonzero(last == 0)[0].tolist() == [0, 13]


def test_one_multistep_step_is_ddim():
    left, right = (f(SCALED_LINEAR, 1, spacing="trailing") for f in (dpmpp_2m, ddim))
    np.testing.assert_allclose([left.a, left.b], [right.a, right.b], atol=1e-12)


def test_zero_terminal_snr_is_the_limit_of_vanishing_signal():
    """Rows out of pure noise are what rows out of ever more noise tend to."""
    from ldm_scaling.diffusion.solvers import _dpmpp_2m_rows

    levels = np.array([0.0, 0.2, 0.6, 0.9])
    exact = np.array(_dpmpp_2m_rows(levels[:-1], levels[1:], final_first_order=False))
    gaps = []
    for faint in (1e-4, 1e-16, 1e-64, 1e-256):
        levels[0] = faint
        rows = np.array(_dpmpp_2m_rows(levels[:-1], levels[1:], final_first_order=False))
        gaps.append(np.abs(rows - exact).max())
    assert np.all(np.diff(gaps) < 0)
    assert gaps[-1] < 0.005  # the extrapolation fades like 1 / lambda


def test_padding():
    table = ddim(SCALED_LINEAR, 20)
    padded = pad(table)
    assert len(padded.timestep) == bucket(20) == 64
    assert padded.active.tolist() == [True] * 20 + [False] * 44
    for column, whole in zip(table, padded, strict=True):
        assert column.dtype == whole.dtype
        np.testing.assert_array_equal(whole[:20], column)
    assert [bucket(n) for n in (1, 16, 17, 64, 250, 1000)] == [16, 16, 64, 64, 256, 1024]
    with pytest.raises(ValueError, match="length=10: the table has 20 rows"):
        pad(table, 10)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_bad_input_is_named(sampler):
    solver = SAMPLERS[sampler]
    with pytest.raises(ValueError, match=r"^steps=0: a sampler needs at least 1 step$"):
        solver(SCALED_LINEAR, 0)
    with pytest.raises(ValueError, match="steps=1001: a sampler takes at most 1000 steps"):
        solver(SCALED_LINEAR, 1001)
    with pytest.raises(ValueError, match="spacing='trailling': did you mean 'trailing'"):
        solver(SCALED_LINEAR, 10, spacing="trailling")


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="sampler='dpmpp': did you mean 'dpmpp_2m'"):
        sampler_table("dpmpp", SCALED_LINEAR, 10)
    with pytest.raises(ValueError, match=r"eta=1\.5: must be in \[0, 1\]"):
        ddim(SCALED_LINEAR, 10, eta=1.5)
    with pytest.raises(ValueError, match="final_sigma='zeros': did you mean 'zero'"):
        dpmpp_2m(SCALED_LINEAR, 10, final_sigma="zeros")
    assert len(sampler_table("dpmpp_2m", SCALED_LINEAR, 10, spacing="trailing").a) == 10
