"""Records of a study whose truth is known. For tests only: none of this was measured."""

import math

import numpy as np

from ldm_scaling.records import Metric, Record

WIDTHS = (16, 24, 32, 48)
COSTS = {16: 0.13, 24: 0.27, 32: 0.46, 48: 1.0}
STEPS = (2, 4, 8, 16, 32, 50)
GUIDANCE = (1.5, 3.0, 5.0, 8.0)
CAPTIONS = (
    "red apple",
    "cat face",
    "flag: Japan",
    "woman firefighter",
    "sleeping face",
    "keycap: #",
    "person climbing",
    "stop sign",
)


def smaller_first(width, steps, guidance, sampler):
    """Small models win small budgets, large ones win in the end: the paper's claim, true."""
    order = {"ddim": 1.0, "ddpm": 0.8, "dpmpp_2m": 1.3}[sampler]
    best_rate = 3.0 + 12.0 / steps
    floor, discretisation = 1.5 * width**-0.3, 3.0 * steps**-order
    return floor + discretisation + 0.05 * math.log(guidance / best_rate) ** 2


def larger_first(width, steps, guidance, sampler):
    """Steps hardly matter and width does: the largest affordable model always wins."""
    return 40.0 / width + 0.02 / steps + 0.02 * math.log(guidance / 4.0) ** 2


def all_equal(width, steps, guidance, sampler):
    """Nothing matters but the guidance rate."""
    return 1.0 + 0.02 * math.log(guidance / 4.0) ** 2


def record(
    truth, width, steps, guidance=3.0, sampler="ddim", *, seed=0, sigma=0.01, rng=None,
    training_steps=20000, interval=True, num_samples=512, bonus=0.0,
):  # fmt: skip
    value = truth(width, steps, guidance, sampler) + bonus
    if rng is not None:
        value += sigma * rng.standard_normal()
    half = 1.96 * sigma if interval else 0.0
    evaluations = steps * (1 if guidance == 1.0 else 2)
    return Record(
        kind="samples",
        point={
            "family": "micro", "width": width, "training_steps": training_steps,
            "sampler": sampler, "steps": steps, "guidance": guidance, "spacing": "leading",
            "eta": 0.0,
        },
        seed=seed,
        num_samples=num_samples,
        metrics={
            "kd_lite0": _metric(value, half),
            "alignment_lite0_minilm": _metric(0.5 - 0.1 * value, 0.1 * half),
        },
        costs={
            "parameters": 8e6 * COSTS[width],
            "flops_per_evaluation": 4e8 * COSTS[width],
            "normalized_cost": COSTS[width],
            "evaluations": evaluations,
            "sampling_cost": COSTS[width] * steps,
            "sampling_cost_guided": COSTS[width] * evaluations,
            "training_flops": 3 * 4e8 * COSTS[width] * 128 * training_steps,
        },
        weights_hash="00",
        protocol={"features": "lite0", "strip_captions": list(CAPTIONS)},
        provenance={"wall_seconds": 1.0},
    )  # fmt: skip


def _metric(value, half):
    return Metric(value, value - half, value + half) if half else Metric(value)


def study_records(
    truth=smaller_first, *, sigma=0.01, seeds=(0,), draw=0, widths=WIDTHS, steps=STEPS,
    guidance=GUIDANCE, samplers=("ddim",), training=(), interval=True,
):  # fmt: skip
    """A whole sweep; `training` adds shorter trainings of quality that follows a power law."""
    rng = np.random.default_rng(draw)
    found = [
        record(truth, w, n, g, s, seed=seed, sigma=sigma, rng=rng, interval=interval)
        for w in widths for s in samplers for n in steps for g in guidance for seed in seeds
    ]  # fmt: skip
    for w in widths:
        for t in training:
            bonus = 40.0 * (COSTS[w] * t) ** -0.5 - 40.0 * (COSTS[w] * 20000) ** -0.5
            found.append(
                record(truth, w, steps[-1], guidance[1], samplers[0], training_steps=t,
                       sigma=sigma, rng=rng, bonus=bonus)
            )  # fmt: skip
    return found
