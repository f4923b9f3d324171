"""Noise schedules: alpha, sigma and log-SNR of a timestep, the sole truth about noise levels.

x_t = alpha(t) x_0 + sigma(t) eps, with alpha^2 + sigma^2 = 1 (variance preserving) and
alpha_bar = alpha^2 the cumulative product of 1 - beta (arXiv:2006.11239, section 2).
"""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ldm_scaling.naming import check_name

NUM_TIMESTEPS = 1000
SCHEDULES = ("scaled_linear", "linear", "cosine", "zero_terminal_snr")
_BETA_SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2")
_MAX_COSINE_BETA = 0.999  # arXiv:2102.09672, section 3.2: no singularity at the end


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A discrete variance-preserving noise schedule of 1000 timesteps, 0 the cleanest.

    The fields are those of diffusers' scheduler configs; everything else follows from them, in
    float64 on the host. Being four scalars, a schedule compares and hashes by value, so functions
    may close over it or take it as a static argument.

    Attributes:
      beta_schedule: "scaled_linear" (linear in sqrt(beta), as Stable Diffusion), "linear"
        (arXiv:2006.11239) or "squaredcos_cap_v2" (cosine, arXiv:2102.09672 eq. 17; it has no use
        for `beta_start` and `beta_end`).
      beta_start, beta_end: first and last beta, 0 < beta_start <= beta_end < 1.
      rescale_betas_zero_snr: shift and scale alpha so that the last one is exactly 0 and the
        first one stays (arXiv:2305.08891, algorithm 1).
    """

    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    rescale_betas_zero_snr: bool = False

    def __post_init__(self):
        check_name("beta_schedule", self.beta_schedule, _BETA_SCHEDULES)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start={self.beta_start}, beta_end={self.beta_end}: "
                "need 0 < beta_start <= beta_end < 1"
            )

    @classmethod
    def scaled_linear(cls, beta_start: float = 0.00085, beta_end: float = 0.012) -> "Schedule":
        """Stable Diffusion's schedule, and the paper's."""
        return cls("scaled_linear", beta_start, beta_end)

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02) -> "Schedule":
        """DDPM's schedule (arXiv:2006.11239, section 4)."""
        return cls("linear", beta_start, beta_end)

    @classmethod
    def cosine(cls) -> "Schedule":
        """Improved DDPM's schedule (arXiv:2102.09672, eq. 17)."""
        return cls("squaredcos_cap_v2", 1e-4, 0.02)

    @classmethod
    def zero_terminal_snr(cls, base: "Schedule | None" = None) -> "Schedule":
        """`base` (default scaled_linear) rescaled to end in pure noise (arXiv:2305.08891).

        Pair it with "v_prediction" or "sample" and with trailing spacing: at the last timestep
        eps tells nothing about x_0.
        """
        return dataclasses.replace(base or cls.scaled_linear(), rescale_betas_zero_snr=True)

    @classmethod
    def from_name(cls, name: str) -> "Schedule":
        """The schedule of one of `SCHEDULES`, with its default betas. ValueError otherwise."""
        return getattr(cls, check_name("schedule", name, SCHEDULES))()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Schedule":
        """Reads the fields of a diffusers `scheduler_config.json`; ignores those of samplers.

        Missing fields take diffusers' defaults. Raises ValueError for schedules that cannot be
        expressed here (other than 1000 timesteps, trained betas, an unknown beta_schedule).
        """
        timesteps = config.get("num_train_timesteps", NUM_TIMESTEPS)
        if timesteps != NUM_TIMESTEPS:
            raise ValueError(f"num_train_timesteps={timesteps}: only {NUM_TIMESTEPS} is supported")
        if config.get("trained_betas") is not None:
            raise ValueError("trained_betas: only schedules with a formula are supported")
        return cls(
            beta_schedule=config.get("beta_schedule", "linear"),
            beta_start=config.get("beta_start", 1e-4),
            beta_end=config.get("beta_end", 0.02),
            rescale_betas_zero_snr=bool(config.get("rescale_betas_zero_snr", False)),
        )

    def to_config(self) -> dict[str, Any]:
        """The fields for a diffusers `scheduler_config.json`; `from_config` reads them back."""
        return {"num_train_timesteps": NUM_TIMESTEPS, **dataclasses.asdict(self)}

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """alpha(t)^2 of all timesteps: float64 [1000], decreasing, read-only."""
        alpha_bar = np.cumprod(1 - _betas(self))
        if self.rescale_betas_zero_snr:
            alpha = np.sqrt(alpha_bar)
            alpha_bar = ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2
        alpha_bar.setflags(write=False)
        return alpha_bar

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether the last timestep has a signal-to-noise ratio of exactly zero."""
        return bool(self.alpha_bar[-1] == 0)

    def alpha(self, t: Int[Array, "*B"]) -> Float[Array, "*B"]:
        """Scale of the signal at timestep `t` in 0..999, float32."""
        return _lookup(np.sqrt(self.alpha_bar), t)

    def sigma(self, t: Int[Array, "*B"]) -> Float[Array, "*B"]:
        """Standard deviation of the noise at timestep `t` in 0..999, float32."""
        return _lookup(np.sqrt(1 - self.alpha_bar), t)

    def log_snr(self, t: Int[Array, "*B"]) -> Float[Array, "*B"]:
        """log(alpha^2 / sigma^2) at timestep `t` in 0..999, float32; -inf at zero SNR."""
        with np.errstate(divide="ignore"):
            return _lookup(np.log(self.alpha_bar) - np.log1p(-self.alpha_bar), t)


def _betas(schedule: Schedule) -> np.ndarray:
    start, end = schedule.beta_start, schedule.beta_end
    if schedule.beta_schedule == "linear":
        return np.linspace(start, end, NUM_TIMESTEPS)
    if schedule.beta_schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, NUM_TIMESTEPS) ** 2
    u = np.arange(NUM_TIMESTEPS + 1) / NUM_TIMESTEPS
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], _MAX_COSINE_BETA)


def _lookup(table: np.ndarray, t: Array) -> Array:
    """Exact entry of a float64 table, rounded once to float32, whatever the network computes in.

    Only integer timesteps exist in a discrete schedule. One out of range gives NaN instead of
    silently another noise level.
    """
    values = jnp.asarray(table.astype(np.float32))
    return values.at[t].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
