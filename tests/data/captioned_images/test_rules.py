"""Which images are kept, and that they are kept as they are."""

import io

import numpy as np
import pytest
from PIL import Image

from ldm_scaling.data.captioned_images import Entry, Problem, Rules
from tests.data.captioned_images.sources import jpeg


def png(mode="RGB", size=(8, 8)):
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


def entry(image=None, captions=("a caption",), score=None):
    return Entry("key", jpeg() if image is None else image, captions, score)


def test_what_is_kept_is_not_touched():
    for image in (jpeg(), png("RGBA"), png("L")):
        assert Rules().apply(entry(image)) == entry(image)


@pytest.mark.parametrize(
    ("rules", "what", "reason", "detail"),
    [
        ({"min_side": 31}, entry(jpeg(size=(40, 30))), "small", "40x30"),
        ({"max_aspect": 1.3}, entry(jpeg(size=(30, 40))), "long", "30x40"),
        ({"min_caption": 10}, entry(captions=("123456789", "1")), "caption length", "9, 1 char"),
        ({"max_caption": 8}, entry(), "caption length", "9 characters"),
        ({"min_score": 5.0}, entry(score=4.9), "low score", "4.9"),
        ({"max_bytes": 100}, entry(), "too many bytes", "of 100 allowed"),
        ({"max_pixels": 1199}, entry(jpeg(size=(40, 30))), "too many pixels", "40x30"),
        ({}, entry(b"no image"), "broken image", "not an image"),
        ({}, entry(jpeg()[:-200]), "broken image", "does not decode"),
    ],
)
def test_each_rule_drops_and_says_why(rules, what, reason, detail):
    found = Rules(**rules).apply(what)
    assert isinstance(found, Problem)
    assert (found.reason, found.key) == (reason, "key")
    assert detail in found.detail


@pytest.mark.parametrize(
    ("rules", "what"),
    [
        ({"min_side": 30}, entry(jpeg(size=(40, 30)))),
        ({"max_aspect": 1.334}, entry(jpeg(size=(40, 30)))),
        ({"min_caption": 9, "max_caption": 9}, entry()),
        ({"min_score": 5.0}, entry(score=5.0)),
        ({"min_score": 5.0}, entry(score=None)),
        ({"max_pixels": 1200}, entry(jpeg(size=(40, 30)))),
    ],
)
def test_bounds_belong_to_what_is_kept(rules, what):
    assert Rules(**rules).apply(what) == what


def test_captions_that_do_not_fit_are_left_out():
    kept = Rules(min_caption=2, max_caption=3).apply(entry(captions=("1", "22", "333", "4444")))
    assert kept.captions == ("22", "333")


def test_a_decompression_bomb_is_not_decoded():
    bomb = bytearray(png())
    bomb[16:24] = (2**15).to_bytes(4, "big") * 2  # the header's width and height: 2**30 pixels
    crc = __import__("zlib").crc32(bomb[12:29])
    bomb[29:33] = crc.to_bytes(4, "big")
    found = Rules().apply(entry(bytes(bomb)))
    assert found.reason == "too many pixels"


def test_max_side_makes_long_images_smaller():
    large, small = jpeg(1, size=(60, 45)), jpeg(1, size=(20, 30))
    kept = Rules(max_side=30).apply(entry(large))
    with Image.open(io.BytesIO(kept.image)) as image:
        assert (image.format, image.size) == ("JPEG", (40, 30))
        assert image.layer[1][1:3] == image.layer[0][1:3]  # no chroma subsampling
        found = np.asarray(image).astype(int)
    with Image.open(io.BytesIO(large)) as image:
        exact = np.asarray(image.resize((40, 30), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(found - exact).mean() < 2
    assert Rules(max_side=30).apply(entry(small)).image == small


@pytest.mark.parametrize(
    "settings",
    [
        {"min_side": -1},
        {"max_aspect": 0.5},
        {"min_caption": 0},
        {"max_caption": -1},
        {"max_caption": 3, "min_caption": 4},
        {"max_side": -1},
        {"max_side": 64, "min_side": 65},
        {"max_pixels": 0},
        {"max_bytes": 0},
        {"test_share": 1.0},
        {"test_share": -0.1},
    ],
)
def test_impossible_settings_are_named(settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Rules(**settings)
