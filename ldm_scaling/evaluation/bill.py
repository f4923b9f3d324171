"""What a study costs, told before it is run: TPU-hours of each point, and which a budget pays.

Nothing is loaded or drawn, and the models need not be trained yet. An image takes two evaluations
of the UNet a step where it is guided, and the autoencoder's decoder once. By the compile records,
an evaluation takes a third of what a training step takes for an image, which sampling undercuts (by
18 % at c = 64), and the decoder its FLOPs over what sampling makes of a chip. Text encoders and the
networks that score are left out: a CLIP ViT-L/14 and an Inception are less than a tenth of a
decoder.
"""

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ldm_scaling.aot import CHIPS, chip_of
from ldm_scaling.encoders import Autoencoder, AutoencoderConfig
from ldm_scaling.evaluation.points import passes, study_settings
from ldm_scaling.naming import check_name
from ldm_scaling.records import Record, find_records, read_records
from ldm_scaling.unet.flops import count_flops

TRAINING_STEPS = 500_000  # of 2048 images (arXiv:2404.01367, section 3)


@dataclasses.dataclass(frozen=True)
class Item:
    """One point on the bill.

    Attributes:
      index: of the point in the study, as `launch/sweep.py --index` takes it.
      width, sampler, steps, guidance: its setting.
      hours: of one chip, drawing all its images.
    """

    index: int
    width: int
    sampler: str
    steps: int
    guidance: float
    hours: float


def bill(config: ConfigDict, chip: str = "v5p") -> list[Item]:
    """All points of a study whose config names the `widths` of its `models`, in their order.

    Raises:
      ValueError: no widths, or not as many as models; an unknown chip, or one for which there is no
        compile record of a width.
    """
    models, widths = config.models, config.get("widths", ())
    if not widths or len(widths) != len(models):
        raise ValueError(
            f"widths={tuple(widths)}: a bill needs one of the paper's widths for each of "
            f"{len(models)} models, as in configs/sweep.py:paper"
        )
    check_name("chip", chip, CHIPS)
    decoder = decoder_flops() / decoder_utilisation() / CHIPS[chip].flops
    items: list[Item] = []
    for width in widths:
        evaluation = _training(width, chip).image / 3  # the backward pass costs twice the forward
        for setting in study_settings(config):
            count = setting["steps"] * passes(setting["guidance"])
            hours = config.protocol.num_samples * (count * evaluation + decoder) / 3600
            shown = {name: setting[name] for name in ("sampler", "steps", "guidance")}
            items.append(Item(len(items), width, **shown, hours=hours))
    return items


def affordable(items: Iterable[Item], budget: float) -> list[Item]:
    """The cheapest points that `budget` chip-hours pay together, in the order of the study."""
    kept, spent = [], 0.0
    for item in sorted(items, key=lambda item: (item.hours, item.index)):
        spent += item.hours
        if spent > budget:
            break
        kept.append(item)
    return sorted(kept, key=lambda item: item.index)


def bill_table(items: Sequence[Item], chip: str) -> str:
    """Chip-hours by width and sampler, and of training each width as the paper did."""
    samplers = list(dict.fromkeys(item.sampler for item in items))
    hours: dict[tuple[int, str], float] = defaultdict(float)
    for item in items:
        hours[item.width, item.sampler] += item.hours
    header = ("width", "points", *samplers, "all", "training")
    rows = []
    for width in dict.fromkeys(item.width for item in items):
        each = [hours[width, sampler] for sampler in samplers]
        points = sum(item.width == width for item in items)
        rows.append((width, points, *each, sum(each), training_hours(width, chip)))
    total = [sum(column) for column in zip(*rows, strict=True)][1:] if rows else []
    lines = ["  ".join(f"{name:>9}" for name in header)]
    for name, *numbers in [*rows, ("all", *total)]:
        lines.append("  ".join([f"{name:>9}", *(f"{number:>9,.0f}" for number in numbers)]))
    return "\n".join(lines)


def training_hours(width: int, chip: str) -> float:
    """Chip-hours of the paper's 500,000 steps of 2048 images, by the compile record."""
    return TRAINING_STEPS * _training(width, chip).step / 3600


class _Training(NamedTuple):
    """Chip-seconds of a training step, and of one of its images."""

    step: float
    image: float


@functools.cache
def _training(width: int, chip: str) -> _Training:
    """What the compile record of a training step says."""
    there: dict[int, Record] = {}
    for record in read_records(find_records("pods")):
        point = record.point
        if point["program"] == "train" and point["topology"].partition(":")[0] == chip:
            there[point["width"]] = record
    if width not in there:
        raise ValueError(f"chip={chip!r}: no compile record of width {width}, only {sorted(there)}")
    found = there[width]
    step = found.costs["seconds"] * found.point["chips"]
    return _Training(step, step / found.point["batch_size"])


@functools.cache
def decoder_utilisation() -> float:
    """What the decoder makes of a v5p chip, by the compile records of sampling c = 64.

    Two records that differ in steps alone tell the evaluations from what comes once an image. Other
    chips are taken to be used as well.
    """
    few, many = sorted(read_records(find_records("sampling")), key=lambda r: r.point["steps"])
    images = few.point["batch_size"] / few.point["chips"]
    steps = many.point["steps"] - few.point["steps"]
    each = (many.costs["seconds"] - few.costs["seconds"]) / steps
    once = (few.costs["seconds"] - few.point["steps"] * each) / images
    return decoder_flops() / once / chip_of(few.point["topology"]).flops


@functools.cache
def decoder_flops() -> int:
    """FLOPs of decoding one image of 512 pixels, 2 x multiply-adds."""
    module: Any = Autoencoder(AutoencoderConfig())
    image = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), image)
    latents = jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32)
    return count_flops(lambda p, x: module.apply(p, x, method="decode"), params, latents)


def as_ranges(indices: Iterable[int]) -> str:
    """ "0-2,5" of 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def from_ranges(text: str) -> list[int]:
    """0, 1, 2, 5 of "0-2,5". Raises ValueError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        matched = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        numbers = range(int(matched[1]), int(matched[2] or matched[1]) + 1) if matched else ()
        if not numbers:
            raise ValueError(f"index={text!r}: give numbers and ranges, such as 0-35,40")
        found += numbers
    return found
