"""Whole trajectories of diffusers' schedulers on a fixed model function.

The model function and the step noise are closed formulas, which the test evaluates too (in JAX), so
that nothing but the schedulers' arithmetic is compared.

Where diffusers' own choice is a defect, its arithmetic is kept and its input mended:
- DDIM takes t - 1000 // steps for the previous timestep, which is not the next of its sequence
  when steps does not divide 1000 or spacing is linspace (diffusers#9261). It is told the true gap;
  wherever its own gap is the true one, the maker asserts that this changes nothing.
- DPM-Solver++ with clipped lambda and trailing spacing keeps a stride of 1000 / steps in the
  shortened range, which gives fewer steps than asked for when there are many: not compared.
- One linspace step of DDIM and DDPM is [0], the clean end. It is given [999].
"""

from pathlib import Path

import numpy as np

STEPS = (1, 2, 3, 4, 5, 10, 20, 48, 50, 250)
SPACINGS = ("leading", "trailing", "linspace")
PREDICTION_TYPES = ("epsilon", "v_prediction")
SHAPE = (1, 2, 4, 4)
SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = {
    "scaled_linear": SCALED_LINEAR,
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero_terminal_snr": {**SCALED_LINEAR, "rescale_betas_zero_snr": True},
}


def initial(shape=SHAPE):
    return np.sin(1.7 * np.arange(np.prod(shape)) + 0.3).reshape(shape).astype(np.float32) * 1.4


def step_noise(index, shape=SHAPE):
    phase = 12.9898 * np.arange(np.prod(shape)) + 78.233 * (index + 1)
    return (1.4 * np.sin(phase)).reshape(shape).astype(np.float32)


def model(x, t, xp=np):
    """Raw output: smooth, nonlinear, mixes neighbours, depends on t."""
    wave = 0.3 * xp.sin(t / 150.0)
    return 0.8 * xp.tanh(x + wave) + 0.15 * xp.sin(2.0 * xp.roll(x, 1, -1)) - 0.1 * wave * x


class _Gap(int):
    """Integer whose `1000 // gap` is a given gap between timesteps."""

    def __rfloordiv__(self, _):
        return int(self)


def _trajectory(scheduler, timesteps, before_step=lambda index: None, **step_options):
    import torch

    x = torch.from_numpy(initial())
    states = []
    for index, t in enumerate(timesteps):
        before_step(index)
        output = torch.from_numpy(model(x.numpy(), float(t)).astype(np.float32))
        options = {name: value(index) for name, value in step_options.items()}
        x = scheduler.step(output, t, x, return_dict=False, **options)[0]
        states.append(x.numpy())
    return states


