"""Batches are a pure function of (seed, step): whatever splits, prepares or resumes them."""

import io
import itertools
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from ldm_scaling.data import (
    ArraySource,
    Compose,
    DataError,
    Pipeline,
    RandomFlip,
    Resize,
    sequential,
)
from ldm_scaling.data.transforms import to_float

FROZEN = {
    0: [5, 8, 9, 7, 4, 2, 1, 0, 3, 6],
    1: [8, 6, 9, 3, 0, 2, 7, 1, 5, 4],
}  # seed -> first pass over ten
N = 23  # prime: no batch size divides a pass


class Pictures:
    """Small random images, one by one."""

    def __init__(self, count=N, size=(6, 8)):
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return {
            "image": rng.integers(0, 256, (*self.size, 3), dtype=np.uint8),
            "caption": f"picture {index}",
            "tags": ["a", "b"][: index % 3],
            "example_id": 1000 + index,
        }


AUGMENT = Compose((Resize(4, crop="random"), RandomFlip()))


def columns():
    """A source that is read a batch at a time."""
    latents = np.random.default_rng(0).normal(size=(N, 2, 2, 4))
    return ArraySource({"latent": latents, "example_id": 1000 + np.arange(N)})


def ids(batches):
    return np.concatenate([batch["example_id"] for batch in batches])


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name])


