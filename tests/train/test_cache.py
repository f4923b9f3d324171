import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ldm_scaling.data import ArraySource, DataError, EncodedSource, image_transform
from ldm_scaling.encoders import AutoencoderConfig, BertConfig
from ldm_scaling.sharding import make_mesh
from ldm_scaling.tasks import FrozenEncoders
from ldm_scaling.train import cache
from ldm_scaling.train.cache import Encoder, ForeignEncodingError, encode, encoded_source

ROOT = Path(__file__).parents[2]


class FakeEncoders(FrozenEncoders):
    """Encoders whose work can be counted and foretold: means of pixels, and the token ids."""

    def __init__(self, max_tokens=4, autoencoder=None):
        autoencoder = autoencoder or AutoencoderConfig()
        super().__init__(autoencoder, BertConfig(), lambda *_: None, max_tokens)
        self.__dict__["traces"] = []

    def tokenize(self, captions):
        ids = np.zeros((len(captions), self.max_tokens), np.int32)
        for row, caption in zip(ids, captions, strict=True):
            letters = [ord(letter) % 256 for letter in caption[: self.max_tokens]]
            row[: len(letters)] = letters
        return {"token_ids": ids, "token_mask": (ids > 0).astype(np.int32)}

    def encode_batch(self, params, batch):
        self.traces.append(batch)
        mean = params["autoencoder"]["w"] * batch["image"].mean((1, 2))
        context = batch["token_ids"][..., None] * params["text_encoder"]["w"]
        return {"latent_mean": mean, "latent_std": 0 * mean + 1, "context": context}


def a_source(**changes):
    rng = np.random.default_rng(0)
    captions = np.array(list("abcdefghijk"))
    images = rng.integers(0, 256, (11, 8, 8, 3), dtype=np.uint8)
    arrays = {"image": images, "caption": captions, "example_id": 10 + np.arange(11)}
    return ArraySource({**arrays, **changes})


@pytest.fixture
def source():
    return a_source()


def params(autoencoder=2, text_encoder=1):
    weights = {"autoencoder": autoencoder, "text_encoder": text_encoder}
    return {name: {"w": np.full((), w, np.float32)} for name, w in weights.items()}


def encoder(encoders=None, weights=None, devices=1, size=4):
    mesh = make_mesh(devices=jax.devices()[:devices])
    weights = weights or params()
    return Encoder(encoders or FakeEncoders(), weights, size, image_transform(size), mesh, 4)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_example_is_encoded_in_order_with_one_program(tmp_path, source):
    encoders = FakeEncoders()
    cached = encoded_source(tmp_path, encoder(encoders), source)
    assert len(cached) == 11
    assert len(encoders.traces) == 1  # the last batch, of 3, is padded
    for i in (0, 10):
        example = cached[i]
        assert (example["example_id"], example["caption"]) == (10 + i, "abcdefghijk"[i])
        assert example["context"][0, 0] == ord("abcdefghijk"[i])
        image = image_transform(4)(source[i], np.random.default_rng(0))["image"] / 127.5 - 1
        np.testing.assert_allclose(example["latent_mean"], 2 * image.mean((0, 1)), atol=1e-6)


def test_devices_and_sizes_of_files_change_nothing(tmp_path, source):
    alone = encoded_source(tmp_path / "1", encoder(), source)
    eight = encoded_source(tmp_path / "8", encoder(devices=8), source)
    encode(tmp_path / "parts", encoder(), source, shard_examples=5)
    parts = EncodedSource(tmp_path / "parts")
    assert parts.encoding.shards == 3
    for other in (eight, parts):
        expected, found = alone.take(range(11)), other.take(range(11))
        for name, array in expected.items():
            np.testing.assert_array_equal(array, found[name])


def test_it_is_used_again(tmp_path, source):
    encoded_source(tmp_path, encoder(), source)
    before = files(tmp_path)
    encoders = FakeEncoders()
    encoded_source(tmp_path, encoder(encoders), source)
    assert not encoders.traces
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"weights": params(autoencoder=3)}, "autoencoder"),
        ({"weights": params(text_encoder=3)}, "text_encoder"),
        ({"encoders": FakeEncoders(autoencoder=AutoencoderConfig(norm_groups=16))}, "autoencoder"),
        ({"encoders": FakeEncoders(max_tokens=5)}, "max_tokens 4 there, 5 here"),
        ({"size": 5}, "image_size 4 there, 5 here"),
        ({"source": a_source(caption=np.array(list("abcdefghijz")))}, "captions"),
        ({"source": a_source(image=np.zeros((11, 8, 8, 3), np.uint8))}, "pixels"),
        ({"source": a_source(example_id=np.arange(11))}, "pixels"),
    ],
)
def test_what_decides_it_is_checked_and_named(tmp_path, source, changes, field):
    encoded_source(tmp_path, encoder(), source)
    other = changes.pop("source", source)
    with pytest.raises(ForeignEncodingError, match=field) as raised:
        encoded_source(tmp_path, encoder(**changes), other)
    assert str(raised.value).startswith(f"{tmp_path}: encoded by or from something else")


