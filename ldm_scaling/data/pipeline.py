"""Batches as a pure function of (seed, step).

Batch `s` of size B holds the positions s*B .. s*B+B-1 of an endless sequence: pass after pass
over the source, each pass in a new order. grain's index shuffle finds the example at any
position without holding a permutation, so a run resumes at any step, on any number of hosts, by
asking for that step. A pass that B does not divide is no trouble: batches run on into the next.
"""

import collections
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import flags

from ldm_scaling.data.images import UnreadableImageError
from ldm_scaling.data.source import (
    DataError,
    Example,
    GatherSource,
    Source,
    UndecodedSource,
    stack,
)
from ldm_scaling.data.transforms import Transform, example_rng, to_float

_POSITIONS = 2**48  # stands for "endless": grain's own endless repeat cannot be sliced


class Pipeline:
    """Endless shuffled batches of a source.

    A batch is a dict of NumPy arrays with a leading axis: "image" float32 [B, H, W, 3] in
    [-1, 1] wherever the example's image is uint8 (unless `floats` is off), "example_id" int32
    [B], strings and lists as object arrays [B]; other numbers as int32 or float32.

    Args:
      source: any `Source`. Without a transform, one with `take` is read a batch at a time.
      batch_size: examples of the global batch, over all hosts.
      seed: 0 <= seed < 2**64; decides order and augmentation.
      transform: applied to each example with its own generator.
      workers: processes that prepare batches for `iterate`; 0 leaves it to `threads` alone.
      threads: threads (in each process) that prepare batches for `iterate`; each works on one
        batch, so that many batches are in memory, and as many again wait.
      floats: False leaves images uint8, for tasks that convert them on the device: a quarter of
        the bytes to bring there.
      rows: which rows of each global batch this host gets, ascending; default: all.

    Raises:
      ValueError: an argument out of its range.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        transform: Transform | None = None,
        *,
        workers: int = 0,
        threads: int = 2,
        floats: bool = True,
        rows: Sequence[int] | None = None,
    ):
        if len(source) < 1:
            raise DataError("source: holds no example")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: the batch needs at least 1 example")
        if rows is not None and (not rows or [*rows] != sorted({*rows} & {*range(batch_size)})):
            raise ValueError(f"rows={rows}: must be some of 0 .. {batch_size - 1}, ascending")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed={seed}: must lie in 0 .. 2**64 - 1")
        if workers < 0 or threads < 1:
            raise ValueError(f"workers={workers}, threads={threads}: need at least 0 and 1")
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self._workers, self._threads, self._floats = workers, threads, floats
        self._batches = self._dataset(transform, None if rows is None else tuple(rows))

    def _dataset(self, transform: Transform | None, rows: tuple[int, ...] | None) -> Any:
        import grain  # seconds to import

        # grain shuffles pass e with seed + e: without this, seed 1 would be seed 0 a pass later.
        shuffle_seed = int(np.random.SeedSequence(self.seed).generate_state(1)[0])
        order = grain.MapDataset.range(len(self.source)).shuffle(seed=shuffle_seed)
        order = order.repeat(_POSITIONS // len(self.source) + 1)
        if rows is not None:
            local = grain.MapDataset.range(_POSITIONS // self.batch_size * len(rows))
            order = local.map(_Rows(order, self.batch_size, rows))
        batches = order.batch(self.batch_size if rows is None else len(rows))
        if transform is None and isinstance(self.source, GatherSource):
            return batches.map(_Gather(self.source, self._floats))
        fetch = _Fetch(self.source, transform, self.seed)
        return batches.map_with_index(_FetchBatch(fetch, self.batch_size, rows, self._floats))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This host's part of the batch of `step` >= 0."""
        return self._batches[_checked_step(step)]

    def iterate(self, first_step: int = 0) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yields (step, batch) without end, batches prepared ahead. Close it to free the threads.

        The same batches as `batch(step)`; an example that cannot be read raises here.
        """
        import grain

        first_step = _checked_step(first_step)
        options = grain.ReadOptions(self._threads, 2 * self._threads)
        batches = self._batches[first_step:].to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads flags, also where no main parsed any
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        iterator = iter(batches)
        try:
            yield from enumerate(iterator, first_step)
        finally:
            iterator.close()

    def epochs(self, step: int) -> float:
        """Passes over the source that are done before `step`."""
        return step * self.batch_size / len(self.source)


def sequential(
    source: Source,
    batch_size: int,
    transform: Transform | None = None,
    *,
    indices: Sequence[int] | np.ndarray | None = None,
    threads: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, in the source's order; the last batch may be smaller.

    Random transforms draw as in the first pass of a pipeline with seed 0.

    Args:
      indices: only these, in this order.
      threads: that read and transform examples; with more than one, a batch is prepared ahead.
    """
    fetch = _Fetch(source, transform, seed=0)
    order = range(len(source)) if indices is None else indices
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if threads == 1:
        for part in parts:
            examples = (fetch(int(i), int(i)) for i in part)
            yield _finish(stack(examples, len(part)), floats=True)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: collections.deque[list[Future[Example]]] = collections.deque()
        for part in parts:
            ahead.append([pool.submit(fetch, int(i), int(i)) for i in part])
            if len(ahead) > 2:
                yield _collect(ahead.popleft())
        while ahead:
            yield _collect(ahead.popleft())


