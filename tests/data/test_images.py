"""Every image mode becomes sensible RGB, and every damaged file a short reason."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from ldm_scaling.data.images import UnreadableImageError, array_to_rgb, decode_rgb


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
