import jax
import numpy as np
import pytest

from ldm_scaling.data import ArraySource, image_transform
from ldm_scaling.encoders import AutoencoderConfig, BertConfig
from ldm_scaling.sharding import make_mesh
from ldm_scaling.tasks import FrozenEncoders
from ldm_scaling.train.cache import cached_source


class FakeEncoders(FrozenEncoders):
    """Encoders whose work can be counted and foretold: means of pixels, and the token ids."""

    def __init__(self, max_tokens=4):
        super().__init__(AutoencoderConfig(), BertConfig(), lambda *_: None, max_tokens)
        self.__dict__["traces"] = []

    def tokenize(self, captions):
        ids = np.zeros((len(captions), self.max_tokens), np.int32)
        for row, caption in zip(ids, captions, strict=True):
            row[: len(caption)] = [ord(letter) for letter in caption]
        return {"token_ids": ids, "token_mask": (ids > 0).astype(np.int32)}

    def encode_batch(self, params, batch):
        self.traces.append(batch)
        mean = params["autoencoder"]["w"] * batch["image"].mean((1, 2))
        context = batch["token_ids"][..., None] * params["text_encoder"]["w"]
        return {"latent_mean": mean, "latent_std": 0 * mean + 1, "context": context}


@pytest.fixture
def source():
    rng = np.random.default_rng(0)
    captions = np.array(list("abcdefghijk"))
    images = rng.integers(0, 256, (11, 8, 8, 3), dtype=np.uint8)
    return ArraySource({"image": images, "caption": captions, "example_id": 10 + np.arange(11)})


PARAMS = {
    "autoencoder": {"w": np.full((), 2, np.float32)},
    "text_encoder": {"w": np.ones((), np.float32)},
}


def cache(folder, source, encoders=None, params=PARAMS, devices=1):
    mesh = make_mesh(devices=jax.devices()[:devices])
    encoders = encoders or FakeEncoders()
    return cached_source(folder, source, image_transform(4), encoders, params, mesh, batch_size=4)


def test_every_example_is_encoded_in_order_with_one_program(tmp_path, source):
    encoders = FakeEncoders()
    cached = cache(tmp_path, source, encoders)
    assert len(cached) == 11
    assert len(encoders.traces) == 1  # the last batch, of 3, is padded
    for i in (0, 10):
        example = cached[i]
        assert (example["example_id"], example["caption"]) == (10 + i, "abcdefghijk"[i])
        assert example["context"][0, 0] == ord("abcdefghijk"[i])
        image = image_transform(4)(source[i], np.random.default_rng(0))["image"] / 127.5 - 1
        np.testing.assert_allclose(example["latent_mean"], 2 * image.mean((0, 1)), atol=1e-6)


def test_devices_change_nothing(tmp_path, source):
    alone, eight = cache(tmp_path / "1", source), cache(tmp_path / "8", source, devices=8)
    for name, array in alone.arrays.items():
        np.testing.assert_array_equal(array, eight.arrays[name])


def test_it_is_used_again(tmp_path, source):
    first = cache(tmp_path, source)
    encoders = FakeEncoders()
    second = cache(tmp_path, source, encoders)
    assert not encoders.traces
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name])


def test_what_decides_it_changes_its_name(tmp_path, source):
    cache(tmp_path, source)
    other_weights = {**PARAMS, "autoencoder": {"w": np.ones((), np.float32)}}
    cache(tmp_path, source, params=other_weights)
    cache(tmp_path, source, FakeEncoders(max_tokens=5))
    changed = dict(source.arrays)
    changed["caption"] = np.array(list("abcdefghijz"))
    cache(tmp_path, ArraySource(changed))
    changed["image"] = 255 - changed["image"]
    cache(tmp_path, ArraySource(changed))
    assert len(list(tmp_path.glob("*.npz"))) == 5