def _collect(futures: Sequence[Future[Example]]) -> dict[str, np.ndarray]:
    return _finish(stack((future.result() for future in futures), len(futures)), floats=True)


def _finish(batch: dict[str, np.ndarray], floats: bool) -> dict[str, np.ndarray]:
    """Types as the device will have them: JAX computes with 32 bits, networks on [-1, 1]."""
    narrow = {"int64": np.int32, "float64": np.float32}
    batch = {
        name: array.astype(narrow[array.dtype.name]) if array.dtype.name in narrow else array
        for name, array in batch.items()
    }
    if floats and "image" in batch and batch["image"].dtype == np.uint8:
        batch["image"] = to_float(batch["image"])
    return batch


def _checked_step(step: int) -> int:
    if step < 0:
        raise ValueError(f"step={step}: steps count from 0")
    return int(step)


@dataclass(frozen=True)
class _Fetch:
    """(position in the endless sequence, index in the source) -> transformed example."""

    source: Source
    transform: Transform | None
    seed: int

    def __call__(self, position: int, index: int) -> Example:
        if self.transform is None:
            return self.source[int(index)]
        example = self._read(int(index))
        epoch = position // len(self.source)
        rng = example_rng(self.seed, int(example["example_id"]), epoch)
        try:
            return self.transform(example, rng)
        except UnreadableImageError as error:
            where = example.get("file", f"example_id={example['example_id']}")
            raise DataError(f"{where}: {error}") from error

    def _read(self, index: int) -> Example:
        if getattr(self.transform, "takes_encoded", False) and isinstance(
            self.source, UndecodedSource
        ):
            return self.source.undecoded(index)
        return self.source[index]


@dataclass(frozen=True)
class _Rows:
    """Position in the sequence of this host's rows -> what is there in that of all rows."""

    everything: Any  # grain.MapDataset
    batch_size: int
    rows: tuple[int, ...]

    def __call__(self, position: int) -> Any:
        step, place = divmod(int(position), len(self.rows))
        return self.everything[step * self.batch_size + self.rows[place]]


@dataclass(frozen=True)
class _FetchBatch:
    """(number of the batch, indices in the source) -> this host's transformed examples of it."""

    fetch: _Fetch
    batch_size: int
    rows: tuple[int, ...] | None
    floats: bool

    def __call__(self, number: int, indices: np.ndarray) -> dict[str, np.ndarray]:
        first = int(number) * self.batch_size
        rows = range(len(indices)) if self.rows is None else self.rows
        examples = (self.fetch(first + row, int(i)) for row, i in zip(rows, indices, strict=True))
        return _finish(stack(examples, len(indices)), self.floats)


@dataclass(frozen=True)
class _Gather:
    """Indices in the source -> batch, all at once."""

    source: GatherSource
    floats: bool

    def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return _finish(self.source.take(indices), self.floats)
