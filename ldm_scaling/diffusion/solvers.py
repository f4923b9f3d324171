"""Samplers as tables: every one of them is a list of linear updates.

x <- a x + b x0 + c x0_prev + d noise, one row per step, where x0 is the denoiser's estimate at
the row's timestep and x0_prev that of the row before. A solver is a NumPy float64 function from a
schedule and a step count to such rows; `sampling.sample` walks them.

Conventions follow diffusers, with the previous timestep always taken from the sequence itself
(diffusers' DDIM takes t - 1000 // steps, which is another one where steps does not divide 1000
or spacing is linspace).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ldm_scaling.diffusion.schedule import NUM_TIMESTEPS, Schedule
from ldm_scaling.naming import check_name

SPACINGS = ("leading", "trailing", "linspace")
FINAL_SIGMAS = ("zero", "sigma_min")
BUCKETS = (16, 64, 256, 1024)  # table lengths worth compiling for
# Stable Diffusion counts its timesteps from 1 (CompVis adds 1; diffusers has steps_offset=1).
_LEADING_OFFSET = 1
# Below this half log-SNR the cosine schedule all but hides the signal, and a multistep solver
# would extrapolate over a huge interval (diffusers recommends lambda_min_clipped=-5.1).
_LAMBDA_MIN = -5.1


class SamplerTable(NamedTuple):
    """Coefficients of N steps, noisiest first; a pytree, and meant as a traced argument.

    Attributes:
      timestep: what the network is told, int32 [N] in 0..999.
      a, b, c, d: weights of x, x0, x0_prev and noise, float64 [N] on the host (float32 once they
        enter a program).
      active: bool [N]; a row that is not active leaves x as it is and calls no network.
    """

    timestep: Int[np.ndarray | Array, "N"]
    a: Float[np.ndarray | Array, "N"]
    b: Float[np.ndarray | Array, "N"]
    c: Float[np.ndarray | Array, "N"]
    d: Float[np.ndarray | Array, "N"]
    active: Bool[np.ndarray | Array, "N"]


def ddim(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "leading",
    eta: float | int = 0.0,
    final_sigma: str | None = None,
) -> SamplerTable:
    """DDIM (arXiv:2010.02502, eq. 12 and 16).

    Args:
      steps: 1..1000.
      spacing: "leading" (Stable Diffusion's), "trailing" (starts at 999, needed for zero terminal
        SNR) or "linspace" (both ends). See arXiv:2305.08891, table 2. Few "leading" steps start
        far from pure noise: 1 step at t = 1, 2 at t = 501.
      eta: share of the noise of ancestral sampling, 0 (deterministic) to 1 (DDPM).
      final_sigma: noise level that the last step leaves, "zero" or "sigma_min", that of t = 0.
        Default: "sigma_min" for "leading", as in Stable Diffusion (diffusers'
        set_alpha_to_one=False), else "zero".

    Raises:
      ValueError: steps out of range, eta outside [0, 1], unknown spacing or final_sigma.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: must be in [0, 1]; 0 is deterministic, 1 is DDPM")
    timestep = spaced_timesteps(steps, spacing)
    if final_sigma is None:
        final_sigma = "sigma_min" if spacing == "leading" else "zero"
    now, then = _levels(schedule, timestep, final_sigma)
    variance = (1 - then) / (1 - now) * (1 - now / then)  # of the posterior
    d = eta * np.sqrt(variance)
    # Weight of eps = (x - alpha x0) / sigma; rounding may leave a hair below 0.
    a = np.sqrt(np.maximum(1 - then - eta**2 * variance, 0) / (1 - now))
    return _table(timestep, a, np.sqrt(then) - a * np.sqrt(now), 0 * a, d)


def ddpm(schedule: Schedule, steps: int, *, spacing: str = "leading") -> SamplerTable:
    """Ancestral sampling with the posterior of the respaced chain (arXiv:2006.11239, eq. 6-7).

    The variance is the posterior's ("fixed small"); the last step returns the denoiser's estimate.
    Arguments and errors as for `ddim`.
    """
    timestep = spaced_timesteps(steps, spacing)
    now, then = _levels(schedule, timestep, "zero")
    beta = 1 - now / then  # of the respaced chain, not of the training one
    a = np.sqrt(now / then) * (1 - then) / (1 - now)
    b = np.sqrt(then) * beta / (1 - now)
    return _table(timestep, a, b, 0 * a, np.sqrt((1 - then) / (1 - now) * beta))


