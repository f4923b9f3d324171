"""What all measurements share: rows, and the best of several times."""

import dataclasses
import time
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Row:
    """Seconds of one way to do something; `baseline` names the way it is compared with.

    `per_image` marks seconds of one core's time for one image, whatever the threads.
    """

    what: str
    way: str
    seconds: float
    baseline: str = ""
    per_image: bool = False


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    """Wall time of the fastest of `repeats` calls, after one that is not timed."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


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