def concatenate(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_batch_has_the_types_of_the_contract():
    batch = Pipeline(Pictures(), 4, seed=0).batch(0)
    assert batch["image"].shape == (4, 6, 8, 3)
    assert batch["image"].dtype == np.float32
    assert -1 <= batch["image"].min() < -0.9 < 0.9 < batch["image"].max() <= 1
    assert batch["example_id"].dtype == np.int32
    assert all(isinstance(caption, str) for caption in batch["caption"])
    assert batch["tags"].shape == (4,)


def test_each_pass_holds_every_example_once_in_a_new_order():
    order = ids(Pipeline(Pictures(), 5, seed=0).batch(step) for step in range(N))
    passes = order.reshape(5, N)  # 23 batches of 5 are 5 whole passes: nothing was dropped
    for one in passes:
        assert sorted(one) == list(range(1000, 1000 + N))
    assert len({tuple(one) for one in passes}) == 5


def test_order_is_frozen():
    """The order is part of what makes an old run reproducible: this pins grain's shuffle."""
    source = ArraySource({"x": np.arange(10)})
    for seed, order in FROZEN.items():
        assert Pipeline(source, 10, seed=seed).batch(0)["x"].tolist() == order


def test_seeds_do_not_share_passes():
    source = ArraySource({"x": np.arange(100)})
    orders = [
        tuple(Pipeline(source, 100, seed=seed).batch(step)["x"])
        for seed in range(5)
        for step in range(5)
    ]
    assert len(set(orders)) == 25


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16, 48])
def test_batch_size_changes_neither_order_nor_augmentation(batch_size):
    whole = Pipeline(Pictures(), 96, seed=3, transform=AUGMENT).batch(0)
    pipeline = Pipeline(Pictures(), batch_size, seed=3, transform=AUGMENT)
    assert_equal(concatenate([pipeline.batch(s) for s in range(96 // batch_size)]), whole)


@pytest.mark.parametrize("rows", [range(8), range(8, 16), (0, 1, 6, 7, 12), (15,), range(16)])
@pytest.mark.parametrize("source", [Pictures, columns])
def test_a_host_gets_its_rows_of_the_global_batch(rows, source):
    transform = AUGMENT if source is Pictures else None
    whole = Pipeline(source(), 16, seed=1, transform=transform)
    part = Pipeline(source(), 16, seed=1, transform=transform, rows=rows)
    for step in (0, 1, 7):
        expected = {name: array[list(rows)] for name, array in whole.batch(step).items()}
        assert_equal(part.batch(step), expected)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("first_step", [0, 5])
def test_iterate_and_resume_give_the_batches_of_their_steps(threads, first_step):
    pipeline = Pipeline(Pictures(), 6, seed=2, transform=AUGMENT, threads=threads, rows=(1, 2, 5))
    iterator = pipeline.iterate(first_step)
    steps = []
    for step, batch in itertools.islice(iterator, 6):
        steps.append(step)
        assert_equal(batch, pipeline.batch(step))
    iterator.close()
    assert steps == list(range(first_step, first_step + 6))


def test_worker_processes_change_nothing():
    # A process of its own: the workers are spawned and must import everything by themselves.
    script = """
        import itertools
        import numpy as np
        from ldm_scaling.data import ArraySource, Pipeline, image_transform

        if __name__ == "__main__":
            images = np.random.default_rng(0).integers(0, 256, (21, 9, 12, 3), dtype=np.uint8)
            captions = np.array([str(i) for i in range(21)])
            source = ArraySource({"image": images, "caption": captions})
            transform = image_transform(8, crop="random", flip=0.5)
            make = lambda n: Pipeline(source, 6, 5, transform, workers=n, rows=(0, 4, 5))
            alone, helped = make(0), make(2)
            iterator = helped.iterate(3)
            for step, batch in itertools.islice(iterator, 5):
                expected = alone.batch(step)
                assert batch.keys() == expected.keys()
                for name in batch:
                    np.testing.assert_array_equal(batch[name], expected[name])
            iterator.close()
            print("same", step)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.strip() == "same 7", run.stderr


def test_augmentation_is_new_in_each_pass():
    pipeline = Pipeline(Pictures(1), 16, seed=0, transform=AUGMENT)
    images = pipeline.batch(0)["image"]  # sixteen passes over one picture
    assert len({image.tobytes() for image in images}) == 4  # two crops, each mirrored or not


def test_gathering_whole_batches_equals_stacking_examples():
    arrays = {
        "latent": np.random.default_rng(0).normal(size=(N, 2, 2, 4)),
        "image": np.random.default_rng(1).integers(0, 256, (N, 3, 3, 3), dtype=np.uint8),
        "context_index": np.arange(N),
        "caption": np.array([f"c{i}" for i in range(N)]),
    }
    source = ArraySource(arrays)
    fast = Pipeline(source, 6, seed=4)
    slow = Pipeline(source, 6, seed=4, transform=lambda example, rng: example)
    for step in range(8):
        assert_equal(fast.batch(step), slow.batch(step))
    assert fast.batch(0)["latent"].dtype == np.float32


@pytest.mark.parametrize(
    "source", [Pictures(), ArraySource({"image": np.ones((9, 6, 8, 3), np.uint8)})]
)
def test_images_may_stay_bytes(source):
    for transform in (None, Resize(4)):
        floats, whole = (
            Pipeline(source, 6, seed=2, transform=transform, floats=f).batch(1)
            for f in (True, False)
        )
        assert whole["image"].dtype == np.uint8
        np.testing.assert_array_equal(to_float(whole["image"]), floats["image"])


class Files(Pictures):
    """Pictures that are files until somebody decodes them."""

    decoded = 0

    def __getitem__(self, index):
        Files.decoded += 1
        return super().__getitem__(index)

    def undecoded(self, index):
        example = super().__getitem__(index)
        file = io.BytesIO()
        Image.fromarray(example["image"]).save(file, "PNG")
        return {**example, "image": file.getvalue()}


def test_files_are_left_to_a_transform_that_takes_them():
    plain, files = (Pipeline(s, 6, seed=2, transform=AUGMENT) for s in (Pictures(), Files()))
    assert_equal(plain.batch(0), files.batch(0))
    assert Files.decoded == 0
    flip = Pipeline(Files(), 6, seed=2, transform=RandomFlip())
    assert_equal(Pipeline(Pictures(), 6, seed=2, transform=RandomFlip()).batch(0), flip.batch(0))
    assert Files.decoded == 6


def test_a_file_that_does_not_decode_is_named():
    class Torn(Files):
        def undecoded(self, index):
            example = super().undecoded(index)
            return {**example, "image": example["image"][:60]}

    with pytest.raises(DataError, match=r"example_id=10\d\d: does not decode"):
        Pipeline(Torn(), 2, seed=0, transform=AUGMENT).batch(0)


@pytest.mark.parametrize("threads", [1, 4])
def test_sequential_reads_what_is_asked_for(threads):
    batches = list(sequential(Pictures(), 2, AUGMENT, indices=[7, 3, 5, 3, 0], threads=threads))
    assert [b["example_id"].tolist() for b in batches] == [[1007, 1003], [1005, 1003], [1000]]
    alone = next(sequential(Pictures(), N, AUGMENT))["image"]
    np.testing.assert_array_equal(batches[0]["image"], alone[[7, 3]])


def test_sequential_yields_each_example_once_in_order():
    batches = list(sequential(Pictures(), 5))
    assert [len(batch["example_id"]) for batch in batches] == [5, 5, 5, 5, 3]
    assert ids(batches).tolist() == list(range(1000, 1000 + N))
    assert batches[0]["image"].dtype == np.float32


def test_epochs():
    assert Pipeline(Pictures(20), 5, seed=0).epochs(6) == 1.5


def test_failure_of_a_prefetching_thread_reaches_the_loop():
    class Broken(Pictures):
        def __getitem__(self, index):
            raise DataError(f"{index}.png: gone")

    with pytest.raises(DataError, match="png: gone"):
        next(Pipeline(Broken(), 2, seed=0).iterate())


def test_images_of_unequal_size_are_named():
    class Uneven(Pictures):
        def __getitem__(self, index):
            return {"image": np.zeros((4 + index, 4, 3), np.uint8), "example_id": index}

    with pytest.raises(DataError, match=r"image: cannot be stacked.*`Resize`"):
        Pipeline(Uneven(), 4, seed=0).batch(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"rows": ()}, r"rows=\(\): must be some of 0 .. 3, ascending"),
        ({"rows": (2, 4)}, r"rows=\(2, 4\)"),
        ({"rows": (2, 1)}, r"rows=\(2, 1\)"),
        ({"rows": (1, 1)}, r"rows=\(1, 1\)"),
        ({"seed": -1}, "seed=-1"),
        ({"workers": -1}, "workers=-1"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Pipeline(**{"source": Pictures(), "batch_size": 4, "seed": 0, **settings})


def test_empty_source_and_negative_step_are_refused():
    with pytest.raises(DataError, match="no example"):
        Pipeline(Pictures(0), 4, seed=0)
    with pytest.raises(ValueError, match="step=-1"):
        Pipeline(Pictures(), 4, seed=0).batch(-1)
    with pytest.raises(ValueError, match="step=-1"):
        next(Pipeline(Pictures(), 4, seed=0).iterate(-1))
