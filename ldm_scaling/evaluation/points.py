"""The points of a study: what is varied, in which order, and the name of each measurement."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ldm_scaling.diffusion import SamplerTable, Schedule, check_guidance_rate, sampler_table
from ldm_scaling.evaluation.model import ModelCard, expand_names
from ldm_scaling.evaluation.preset_protocol import PresetProtocol
from ldm_scaling.evaluation.protocol import Protocol
from ldm_scaling.records import Record
from ldm_scaling.unet import MICRO_REFERENCE_WIDTH, REFERENCE_WIDTH, unet_config
from ldm_scaling.unet.config import UNetConfig
from ldm_scaling.unet.flops import forward_flops, normalized_cost, parameter_count


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting: which model, and how it is sampled.

    Attributes:
      card: the model.
      sampler, steps, spacing, eta: see `ldm_scaling.diffusion.solvers`; eta is DDIM's.
      guidance: rate; 1 is none.
      seed: of initial and step noise.
    """

    card: ModelCard
    sampler: str
    steps: int
    spacing: str
    eta: float
    guidance: float
    seed: int

    def __post_init__(self):
        check_guidance_rate(self.guidance)
        self.table(Schedule.zero_terminal_snr())  # raises for what no solver takes
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta={self.eta}: {self.sampler} has none; only ddim does")

    def table(self, schedule: Schedule) -> SamplerTable:
        """The `SamplerTable` of this point."""
        options = {"eta": self.eta} if self.sampler == "ddim" else {}
        return sampler_table(self.sampler, schedule, self.steps, spacing=self.spacing, **options)

    def record(self, num_samples: int, protocol: Mapping[str, Any]) -> Record:
        """The record of this point, still without metrics and costs; its hash is final.

        `protocol` is `Protocol.describe`'s.
        """
        return Record(
            kind="samples",
            point={
                "family": self.card.family,
                "width": self.card.width,
                "training_steps": self.card.training_steps,
                "sampler": self.sampler,
                "steps": self.steps,
                "spacing": self.spacing,
                "eta": self.eta,
                "guidance": self.guidance,
            },
            seed=self.seed,
            num_samples=num_samples,
            metrics={},
            weights_hash=self.card.weights_hash,
            protocol=protocol,
        )

    def costs(self, unet: UNetConfig, tokens: int) -> dict[str, float]:
        """What an image costs at this point; see `ldm_scaling.records.Record`.

        A micro model's cost is relative to the same network at the family's largest width, any
        other's to the paper's c = 320 (arXiv:2404.01367, Table 1).
        """
        if self.card.family == "micro":
            ratio = MICRO_REFERENCE_WIDTH / unet.block_out_channels[0]
            channels = tuple(round(ratio * c) for c in unet.block_out_channels)
            reference = dataclasses.replace(unet, block_out_channels=channels)
        else:
            reference = unet_config(REFERENCE_WIDTH)
        normalized = normalized_cost(unet, reference, tokens)
        count = self.steps * passes(self.guidance)
        costs = {
            "parameters": float(parameter_count(unet)),
            "flops_per_evaluation": float(forward_flops(unet, tokens)),
            "normalized_cost": normalized,
            "evaluations": float(count),
            "sampling_cost": normalized * self.steps,
            "sampling_cost_guided": normalized * count,
        }
        if self.card.training_flops is not None:
            costs["training_flops"] = float(self.card.training_flops)
        return costs


def passes(guidance: float) -> int:
    """Evaluations of the network a step: guidance takes a second one."""
    return 1 if guidance == 1 else 2


def study_points(config: ConfigDict) -> list[Point]:
    """All points of a study in the order they are measured: model by model, seeds last.

    Args:
      config: `models`, names, folders or patterns of folders; `grids`, sampler -> `steps`,
        `guidance` and optionally `spacing` (default: the one of the model's scheduler config) and
        `eta`; `seeds`.

    Raises:
      ValueError: an unknown sampler (names the nearest) or spacing, steps outside 1..1000, a
        guidance rate that is not finite, no point at all, one that is listed twice.
      FileNotFoundError: a model that is not there (names the nearest), or a
        pattern that matches none.
    """
    found = [
        Point(card, **{**setting, "spacing": setting["spacing"] or card.spacing})
        for card in map(ModelCard.read, expand_names(config.models))
        for setting in study_settings(config)
    ]
    if not found:
        raise ValueError("models, grids, seeds: one of them is empty; a study needs a point")
    return found


def study_settings(config: ConfigDict) -> list[dict[str, Any]]:
    """What every model of a study is sampled with: fields of `Point`, `spacing` None if unsaid."""
    return [
        {
            "sampler": sampler,
            "steps": steps,
            "spacing": grid.get("spacing"),
            "eta": float(grid.get("eta", 0.0)),
            "guidance": float(guidance),
            "seed": seed,
        }
        for sampler, grid in config.grids.items()
        for steps in grid.steps
        for guidance in grid.guidance
        for seed in config.seeds
    ]


def study_protocol(config: ConfigDict) -> Protocol | PresetProtocol:
    """The `protocol` of a study: by a preset where it names one. ValueError for what cannot be."""
    fields = config.protocol.to_dict()
    if "preset" in fields:
        return PresetProtocol(**fields)
    return Protocol(**{**fields, "prompts": tuple(fields["prompts"])})
