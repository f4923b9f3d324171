"""What was kept, what was not, and why."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm_scaling.data.captioned_images.entries import BAD, FILTERED, Problem
from ldm_scaling.data.source import DataError

NAMED = 20
"""So many of each reason are named; the others are counted."""


@dataclass
class Report:
    """Counts of a shard, or of all of them.

    Attributes:
      shards: how many were read.
      entries: what `Shard.keys` counts, and members that are no entry.
      kept: split -> examples.
      num_bytes: split -> bytes of the written files.
      dropped: reason -> how many.
      named: reason -> the first `NAMED` of them, "SHARD: KEY: detail".
      without_score: kept although min_score is set, because they have no score.
    """

    shards: int = 0
    entries: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    num_bytes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)
    without_score: int = 0

    def drop(self, shard: str, problem: Problem) -> None:
        """Counts and names one problem."""
        self.dropped[problem.reason] += 1
        named = self.named.setdefault(problem.reason, [])
        if len(named) < NAMED:
            about = problem.key if problem.key != shard else ""
            named.append(": ".join(part for part in (shard, about, problem.detail) if part))

    @classmethod
    def merge(cls, reports: Iterable["Report"]) -> "Report":
        """The sum; names in the order of the reports."""
        total = cls()
        for report in reports:
            total.shards += report.shards
            total.entries += report.entries
            total.without_score += report.without_score
            for counter in ("kept", "num_bytes", "dropped"):
                getattr(total, counter).update(getattr(report, counter))
            for reason, names in report.named.items():
                known = total.named.setdefault(reason, [])
                known += names[: NAMED - len(known)]
        return total

    @property
    def bad(self) -> int:
        """How many were dropped for a reason of `BAD`."""
        return sum(count for reason, count in self.dropped.items() if reason in BAD)

    def check(self, max_bad_share: float) -> None:
        """Whether the set is fit for use.

        Raises:
          DataError: nothing was kept, or more than `max_bad_share` of the entries, or of the
            shards, are bad.
        """
        entries = (self.bad, self.entries, "entries")
        shards = (self.dropped["damaged shard"], self.shards, "shards")
        for count, total, what in (entries, shards):
            if count > max_bad_share * total:
                first = [name for reason in BAD for name in self.named.get(reason, [])[:1]]
                raise DataError(
                    f"{count} of {total} {what} are bad, more than max_bad_share={max_bad_share} "
                    f"allows. The first of each kind: {'; '.join(first)}"
                )
        if not self.kept.total():
            raise DataError(f"nothing is left of {self.entries} entries:\n{self.table()}")

    def table(self) -> str:
        """The counts as lines of text."""
        total = max(self.entries, 1)
        rows = [("kept", split, count, "") for split, count in sorted(self.kept.items())]
        for kind, reasons in (("filtered", FILTERED), ("bad", BAD)):
            rows += [
                (kind, reason, self.dropped[reason], meaning)
                for reason, meaning in reasons.items()
                if self.dropped[reason]
            ]
        lines = [f"{self.entries} entries in {self.shards} shards"]
        lines += [
            f"{kind:9s} {name:16s} {count:12d} {100 * count / total:6.2f} %  {meaning}".rstrip()
            for kind, name, count, meaning in rows
        ]
        if self.without_score:
            lines.append(f"{self.without_score} of those kept have no aesthetic score")
        return "\n".join(lines)

    def to_json(self, **beside: Any) -> str:
        """Readable JSON of the report and what is given `beside` it; equal reports, equal text."""
        return json.dumps({**beside, **vars(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Report":
        """The report in what `to_json` wrote."""
        fields = {name: content[name] for name in cls.__dataclass_fields__}
        for counter in ("kept", "num_bytes", "dropped"):
            fields[counter] = Counter(fields[counter])
        return cls(**fields)