def test_the_set_alone_is_enough_for_training(tmp_path, source):
    with pytest.raises(DataError, match="no encoded set"):
        encoded_source(tmp_path, encoder(), None)
    encoded_source(tmp_path, encoder(), source)
    assert len(encoded_source(tmp_path, encoder(), None)) == 11
    with pytest.raises(ForeignEncodingError, match="autoencoder"):
        encoded_source(tmp_path, encoder(weights=params(autoencoder=3)), None)


def test_processes_share_the_work_and_give_the_same_files(tmp_path, source):
    encode(tmp_path / "one", encoder(), source, shard_examples=2)
    for index in (2, 0, 1):
        encode(tmp_path / "many", encoder(), source, shard_examples=2, process=(index, 3))
        if index == 2:  # the files of this one, and of no other
            with pytest.raises(DataError, match="4 of 6 files are missing"):
                EncodedSource(tmp_path / "many")
    assert files(tmp_path / "one") == files(tmp_path / "many")


def test_an_interrupted_call_goes_on_with_what_is_missing(tmp_path, source, monkeypatch):
    encode(tmp_path / "whole", encoder(), source, shard_examples=4)
    examples = Encoder.examples
    asked = []

    def failing(self, source, indices):
        asked.append(list(indices))
        if len(asked) == 2:
            yield from list(examples(self, source, indices))[:2]
            raise KeyboardInterrupt
        yield from examples(self, source, indices)

    monkeypatch.setattr(Encoder, "examples", failing)
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "out", encoder(), source, shard_examples=4)
    assert len(files(tmp_path / "out")) == 2  # the manifest, and the first file
    # Another size of files is not begun in the middle.
    encode(tmp_path / "out", encoder(), source, shard_examples=3)
    assert asked[2:] == [[4, 5, 6, 7], [8, 9, 10]]
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("text_weight", "dtype"), [(1.0, "float16"), (1e4, "float32"), (1e-9, "float32")]
)
def test_half_precision_is_chosen_where_it_was_measured_to_do(tmp_path, source, text_weight, dtype):
    """Contexts beyond float16's largest value, or below its smallest, are kept in float32."""
    weights = params(text_encoder=text_weight)
    encoding = encode(tmp_path, encoder(weights=weights), source, dtype="auto")
    assert encoding.dtype == dtype
    cached = EncodedSource(tmp_path).take(range(11))
    assert cached["context"].dtype == dtype
    exact = encoded_source(tmp_path / "exact", encoder(weights=weights), source).take(range(11))
    with np.errstate(over="ignore"):
        rounded = exact["latent_mean"].astype(np.float16).astype(np.float64)
    change = np.sqrt(np.square(rounded - exact["latent_mean"]).mean())
    relative = change / np.sqrt(np.square(exact["latent_mean"]).mean())
    assert encoding.rounding["latent_mean"] == pytest.approx(relative, rel=1e-4)
    recorded = json.loads((tmp_path / "encoding.json").read_text())["rounding"]
    assert recorded == encoding.rounding


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype='float8': did you mean"),
        ({"shard_examples": 0}, "shard_examples=0"),
        ({"process": (2, 2)}, r"process=\(2, 2\)"),
    ],
)
def test_bad_settings_are_named(tmp_path, source, options, message):
    with pytest.raises(ValueError, match=message):
        encode(tmp_path, encoder(), source, **options)


def test_probes_cover_sources_of_any_length(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PROBES", 3)
    short = ArraySource({name: array[:2] for name, array in a_source().arrays.items()})
    for name, source in (("short", short), ("long", a_source())):
        assert len(encoded_source(tmp_path / name, encoder(), source)) == len(source)
    changed = a_source(caption=np.array(list("abcdezghijk")))  # the middle one is a probe
    with pytest.raises(ForeignEncodingError, match="captions"):
        encoded_source(tmp_path / "long", encoder(), changed)


SCRIPT = """
    import os, sys, time
    from pathlib import Path
    import jax
    if len(sys.argv) > 3:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
    import tests.train.test_cache as t
    from ldm_scaling.train import cache

    cache.SHARD_EXAMPLES = 2
    cache.encode.__kwdefaults__["shard_examples"] = 2
    mesh = cache.encoding_mesh(t.make_mesh())
    transform = lambda e, rng: (time.sleep(0.02), t.image_transform(4)(e, rng))[1]
    encoder = cache.Encoder(t.FakeEncoders(), t.params(), 4, transform, mesh, 4, threads=1)
    print("ready", flush=True)
    source = cache.encoded_source(Path(sys.argv[1]), encoder, t.a_source())
    print(len(source), len(mesh.devices.flat), flush=True)
"""


def start(*arguments, devices=2):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_kill_9_at_any_time_changes_no_byte(tmp_path, source):
    encode(tmp_path / "whole", encoder(), source, shard_examples=2)
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(6):
        with start(tmp_path / "out") as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.2, 0.7))
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
    with start(tmp_path / "out") as last:
        assert last.communicate(timeout=120)[0].splitlines()[-1].startswith("11 ")
    assert kills
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.slow
def test_two_real_processes_encode_on_their_own_devices(tmp_path, source):
    import socket

    encode(tmp_path / "whole", encoder(), source, shard_examples=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with start(tmp_path / "out", address, 0) as one, start(tmp_path / "out", address, 1) as two:
        for process in (one, two):
            # Each saw two devices, and the whole set when both were done.
            assert process.communicate(timeout=120)[0].splitlines()[-1] == "11 2"
            assert process.returncode == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")
