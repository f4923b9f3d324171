"""From records to a study: comparable points with a value and its uncertainty.

A *point* is one setting (width, training steps, sampler, steps, guidance, ...) with the metric
averaged over seeds. Its standard error comes from the recorded intervals and, where there are
several seeds, from their spread, whichever is larger: a bootstrap interval knows the finite number
of images, the spread over seeds also knows what the interval forgot.
"""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist, median
from typing import Any

import numpy as np

from ldm_scaling.analysis.ranking import MetricInfo, metric_info, ranking_metric
from ldm_scaling.records import Record


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of the study and its metric, averaged over seeds.

    Attributes:
      width, training_steps, sampler, steps, guidance: the setting's main coordinates.
      setting: all coordinates as recorded.
      value: mean of the metric over seeds; sigma: its standard error, NaN where nothing is known
        of it (no interval and one seed).
      seed_values: seed -> value.
      costs: as in the records (see `ldm_scaling.records.Record`).
      records: the records behind it, ordered by seed.
    """

    width: int
    training_steps: int
    sampler: str
    steps: int
    guidance: float
    setting: Mapping[str, Any]
    value: float
    sigma: float
    seed_values: Mapping[int, float]
    num_samples: int
    costs: Mapping[str, float]
    records: tuple[Record, ...]

    def mean_of(self, metric: str) -> float:
        """Mean over seeds of another metric; NaN where no record has it."""
        values = [float(r.metrics[metric].value) for r in self.records if metric in r.metrics]
        return sum(values) / len(values) if values else math.nan


def standard_error(values: Sequence[float], sigmas: Sequence[float]) -> float:
    """Standard error of the mean of one value a seed; NaN where nothing is known.

    Args:
      values: the metric of each seed.
      sigmas: each one's standard deviation from its interval, NaN where it has none.
    """
    known = [s for s in sigmas if math.isfinite(s)]
    candidates = []
    if known:
        candidates.append(math.sqrt(sum(s * s for s in known) / len(known)))
    if len(values) > 1:
        candidates.append(float(np.std(values, ddof=1)))
    return max(candidates) / math.sqrt(len(values)) if candidates else math.nan


def _interval_sigma(record: Record, metric: str) -> float:
    m = record.metrics[metric]
    if m.low is None or m.high is None or not math.isfinite(m.high - m.low):
        return math.nan
    return float(m.high - m.low) / (2 * NormalDist().inv_cdf((1 + m.level) / 2))


def _point(records: Sequence[Record], metric: str) -> Point:
    records = sorted(records, key=lambda r: (r.seed, r.hash))
    values = [float(r.metrics[metric].value) for r in records]
    first = records[0]
    at = first.point
    return Point(
        width=int(at["width"]),
        training_steps=int(at.get("training_steps", at.get("step", 0))),  # "step" during training
        sampler=str(at.get("sampler", "")),
        steps=int(at.get("steps", 0)),
        guidance=float(at.get("guidance", 1.0)),
        setting=dict(at),
        value=float(np.mean(values)),
        sigma=standard_error(values, [_interval_sigma(r, metric) for r in records]),
        seed_values={r.seed: v for r, v in zip(records, values, strict=True)},
        num_samples=first.num_samples,
        costs={name: float(cost) for name, cost in first.costs.items()},
        records=tuple(records),
    )


def _protocol(record: Record) -> str:
    shown_only = {"strip_captions"}  # decides what is shown, not what is measured
    rest = {k: v for k, v in record.protocol.items() if k not in shown_only}
    return json.dumps([record.num_samples, rest], sort_keys=True, default=str)


def comparable_points(
    records: Iterable[Record], metric: str, kind: str = "samples"
) -> tuple[list[Point], list[str]]:
    """Points that share the number of samples and the protocol, and notes on what was left out.

    Fréchet and kernel distances depend on the number of images and on the reference, so only the
    largest group of records with the same of both is ranked.
    """
    notes: list[str] = []
    having = [r for r in records if r.kind == kind and metric in r.metrics]
    finite = [r for r in having if math.isfinite(float(r.metrics[metric].value))]
    if len(finite) < len(having):
        notes.append(
            f"{len(having) - len(finite)} of {len(having)} records have no finite {metric} "
            "and are left out."
        )
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in finite:
        groups[_protocol(record)].append(record)
    if not groups:
        return [], notes
    chosen = max(sorted(groups), key=lambda key: len(groups[key]))
    if len(groups) > 1:
        others = len(finite) - len(groups[chosen])
        notes.append(
            f"{others} records used another protocol or number of images "
            f"(not {groups[chosen][0].num_samples}) and are left out: not comparable."
        )
    settings: dict[str, list[Record]] = defaultdict(list)
    for record in groups[chosen]:
        settings[json.dumps(record.point, sort_keys=True)].append(record)
    return [_point(settings[key], metric) for key in sorted(settings)], notes


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything the analyses and figures read.

    Attributes:
      metric: the name of the ranking metric; info: its label and direction.
      axis: the cost that is compared, a key of `Point.costs`.
      family: the family of models all points belong to.
      points: comparable points of each width's longest training, ordered by setting.
      trained: comparable points of every length of training (includes `points`).
      notes: what was left out, or assumed, in words.
      records: all records given, in canonical order.
    """

    metric: str
    info: MetricInfo
    axis: str
    family: str
    points: tuple[Point, ...]
    trained: tuple[Point, ...]
    notes: tuple[str, ...]
    records: tuple[Record, ...]

    @classmethod
    def from_records(
        cls,
        records: Iterable[Record],
        *,
        metric: str | None = None,
        axis: str = "sampling_cost",
        family: str | None = None,
        preset: str | None = None,
    ) -> "Study":
        """Sorts, groups and checks records.

        Args:
          records: of samples, and whatever was measured beside them.
          metric: that ranks; default the first of `ranking.METRICS` that the samples have.
          axis: the cost that is compared.
          family: of the models; needed where there are several.
          preset: of the protocol, "" for none; needed where records of several have the metric.

        Raises:
          ValueError: no records, an unknown metric, none with this metric, several families or
            presets and none chosen, or a point without width, sampler, steps or the cost asked for.
        """
        unique = {record.hash: record for record in records}
        records = tuple(unique[key] for key in sorted(unique))
        metric = _require_metric(records, metric)
        info = metric_info(metric)
        families = sorted({str(r.point.get("family", "")) for r in records if r.kind == "samples"})
        if family is None:
            if len(families) > 1:
                raise ValueError(f"family=None: records of {families} are mixed; choose one")
            family = families[0]
        elif family not in families:
            raise ValueError(f"family={family!r}: the records hold {families}")
        mine = [r for r in records if r.point.get("family", "") == family]
        trained, notes = comparable_points(_under(mine, metric, preset), metric)
        if not trained:
            raise ValueError(
                f"metric={metric!r}: no record of family {family!r} has a finite value"
            )
        for point in trained:
            _require_coordinates(point, axis)
        trained, more = _fill_sigma(trained)
        longest: dict[int, int] = {}
        for point in trained:
            longest[point.width] = max(longest.get(point.width, 0), point.training_steps)
        points = [p for p in trained if p.training_steps == longest[p.width]]
        return cls(
            metric=metric,
            info=info,
            axis=axis,
            family=family,
            points=tuple(points),
            trained=tuple(trained),
            notes=(*notes, *more),
            records=records,
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the points, ascending."""
        return tuple(sorted({p.width for p in self.points}))

    @property
    def samplers(self) -> tuple[str, ...]:
        """Samplers of the points, by name."""
        return tuple(sorted({p.sampler for p in self.points}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the points, ascending."""
        return tuple(sorted({s for p in self.points for s in p.seed_values}))

    @property
    def real_images(self) -> Record | None:
        """What real held-out images score by the same protocol, where it was measured."""
        for record in self.records:
            if record.kind == "real_images" and self.metric in record.metrics:
                return record
        return None

    @property
    def has_uncertainty(self) -> bool:
        """Whether any point has a standard error, so that certainty can be spoken of."""
        return any(p.sigma > 0 for p in self.points)


def _require_metric(records: Sequence[Record], metric: str | None) -> str:
    """The metric that ranks, which some sample has."""
    if not records:
        raise ValueError("records: none given; an analysis needs at least one sampled point")
    if not any(r.kind == "samples" for r in records):
        kinds = sorted({r.kind for r in records})
        raise ValueError(f"records: none of kind 'samples' among kinds {kinds}; run a sweep first")
    known = sorted({m for r in records if r.kind == "samples" for m in r.metrics})
    if metric is None:
        return ranking_metric(known)
    metric_info(metric)  # raises for an unknown one
    if metric not in known:
        raise ValueError(f"metric={metric!r}: not in the records, which have {', '.join(known)}")
    return metric


def _under(records: Sequence[Record], metric: str, preset: str | None) -> list[Record]:
    """The records of one preset: numbers under different ones do not compare."""
    having = [r for r in records if r.kind == "samples" and metric in r.metrics]
    there = sorted({str(r.protocol.get("preset", "")) for r in having})
    if preset is None and len(there) > 1:
        raise ValueError(
            f"preset=None: {metric} was measured under the presets {there} ('' is none), which do "
            "not compare; choose one"
        )
    if preset is not None and preset not in there:
        raise ValueError(f"preset={preset!r}: {metric} was measured under {there}")
    return [r for r in having if preset in (None, r.protocol.get("preset", ""))]


def _require_coordinates(point: Point, axis: str) -> None:
    absent = [k for k in ("width", "sampler", "steps") if k not in point.setting]
    if absent:
        raise ValueError(f"record {point.records[0].hash}: point lacks {', '.join(absent)}")
    if not point.costs.get(axis, 0.0) > 0:
        raise ValueError(f"record {point.records[0].hash}: costs[{axis!r}] is missing or not > 0")


def _fill_sigma(points: Sequence[Point]) -> tuple[list[Point], list[str]]:
    """Gives points of unknown uncertainty the median of the known ones, and says so."""
    known = [p.sigma for p in points if math.isfinite(p.sigma)]
    unknown = len(points) - len(known)
    if not unknown:
        return list(points), []
    if not known:
        return list(points), ["No point has an interval or a second seed: certainty is unknown."]
    typical = median(known)
    filled = [
        p if math.isfinite(p.sigma) else dataclasses.replace(p, sigma=typical) for p in points
    ]
    return filled, [f"{unknown} points have no interval; the median standard error stands in."]