def dpmpp_2m(
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "linspace",
    final_sigma: str = "zero",
) -> SamplerTable:
    """DPM-Solver++(2M), midpoint form (arXiv:2211.01095, algorithm 2).

    First order in the first step, and in the last one where it ends at sigma = 0 or where there
    are fewer than 15 steps. Out of pure noise (zero terminal SNR) lambda is -inf and both orders
    agree in the limit; the rows hold that limit. Arguments and errors as for `ddim`; "leading" and
    "linspace" divide [0, 999] into `steps` intervals and leave out the clean end, as diffusers
    does for this solver.
    """
    last = NUM_TIMESTEPS
    if not schedule.ends_in_pure_noise:
        half_log_snr = np.log(schedule.alpha_bar / (1 - schedule.alpha_bar)) / 2
        last = int(np.sum(half_log_snr >= _LAMBDA_MIN))
    timestep = spaced_timesteps(steps, spacing, last=last, leave_out_clean_end=True)
    now, then = _levels(schedule, timestep, final_sigma)
    a, b, c = _dpmpp_2m_rows(now, then, final_first_order=final_sigma == "zero" or steps < 15)
    return _table(timestep, a, b, c, 0 * a)


SAMPLERS: dict[str, Callable[..., SamplerTable]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpmpp_2m": dpmpp_2m,
}


def sampler_table(name: str, schedule: Schedule, steps: int, **options) -> SamplerTable:
    """The table of a sampler by name. ValueError with the nearest name for an unknown one."""
    return SAMPLERS[check_name("sampler", name, SAMPLERS)](schedule, steps, **options)


def pad(table: SamplerTable, length: int | None = None) -> SamplerTable:
    """Appends inactive rows, so that tables of many step counts share one compiled program.

    Args:
      length: rows of the result; default the smallest of `BUCKETS` that fits.

    Raises:
      ValueError: the table has more than `length` rows.
    """
    steps = len(table.timestep)
    if length is None:
        length = bucket(steps)
    if length < steps:
        raise ValueError(f"length={length}: the table has {steps} rows")
    return SamplerTable(*(np.pad(column, (0, length - steps)) for column in table))


def bucket(steps: int) -> int:
    """The smallest of `BUCKETS` that holds `steps` rows."""
    return next(size for size in BUCKETS if size >= _check_steps(steps))


def spaced_timesteps(
    steps: int, spacing: str, *, last: int = NUM_TIMESTEPS, leave_out_clean_end: bool = False
) -> np.ndarray:
    """Decreasing timesteps in 0..last-1, int64 [steps].

    "leading": multiples of last // steps, plus 1; "trailing": rounded multiples of last / steps,
    counted from the noisy end; "linspace": both ends included (one step is the noisy end, where
    diffusers takes the clean one). `leave_out_clean_end` takes one point more and drops the
    cleanest, for solvers whose grid counts the end of the last step.
    """
    _check_steps(steps)
    check_name("spacing", spacing, SPACINGS)
    dropped = int(leave_out_clean_end)
    points = steps + dropped
    if spacing == "leading":
        t = np.arange(points) * max(last // points, 1)
        t = t + min(_LEADING_OFFSET, last - 1 - t[-1])  # 1000 steps leave no room for the offset
    elif spacing == "trailing":
        # arange's rounding decides ties (937.5), so it is taken as is; it may overshoot by one.
        t = np.round(np.arange(last, 0, -last / steps))[:steps][::-1] - 1
        dropped = 0
    else:
        t = np.round(np.linspace(0, last - 1, points)) if points > 1 else np.array([last - 1])
    return np.maximum(t, 0)[dropped:][::-1].astype(np.int64)


def _check_steps(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"steps={steps}: a sampler needs at least 1 step")
    if steps > NUM_TIMESTEPS:
        raise ValueError(
            f"steps={steps}: a sampler takes at most {NUM_TIMESTEPS} steps, "
            "the number of timesteps of the schedule"
        )
    return steps


def _levels(
    schedule: Schedule, timestep: np.ndarray, final_sigma: str
) -> tuple[np.ndarray, np.ndarray]:
    """alpha_bar at the start and at the end of every step, float64 [N] each."""
    check_name("final_sigma", final_sigma, FINAL_SIGMAS)
    now = schedule.alpha_bar[timestep]
    final = 1.0 if final_sigma == "zero" else schedule.alpha_bar[0]
    return now, np.append(now[1:], final)


def _dpmpp_2m_rows(
    now: np.ndarray, then: np.ndarray, *, final_first_order: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of x, x0 and x0_prev for steps between levels of alpha_bar."""
    a = np.sqrt((1 - then) / (1 - now))
    first = np.sqrt(then) - a * np.sqrt(now)  # alpha_t (1 - exp(-h)), finite where h is not
    with np.errstate(divide="ignore", invalid="ignore"):
        h = (np.log(then / (1 - then)) - np.log(now / (1 - now))) / 2
        ratio = h[1:] / h[:-1]
    ratio = np.append(0.0, ratio)
    # First order: no step before, one over an infinite interval, or one that stood still because
    # two timesteps rounded to the same.
    ratio[~np.isfinite(ratio)] = 0.0
    if final_first_order:
        ratio[-1] = 0.0
    return a, first * (1 + ratio / 2), -first * ratio / 2


def _table(timestep, a, b, c, d) -> SamplerTable:
    return SamplerTable(timestep.astype(np.int32), a, b, c, d, np.ones(len(timestep), bool))
