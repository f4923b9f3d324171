"""What all measurements share: rows, and how seconds are taken."""

import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.cases import Case


@dataclasses.dataclass(frozen=True)
class Row:
    """Seconds of one way to do something; `baseline` names the way it is compared with.

    `per_image` marks seconds of one core's time for one image, whatever the threads. `share` is
    the part of the FLOP/s of the fastest product of matrices that was reached, None where FLOPs are
    not counted; compiling and all else that takes time lower it.
    """

    what: str
    way: str
    seconds: float
    baseline: str = ""
    per_image: bool = False
    share: float | None = None


def compare(name: str, case: Case, repeats: int) -> Iterator[Row]:
    """Every side whose packages are installed, each in a process of its own, one after another."""
    flops = case.flops() if case.flops else None
    baseline = next(iter(case.sides))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        case.prepare(Path(folder))
        for side, way in case.sides.items():
            if all(importlib.util.find_spec(package) for package in way.needs):
                command = ["-m", "benchmarks.side", name, side, folder, str(repeats)]
                try:
                    found[side] = _run(command)
                except subprocess.CalledProcessError:  # it has told why
                    print(f"{case.what}: {side} failed and is left out", file=sys.stderr)
    peak = max((told["peak"] for told in found.values()), default=1.0)
    for side, told in found.items():
        seconds = statistics.median(told["seconds"])
        share = flops / seconds / peak if flops else None
        yield Row(case.what, side, seconds, baseline, share=share)


def _run(command: list[str]) -> dict:
    home = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def best_core_seconds(calls: Mapping[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Core seconds an item, of all threads together, in the best of `repeats` rounds.

    The calls take turns, so that a busy machine disturbs all of them alike. Each says how many
    items it has done; the first round is not timed.
    """
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            items = call()
            seconds = (time.process_time() - start) / items
            if turn:
                best[name] = min(best[name], seconds)
    return best