def _ddim(steps, spacing, prediction_type, schedule, eta=0.0):
    import torch
    from diffusers import DDIMScheduler

    def run(mend):
        scheduler = DDIMScheduler(
            **schedule,
            prediction_type=prediction_type,
            timestep_spacing=spacing,
            steps_offset=1,
            set_alpha_to_one=spacing != "leading",
            clip_sample=False,
        )
        scheduler.set_timesteps(steps)
        if spacing == "linspace" and steps == 1:
            scheduler.timesteps = torch.tensor([999])
        t = scheduler.timesteps.tolist()
        gaps = [now - then for now, then in zip(t, [*t[1:], -1], strict=True)]
        if mend:

            def tell_gap(index):
                # The last gap stays diffusers': it only has to lead below 0, or to 0 itself.
                last = index == steps - 1 and spacing == "leading"
                scheduler.num_inference_steps = steps if last else _Gap(gaps[index])

        else:

            def tell_gap(index):
                scheduler.num_inference_steps = steps

        states = _trajectory(
            scheduler,
            scheduler.timesteps,
            tell_gap,
            eta=lambda index: eta,
            variance_noise=lambda index: torch.from_numpy(step_noise(index)) if eta else None,
        )
        own_gap_is_true = all(gap == 1000 // steps for gap in gaps[:-1])
        return t, states, own_gap_is_true and (spacing == "leading" or gaps[-1] <= 1000 // steps)

    t, states, sound = run(mend=True)
    if sound:
        np.testing.assert_array_equal(states, run(mend=False)[1])
    elif spacing == "leading":
        raise AssertionError("diffusers' gap is sound for leading spacing")
    return t, states


def _ddpm(steps, spacing, prediction_type, schedule):
    import torch
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    scheduler = DDPMScheduler(
        **schedule,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        steps_offset=1,
        clip_sample=False,
    )
    if spacing == "linspace" and steps == 1:
        scheduler.set_timesteps(timesteps=[999])
    else:
        scheduler.set_timesteps(steps)
    current = [0]
    drawn, scheduling_ddpm.randn_tensor = (
        scheduling_ddpm.randn_tensor,
        lambda *_, **__: torch.from_numpy(step_noise(current[0])),
    )
    try:
        states = _trajectory(
            scheduler, scheduler.timesteps, lambda index: current.__setitem__(0, index)
        )
    finally:
        scheduling_ddpm.randn_tensor = drawn
    return scheduler.timesteps.tolist(), states


def _dpmpp_2m(steps, spacing, prediction_type, schedule, **options):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        **schedule,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        steps_offset=1,
        **options,
    )
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist(), _trajectory(scheduler, scheduler.timesteps)


def _add(table, name, result):
    """Keeps the timesteps and the states after the first, the middle and the last step."""
    t, states = result
    assert np.all(np.isfinite(states)), name
    table[f"{name}/timesteps"] = np.asarray(t, np.int16)
    table[f"{name}/states"] = np.stack([states[0], states[len(t) // 2], states[-1]])


def _rescaled_guidance():
    """diffusers' guidance with rate 7.5 and phi 0.7 on two outputs; the three stacked."""
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    unconditional, conditional = (torch.from_numpy(step_noise(i, (2, 2, 4, 4))) for i in (0, 1))
    conditional = 0.9 * unconditional + 0.3 * conditional
    guided = unconditional + 7.5 * (conditional - unconditional)
    guided = rescale_noise_cfg(guided, conditional, guidance_rescale=0.7)
    return torch.stack([unconditional, conditional, guided]).numpy()


def make(out: Path) -> None:
    from diffusers import DDIMScheduler

    goldens: dict[str, np.ndarray] = {"rescaled_guidance": _rescaled_guidance()}
    for name, schedule in SCHEDULES.items():
        goldens[f"alpha_bar/{name}"] = DDIMScheduler(**schedule).alphas_cumprod.numpy()
    for spacing in SPACINGS:
        for steps in STEPS:
            for kind in PREDICTION_TYPES:
                case = f"{spacing}/{steps}/{kind}/scaled_linear"
                point = (steps, spacing, kind, SCALED_LINEAR)
                _add(goldens, f"ddim/{case}", _ddim(*point))
                _add(goldens, f"ddpm/{case}", _ddpm(*point))
                _add(goldens, f"dpmpp_2m/{case}", _dpmpp_2m(*point))
    for steps in (4, 20, 48):
        point = (steps, "leading", "epsilon", SCALED_LINEAR)
        _add(goldens, f"ddim_eta_half/leading/{steps}/epsilon/scaled_linear", _ddim(*point, 0.5))
        point = (steps, "linspace", "epsilon", SCALED_LINEAR)
        result = _dpmpp_2m(*point, final_sigmas_type="sigma_min")
        _add(goldens, f"dpmpp_2m_sigma_min/linspace/{steps}/epsilon/scaled_linear", result)
        for spacing in ("leading", "linspace"):
            point = (steps, spacing, "v_prediction", SCHEDULES["cosine"])
            name = f"dpmpp_2m/{spacing}/{steps}/v_prediction/cosine"
            _add(goldens, name, _dpmpp_2m(*point, lambda_min_clipped=-5.1))
        point = (steps, "trailing", "v_prediction", SCHEDULES["zero_terminal_snr"])
        _add(goldens, f"ddim/trailing/{steps}/v_prediction/zero_terminal_snr", _ddim(*point))
        _add(goldens, f"ddpm/trailing/{steps}/v_prediction/zero_terminal_snr", _ddpm(*point))
    np.savez_compressed(out / "diffusion_trajectories.npz", **goldens)
