"""Every image mode becomes sensible RGB, and every damaged file a short reason."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from ldm_scaling.data.images import (
    UnreadableImageError,
    array_to_rgb,
    decode_at_least,
    decode_rgb,
    read_size,
)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def filled(mode, colour, kind="PNG"):
    return encoded(Image.new(mode, (6, 4), colour), kind)


def palette_with_transparency():
    image = Image.new("P", (6, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    return encoded(image, transparency=0)


def sixteen_bit(value):
    return encoded(Image.fromarray(np.full((4, 6), value, np.uint16)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (filled("RGB", (1, 2, 3)), (1, 2, 3)),
        (filled("L", 77), (77, 77, 77)),
        (filled("1", 1), (255, 255, 255)),
        (filled("P", 0), (0, 0, 0)),
        (palette_with_transparency(), (255, 255, 255)),
        (filled("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (filled("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (filled("RGBA", (0, 0, 0, 51)), (204, 204, 204)),
        (filled("LA", (0, 51)), (204, 204, 204)),
        (sixteen_bit(65535), (255, 255, 255)),
        (sixteen_bit(257 * 100), (100, 100, 100)),
        (filled("CMYK", (255, 0, 0, 0), "TIFF"), (0, 255, 255)),
    ],
)
def test_modes_become_rgb(data, expected):
    image = decode_rgb(data)
    assert image.dtype == np.uint8
    assert image.shape == (4, 6, 3)
    assert (image == np.array(expected)).all()


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by a quarter
    assert decode_rgb(encoded(image, "JPEG", exif=exif)).shape == (6, 4, 3)


def photograph(width=64, height=48):
    """Smooth as photographs are, with noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(np.uint8(np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255)))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
def test_jpegs_are_decoded_to_the_very_pixels_of_pillow(subsampling, mode, options, tmp_path):
    image = photograph(65, 47).convert(mode)
    data = encoded(
        image, "JPEG", **{"subsampling": subsampling if mode == "RGB" else -1, **options}
    )
    with Image.open(io.BytesIO(data)) as exact:
        expected = np.asarray(exact.convert("RGB"))
    np.testing.assert_array_equal(decode_rgb(data), expected)
    (tmp_path / "a.jpg").write_bytes(data)
    np.testing.assert_array_equal(decode_rgb(tmp_path / "a.jpg"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(), "JPEG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode_rgb(data), expected)
    pixels, sides = decode_at_least(data, 10_000)
    np.testing.assert_array_equal(pixels, expected)
    assert sides == (pixels.shape[1], pixels.shape[0])


@pytest.mark.parametrize(
    ("size", "needed", "shape", "sides"),
    [
        ((640, 480), 640, (480, 640), (640, 480)),
        ((640, 480), 161, (480, 640), (640, 480)),  # a half would leave 1.49 times as much
        ((640, 480), 160, (240, 320), (320, 240)),
        ((641, 481), 160, (241, 321), (320.5, 240.5)),
        ((640, 480), 80, (120, 160), (160, 120)),
        ((643, 480), 40, (60, 81), (80.375, 60)),
        ((640, 480), 1, (60, 80), (80, 60)),
    ],
)
def test_no_more_is_decoded_than_is_needed(size, needed, shape, sides):
    pixels, found = decode_at_least(encoded(photograph(*size), "JPEG"), needed)
    assert pixels.shape[:2] == shape
    assert found == sides


def test_what_is_made_smaller_while_decoded_is_the_same_picture():
    """Closer to the exact way than its noise, and not shifted: an odd side is no whole number."""
    image = photograph(641, 481)
    data = encoded(image, "JPEG", quality=95)
    exact = np.asarray(image.resize((96, 72), Image.Resampling.BICUBIC)).astype(float)
    pixels, (width, height) = decode_at_least(data, 72)
    assert pixels.shape[0] < 481
    resize = Image.fromarray(pixels).resize
    found = np.asarray(resize((96, 72), Image.Resampling.BICUBIC, box=(0, 0, width, height)))
    shifted = np.asarray(resize((96, 72), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(found - exact).mean() < 1
    assert np.abs(found - exact).mean() < np.abs(shifted - exact).mean()


def test_files_that_are_no_plain_jpegs_are_decoded_whole():
    for data in (encoded(photograph()), encoded(photograph().convert("CMYK"), "JPEG")):
        pixels, sides = decode_at_least(data, 4)
        assert pixels.shape == (48, 64, 3)
        assert sides == (64, 48)
        np.testing.assert_array_equal(pixels, decode_rgb(data))


def test_damaged_jpegs_are_left_to_pillow_to_judge():
    data = encoded(photograph(), "JPEG")
    with pytest.raises(UnreadableImageError, match="does not decode"):
        decode_rgb(data[: len(data) // 2])
    # Bytes that belong to nothing are a warning of the decoder, no damage to the picture.
    spoilt = data[:2] + b"\xff\xe5\x00\x04ab" + data[2:-2] + b"\x00\x00" + data[-2:]
    np.testing.assert_array_equal(decode_rgb(spoilt), decode_rgb(data))


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_rgb(data) == (255, 0, 0)).all()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>not found</html>",
        encoded(NOISE)[:2000],
        encoded(NOISE, "JPEG")[:600],
        encoded(NOISE)[:60] + b"\0" * 500,
        encoded(Image.new("F", (4, 4)), "TIFF"),
    ],
    ids=["empty", "html", "torn png", "torn jpeg", "zeroed png", "float tiff"],
)
def test_damaged_images_raise_one_kind_of_error(data):
    with pytest.raises(UnreadableImageError, match=r".+"):
        decode_rgb(data)


def test_damage_anywhere_raises_nothing_else():
    rng = np.random.default_rng(0)
    wholes = [encoded(NOISE, kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")]
    for trial in range(240):
        data = bytearray(wholes[trial % len(wholes)])
        for at in rng.integers(0, min(len(data), 400), 8):
            data[at] = rng.integers(0, 256)
        with contextlib.suppress(UnreadableImageError):
            assert decode_rgb(bytes(data)).dtype == np.uint8


def test_decompression_bombs_are_refused_by_their_header(tmp_path):
    data = encoded(Image.new("1", (3000, 3000)))
    assert len(data) < 3000
    with pytest.raises(UnreadableImageError, match="3000x3000 is more than max_pixels=1000000"):
        decode_rgb(data, max_pixels=10**6)
    (tmp_path / "huge.png").write_bytes(encoded(Image.new("1", (20000, 20000))))
    with pytest.raises(UnreadableImageError):
        decode_rgb(tmp_path / "huge.png")


def test_the_size_is_read_without_decoding():
    assert read_size(encoded(NOISE)[:2000]) == (40, 40)  # torn, and no matter
    with pytest.raises(UnreadableImageError, match="40x40 is more than max_pixels=1599"):
        read_size(encoded(NOISE), max_pixels=1599)
    with pytest.raises(UnreadableImageError, match="not an image"):
        read_size(b"text")


def test_missing_file(tmp_path):
    with pytest.raises(UnreadableImageError, match="no such file"):
        decode_rgb(tmp_path / "none.png")


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_arrays_become_rgb(shape):
    image = array_to_rgb(np.full(shape, 255, np.uint8))
    assert image.shape == (4, 6, 3)
    assert (image == 255).all()


@pytest.mark.parametrize("bad", [np.zeros((4, 6, 2), np.uint8), np.zeros((4, 6, 3), np.float32)])
def test_arrays_of_other_kinds_are_refused(bad):
    with pytest.raises(UnreadableImageError):
        array_to_rgb(bad)
