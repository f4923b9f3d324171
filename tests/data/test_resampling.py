"""A box of a picture, scaled: exact where nothing is scaled, Pillow's picture elsewhere."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ldm_scaling.data import resampling
from ldm_scaling.data.resampling import SUPPORT, resample


def picture(height=50, width=70):
    """Smooth colours with some sharp edges."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 5) * np.cos(y / 7), (x // 9 + y // 11) % 2, x / width]
    return np.stack([np.uint8(127 + 100 * w) for w in waves], axis=-1)


def whole(pixels, size, method):
    """Pillow's way: scale all of it, then cut the middle."""
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    scaled = (round(width * scale), round(height * scale))
    image = Image.fromarray(pixels).resize(scaled, Image.Resampling[method.upper()])
    left, top = ((side - size) // 2 for side in scaled)
    array = np.asarray(image)[top : top + size, left : left + size]
    x, y = width / scaled[0], height / scaled[1]
    return array, (left * x, top * y, (left + size) * x, (top + size) * y)


@pytest.fixture(params=["simd", "pillow"])
def kind(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    resampling._simd.cache_clear()
    yield request.param
    resampling._simd.cache_clear()


@pytest.mark.parametrize("method", [name for name in SUPPORT if name != "box"])
@pytest.mark.parametrize("size", [17, 32, 49, 64, 131])
def test_a_box_is_the_same_part_of_the_whole_scaled_picture(kind, method, size):
    for pixels in (picture(), picture(70, 50), picture(51, 51)):
        expected, box = whole(pixels, size, method)
        found = resample(pixels, box, size, method)
        assert found.dtype == np.uint8
        difference = np.abs(found.astype(int) - expected)
        assert difference.mean() < 0.5
        assert difference.max() <= 4


def test_a_box_filter_takes_means(kind):
    pixels = picture()
    means = pixels[10:50, 6:46].reshape(10, 4, 10, 4, 3).mean((1, 3))
    found = resample(pixels, (6.0, 10.0, 46.0, 50.0), 10, "box")
    assert np.abs(found - means).max() <= 1


def test_the_fast_way_is_what_is_installed_here():
    resampling._simd.cache_clear()
    assert resampling._simd() is not None


def test_nothing_is_changed_where_nothing_is_scaled(kind):
    pixels = picture()
    np.testing.assert_array_equal(resample(pixels, (3.0, 5.0, 33.0, 35.0), 30), pixels[5:35, 3:33])


def test_what_lies_beside_the_box_enters_and_nothing_else(kind):
    """The filter reaches over the edge of the box, as far as it does inside; never further."""
    pixels = picture(60, 60)
    box = (20.0, 20.0, 40.0, 40.0)
    reference = resample(pixels, box, 10)
    near, far = pixels.copy(), pixels.copy()
    near[:, 40:42] = 255 - near[:, 40:42]
    far[:, 46:] = 255 - far[:, 46:]
    assert not np.array_equal(resample(near, box, 10), reference)
    np.testing.assert_array_equal(resample(far, box, 10), reference)


def test_threads_do_not_share_buffers(kind):
    pictures = [np.roll(picture(), i, axis=1) for i in range(16)]
    box = (1.5, 0.0, 51.5, 50.0)
    alone = [resample(pixels, box, 33) for pixels in pictures]
    with ThreadPoolExecutor(8) as pool:
        many = pool.map(lambda i: resample(pictures[i % 16], box, 33), range(320))
    for i, found in enumerate(many):
        np.testing.assert_array_equal(found, alone[i % 16])


def test_unknown_filters_are_named():
    with pytest.raises(ValueError, match="filter='bicubik': did you mean 'bicubic'"):
        resample(picture(), (0.0, 0.0, 9.0, 9.0), 3, "bicubik")
