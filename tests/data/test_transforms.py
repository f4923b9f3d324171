"""Transforms keep types, hit exact values, and draw only from the example's generator."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from ldm_scaling.data import Compose, RandomFlip, Resize, image_transform, random_caption
from ldm_scaling.data.images import decode_rgb
from ldm_scaling.data.transforms import example_rng, to_float

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)


def test_to_float_reaches_both_ends_and_inverts():
    values = to_float(np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3))
    assert values.dtype == np.float32
    assert (values.min(), values.max()) == (-1, 1)
    np.testing.assert_array_equal(np.round((values[0, :, 0] + 1) * 127.5), np.arange(256))


def test_example_rng_depends_on_seed_example_and_epoch_alone():
    draws = {
        key: tuple(example_rng(*key).random(3))
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**64 - 1, 2**31 - 1, 7)]
    }
    assert len(set(draws.values())) == len(draws)
    assert all(tuple(example_rng(*key).random(3)) == draw for key, draw in draws.items())


@pytest.mark.parametrize(
    ("shape", "size"), [((12, 20), 8), ((20, 12), 8), ((7, 7), 16), ((1, 9), 4)]
)
@pytest.mark.parametrize("crop", ["center", "random"])
def test_resize_gives_squares(shape, size, crop):
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    result = Resize(size, crop)({"image": image, "caption": "kept"}, RNG)
    assert result["image"].shape == (size, size, 3)
    assert result["image"].dtype == np.uint8
    assert result["caption"] == "kept"


def test_resize_at_native_size_only_crops():
    result = Resize(12)({"image": IMAGE}, RNG)["image"]
    np.testing.assert_array_equal(result, IMAGE[:, 4:16])
    square = IMAGE[:, :12]
    np.testing.assert_array_equal(Resize(12)({"image": square}, RNG)["image"], square)


def test_resize_is_antialiased():
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    image = np.stack([checkers] * 3, axis=-1).astype(np.uint8)
    small = Resize(8)({"image": image}, RNG)["image"]
    assert np.abs(small.astype(int) - 127).max() < 10  # picking pixels would give 0 or 255


def jpeg(size):
    y, x = np.mgrid[: size[1], : size[0]]
    waves = [np.sin(x / 31) * np.cos(y / 23), np.cos(x / 17), np.sin((x + y) / 40)]
    image = Image.fromarray(np.stack([np.uint8(127 + 100 * w) for w in waves], axis=-1))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("size", [(301, 203), (203, 301), (100, 100), (60, 80)])
def test_files_give_the_picture_of_their_pixels(size, crop):
    """Also where the file is decoded at a fraction of its size, and where it is too small."""
    data = jpeg(size)
    resize = Resize(64, crop)
    of_file, of_pixels = (
        resize({"image": image}, example_rng(0, 1, 0))["image"].astype(int)
        for image in (data, decode_rgb(data))
    )
    assert np.abs(of_file - of_pixels).mean() < 1
    assert np.abs(of_file - of_pixels).max() < 16


def test_only_the_first_step_meets_files():
    assert image_transform(8, flip=0.5).takes_encoded
    assert not Compose((RandomFlip(), Resize(8))).takes_encoded
    assert not Compose(()).takes_encoded
    assert not Compose((random_caption,)).takes_encoded


def test_random_crops_reach_every_place():
    seen = {
        Resize(12, "random")({"image": IMAGE}, example_rng(0, i, 0))["image"].tobytes()
        for i in range(200)
    }
    assert seen == {IMAGE[:, left : left + 12].tobytes() for left in range(9)}


def test_flip_mirrors_as_often_as_asked():
    flipped = [RandomFlip(0.25)({"image": IMAGE}, example_rng(0, i, 0)) for i in range(400)]
    mirrored = sum(np.array_equal(e["image"], IMAGE[:, ::-1]) for e in flipped)
    assert 70 <= mirrored <= 130
    assert all(e["image"].flags.c_contiguous for e in flipped)


def test_random_caption_draws_from_all():
    example = {"caption": "a", "captions": ["a", "b", "c"]}
    drawn = {random_caption(example, example_rng(0, i, 0))["caption"] for i in range(50)}
    assert drawn == {"a", "b", "c"}


def test_an_image_with_one_caption_keeps_it():
    example = {"image": IMAGE, "caption": "a"}
    drawn = image_transform(12, caption="random")(example, example_rng(0, 0, 0))
    assert drawn["caption"] == "a"
    with pytest.raises(ValueError, match=r"data\.caption='any'.*'first', 'random'"):
        image_transform(12, caption="any")


def test_transforms_travel_to_worker_processes():
    transform = image_transform(8, crop="random", flip=0.5)
    assert pickle.loads(pickle.dumps(transform)) == transform
    assert transform == Compose((Resize(8, "random"), RandomFlip(0.5)))
    assert image_transform(8) == Compose((Resize(8),))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Resize(0), "size=0"),
        (lambda: RandomFlip(1.5), "p=1.5"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
