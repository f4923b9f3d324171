"""Records: every measurement is one JSON line, and the only bridge from runs to analysis.

A `Record` says what was measured (`point`), on what (`seed`, `num_samples`, `weights_hash`), the
result (`metrics`, each with an interval), what it cost (`costs`), and what made it (`provenance`).
Its `hash` names the measurement: everything that decides the result and nothing that does not, so
that a study can tell which points are done, and two runs of one study can be compared.
"""

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Metric:
    """One measured number and its interval.

    Attributes:
      value: the estimate.
      low, high: bounds of the interval at `level`; None where none was computed.
      level: coverage of the interval, e.g. 0.95.
    """

    value: float
    low: float | None = None
    high: float | None = None
    level: float = 0.95


@dataclasses.dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
      kind: what was measured: "samples" (quality of generated images), "training" (a logged value
        of a training run), "goodput" (where a run's wall time went, see `train.goodput`),
        "model" (parameters and FLOPs of a network), "reconstruction".
      point: where in the study it lies. For "samples": family, width, training_steps, sampler,
        steps, spacing, eta, guidance, and whatever else the sweep varied. JSON scalars only.
      seed: seed of the measurement (initial and step noise are derived from it).
      num_samples: number of images or examples behind the metrics.
      metrics: name -> Metric. Names say what they are ("fd_lite0", "kd_lite0", never "fid").
      costs: name -> number. For "samples": parameters, flops_per_evaluation (2 x MAC),
        normalized_cost, evaluations (network calls an image, guidance counted), sampling_cost
        (normalized_cost x steps, the paper's axis), sampling_cost_guided (x evaluations), and
        training_flops.
      weights_hash: short hash of the evaluated weights, "" where there are none.
      protocol: name and settings of the evaluation: reference, features, captions.
      provenance: versions, device, wall seconds, time of day. Never part of the hash.
    """

    kind: str
    point: Mapping[str, Any]
    seed: int
    num_samples: int
    metrics: Mapping[str, Metric]
    costs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    weights_hash: str = ""
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Sixteen hex digits that name the measurement (not its result)."""
        return measurement_hash(
            kind=self.kind,
            point=self.point,
            seed=self.seed,
            num_samples=self.num_samples,
            weights_hash=self.weights_hash,
            protocol=self.protocol,
        )

    def to_json(self) -> str:
        """One line of JSON; keys sorted, so equal records give equal lines."""
        return json.dumps({**dataclasses.asdict(self), "hash": self.hash}, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> "Record":
        """Reads `to_json`'s line. Raises ValueError where it is not a whole record."""
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError(f"a record is a JSON object, not {type(fields).__name__}")
        fields.pop("hash", None)
        try:
            metrics = {name: Metric(**metric) for name, metric in fields.pop("metrics").items()}
            return cls(metrics=metrics, **fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a record: {error}") from error


def metrics_table(record: Record) -> str:
    """The metrics of a record, one a line, with their intervals."""
    lines = []
    for name, metric in record.metrics.items():
        interval = "" if metric.low is None else f"   [{metric.low:.4f}, {metric.high:.4f}]"
        lines.append(f"{name:24s} {metric.value:12.4f}{interval}")
    return "\n".join(lines)


def measurement_hash(**identity: Any) -> str:
    """Sixteen hex digits of the canonical JSON of `identity`."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def append_record(path: str | os.PathLike[str], record: Record) -> None:
    """Appends one line and flushes it to disk; mends a torn last line of a killed run first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")  # the torn line stays behind, alone, and is skipped when read
        file.write(record.to_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Record]:
    """All records of one or several files, in a canonical order, the last of equal hashes kept.

    Lines that are not whole records (a torn last line of a killed run) are skipped with a warning
    that names file and line. Raises FileNotFoundError for a missing file.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: dict[str, Record] = {}
    for path in paths:
        for record in _read_lines(Path(path)):
            found[record.hash] = record
    return sorted(found.values(), key=_canonical_place)


def find_records(name_or_file: str | os.PathLike[str]) -> Path:
    """A file of records, or the packaged one of a name; FileNotFoundError names what there is."""
    home = Path(__file__).parent / "assets" / "records"
    for path in (Path(name_or_file), home / f"{name_or_file}.jsonl"):
        if path.is_file():
            return path
    packaged = sorted(path.stem for path in home.glob("*.jsonl"))
    raise FileNotFoundError(
        f"records={str(name_or_file)!r}: neither a file nor a packaged name; those are {packaged}"
    )


def _canonical_place(record: Record) -> tuple[str, str, int, str]:
    return record.kind, json.dumps(record.point, sort_keys=True), record.seed, record.hash


def _read_lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield Record.from_json(line.decode())
        except ValueError as error:  # includes JSON and Unicode errors
            warnings.warn(f"{path}:{number}: skipped, not a whole record ({error})", stacklevel=3)
