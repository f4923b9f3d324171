"""From image files to batches at 512 px, beside the decoder alone and beside tf.data.

Counted is the time of a core, of all threads together: it says how many images a second each core
of a host can feed, also on a machine that is doing other things. Nothing is fetched ahead: that
would be done in the time of whoever is measured next.
"""

import importlib.util
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.timing import Row, best_core_seconds

SIZE, COUNT, BATCH, BATCHES = 512, 36, 16, 4
RAW = "Pillow decode"


def measure(repeats: int, folder: str = "") -> Iterator[Row]:
    """The files as they are, and as `prepare_data --max_side=512` stores them."""
    files = [path.read_bytes() for path in sorted(Path(folder).glob("*.jp*g"))] if folder else []
    files = files or list(photographs())
    sides = [side for file in files for side in Image.open(io.BytesIO(file)).size]
    yield from _rows(f"JPEGs of {min(sides)} to {max(sides)} px at {SIZE} px", files, repeats)

    from ldm_scaling.data.captioned_images import Entry, Rules

    rules = Rules(max_side=SIZE)
    smaller = [rules.apply(Entry("", file, ("caption",))).image for file in files]
    yield from _rows(f"the same, prepared with --max_side={SIZE}", smaller, repeats)


def _rows(what: str, files: list[bytes], repeats: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        with (Path(folder) / "metadata.jsonl").open("w") as metadata:
            for i, file in enumerate(files):
                paths.append(Path(folder) / f"{i:03d}.jpg")
                paths[-1].write_bytes(file)
                metadata.write(json.dumps({"file_name": paths[-1].name, "text": ""}) + "\n")
        ours, order = _ours(folder)
        calls: dict[str, Callable[[], int]] = {
            RAW: _raw([files[i] for i in order]),
            "ldm_scaling": ours,
        }
        if importlib.util.find_spec("tensorflow"):
            calls["tf.data"] = _tf_data([str(paths[i]) for i in order])
        for way, seconds in best_core_seconds(calls, repeats).items():
            yield Row(what, way, seconds, RAW, per_image=True)


def _raw(files: list[bytes]) -> Callable[[], int]:
    def call() -> int:
        for file in files:
            np.asarray(Image.open(io.BytesIO(file)))
        return len(files)

    return call


class _Many:
    """A few files as a source of many: shuffling takes longest where there is little to shuffle."""

    def __init__(self, folder: str):
        from ldm_scaling.data import open_source

        self.files = open_source(folder)

    def __len__(self) -> int:
        return 2**20

    def __getitem__(self, index: int) -> dict:
        return {**self.files[index % len(self.files)], "example_id": index}

    def undecoded(self, index: int) -> dict:
        return {**self.files.undecoded(index % len(self.files)), "example_id": index}


def _ours(folder: str) -> tuple[Callable[[], int], list[int]]:
    """The call, and which file each of its images is."""
    from ldm_scaling.data import Pipeline, image_transform

    source = _Many(folder)
    pipeline = Pipeline(source, BATCH, 0, image_transform(SIZE), floats=False)

    def call() -> int:
        for step in range(BATCHES):
            assert pipeline.batch(step)["image"].shape == (BATCH, SIZE, SIZE, 3)
        return BATCHES * BATCH

    ids = np.concatenate([pipeline.batch(step)["example_id"] for step in range(BATCHES)])
    return call, [int(i) % len(source.files) for i in ids]


def _tf_data(paths: list[str]) -> Callable[[], int]:
    import tensorflow as tf

    def load(path):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        scaled = tf.cast(tf.round(sides * (SIZE / tf.reduce_min(sides))), tf.int32)
        image = tf.image.resize(image, scaled, "bicubic", antialias=True)
        top, left = (scaled[0] - SIZE) // 2, (scaled[1] - SIZE) // 2
        image = tf.image.crop_to_bounding_box(image, top, left, SIZE, SIZE)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).map(load)
    data = data.batch(BATCH)

    def call() -> int:
        for batch in data.as_numpy_iterator():
            assert batch.shape == (BATCH, SIZE, SIZE, 3)
        return len(paths)

    return call


def photographs() -> Iterator[bytes]:
    """JPEGs of 600 to 800 px a side: scikit-image's photographs, or noise with their spectrum."""
    rng = np.random.default_rng(0)
    originals = list(_originals())
    for i in range(COUNT):
        height, width = rng.integers(600, 801, 2)
        if originals:
            pixels = originals[i % len(originals)][:height, :width]
            # Mirrored at its edges: enlarging would make it smoother than photographs are.
            beside = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
            pixels = np.pad(pixels, beside, mode="symmetric")
        else:
            pixels = _noise(rng, height, width)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        yield file.getvalue()


def _originals() -> Iterator[np.ndarray]:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        return
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg")
    names += ("retina.jpg", "motorcycle_left.png", "motorcycle_right.png", "ihc.png")
    for name in names:
        path = Path(spec.origin).parent / "data" / name
        if path.is_file():
            yield np.asarray(Image.open(path).convert("RGB"))


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Amplitudes fall with frequency, as in natural images (Field 1987, JOSA A 4:2379)."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    shape = (3, *frequency.shape)
    spectrum = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / frequency
    gray, *colour = np.fft.irfft2(spectrum, s=(height, width))
    channels = [gray, gray + 0.3 * colour[0], gray + 0.3 * colour[1]]  # colours go together
    pixels = np.stack([c / c.std() for c in channels], axis=-1)
    return np.uint8(np.clip(127 + 50 * pixels, 0, 255))
