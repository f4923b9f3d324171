"""The three ways to 299 pixels, as torch, Pillow and TensorFlow go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.evaluation.resizing import RESIZES, resize, resize_matrix
from tests.golden_makers.image_metrics import RESIZES as CASES
from tests.golden_makers.image_metrics import picked, picture


@pytest.mark.parametrize("mode", RESIZES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_reference_within_a_hundredth_of_a_grey_level(goldens, mode, case):
    height, width, size = case
    image = picture(height, width)
    found = jax.jit(resize, static_argnums=(1, 2))(image[None], mode, size)[0]
    assert found.shape == (size, size, 3)
    with np.load(goldens / "evaluation_resizing.npz") as file:
        expected = file[f"{mode}/{height}x{width}/{size}"]
    assert np.abs(np.asarray(found)[picked(size)] - expected).max() < 0.01


@pytest.mark.parametrize("mode", RESIZES)
def test_an_image_of_one_colour_stays(mode):
    for size in (20, 75, 300):
        matrix = resize_matrix(mode, 75, size)
        np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(resize_matrix(mode, 75, 75), np.eye(75))


def test_only_clean_sees_all_pixels_where_images_shrink():
    seen = {mode: (resize_matrix(mode, 600, 100) != 0).any(axis=0).mean() for mode in RESIZES}
    assert seen["clean"] == 1
    assert max(seen["legacy"], seen["tensorflow"]) < 0.4


def test_modes_are_named():
    with pytest.raises(ValueError, match="resize='claen': did you mean 'clean'"):
        resize(jnp.zeros((1, 8, 8, 3)), "claen", 299)
