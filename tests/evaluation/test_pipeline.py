"""`TextToImage`: one compilation, places in the list draw independently, bad input is explained."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from ldm_scaling.evaluation import Model, generate
from ldm_scaling.evaluation.pictures import LABEL_HEIGHT, MARGIN, image_grid, save_grid
from ldm_scaling.pipeline import TextToImage
from ldm_scaling.sharding import make_mesh
from tests.evaluation.conftest import HashedText


@pytest.fixture(scope="module")
def draw(models):
    generate.drawing_program.cache_clear()
    model = Model.from_folder(models / "early", minilm=HashedText())
    return TextToImage(dataclasses.replace(model, text_encoder=HashedText()), batch_size=2)


def test_draws_what_is_asked_and_compiles_once(draw):
    first = draw(["a", "b", "c"], steps=3, guidance=2.0)
    assert first.shape == (3, 8, 8, 3)
    assert first.dtype == np.uint8
    for sampler in ("ddim", "ddpm", "dpmpp_2m"):
        for steps, guidance in ((1, 1.0), (5, [1.0, 7.5, 3.0])):
            draw(["a", "b", ""], sampler=sampler, steps=steps, guidance=guidance, seed=1)
    assert draw._generator._draw._cache_size() == 1


def test_an_image_depends_on_its_own_prompt_place_and_rate_only(draw):
    alone = draw("a", steps=2, guidance=3.0)
    among = draw(["a", "b", "c"], steps=2, guidance=[3.0, 1.0, 5.0])
    assert np.abs(alone[0].astype(int) - among[0]).max() <= 1
    twice = draw(["a", "a"], steps=2, guidance=3.0)
    assert np.abs(twice[0].astype(int) - twice[1]).max() > 1
    other = draw("a", steps=2, guidance=3.0, seed=1)
    assert np.abs(alone.astype(int) - other).max() > 1


def test_guidance_leads_away_from_the_negative_prompt(draw):
    options = {"steps": 2, "guidance": 50.0}  # the tiny model hardly hears its prompts
    plain, other = draw("a", **options), draw("a", negative_prompt="b", **options)
    assert np.abs(plain.astype(int) - other).max() > 1
    np.testing.assert_array_equal(draw("a", negative_prompt="", **options), plain)
    # One for each: every image has its own, whatever the others' are.
    each = draw(["a", "a", "c"], negative_prompt=["b", "", "d"], **options)
    all_b = draw(["a", "a", "c"], negative_prompt="b", **options)
    none = draw(["a", "a", "c"], **options)
    assert np.abs(each[0].astype(int) - all_b[0]).max() <= 1
    assert np.abs(each[1].astype(int) - none[1]).max() <= 1
    for i, unlike in ((0, none), (1, all_b), (2, all_b), (2, none)):
        assert np.abs(each[i].astype(int) - unlike[i]).max() > 1
    # The prompt itself leaves nothing to be guided by, and without guidance there is no effect.
    away = draw("a", negative_prompt="a", **options)
    unguided = draw("a", negative_prompt="b", steps=2, guidance=1.0)
    assert np.abs(away.astype(int) - unguided).max() <= 1
    assert draw._generator._draw._cache_size() == 1


@pytest.mark.parametrize("sizes", [{"replica": 8, "fsdp": 1}, {"replica": 1, "fsdp": 8}])
def test_an_imported_pipeline_draws_the_same_on_one_device_and_on_eight(stable_diffusion, sizes):
    prompts = ["a cat", "red apple", "a cat"]
    options = {"negative_prompt": "blurry", "steps": 4, "guidance": 5.0}
    alone = TextToImage.from_pretrained(stable_diffusion)(prompts, **options)
    spread = TextToImage.from_pretrained(stable_diffusion, mesh=make_mesh(**sizes))
    placed = spread._generator._params["unet"]
    sharded = [leaf for leaf in jax.tree.leaves(placed) if not leaf.is_fully_replicated]
    assert bool(sharded) == (sizes["fsdp"] == 8)
    for leaf in sharded:
        assert leaf.addressable_data(0).size * 8 == leaf.size
    found = spread(prompts, **options)
    assert np.abs(found.astype(int) - alone).max() <= 1
    assert np.mean((alone > 0) & (alone < 255)) > 0.1
    assert len(np.unique(alone.reshape(3, -1), axis=0)) == 3


def test_the_batch_is_one_that_the_devices_share(stable_diffusion):
    model = Model.from_folder(stable_diffusion)
    for devices, expected in ((1, 8), (3, 9), (8, 8)):
        mesh = make_mesh(devices=jax.devices()[:devices])
        assert TextToImage(model, mesh=mesh)._generator.batch_size == expected
    with pytest.raises(ValueError, match=r"batch_size=4: must be a multiple of .* = 8"):
        TextToImage(model, batch_size=4, mesh=make_mesh())


def test_default_spacing_is_the_models(draw):
    assert draw.model.card.spacing == "trailing"
    chosen = draw("a", steps=2, guidance=1.0, spacing="trailing")
    np.testing.assert_array_equal(draw("a", steps=2, guidance=1.0), chosen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "dimm"}, "did you mean 'ddim'"),
        ({"spacing": "traling"}, "did you mean 'trailing'"),
        ({"steps": 0}, "steps=0: a sampler needs at least 1 step"),
        ({"steps": 1001}, "steps=1001"),
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": [1.0, 2.0]}, "2 rates for 1 prompts"),
        ({"negative_prompt": ["b", "c"]}, "negative_prompt: 2 for 1 prompts; give one for all"),
    ],
)
def test_bad_options_are_explained(draw, options, message):
    with pytest.raises(ValueError, match=message):
        draw(["a"], **{"steps": 2, **options})


def test_no_prompts_is_an_error(draw):
    with pytest.raises(ValueError, match="at least 1 prompt"):
        draw([])


def test_unknown_model_names_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
        TextToImage.from_pretrained(tmp_path / "none")


def test_grid_places_images_under_their_labels(tmp_path):
    images = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (10, 20, 30)])
    grid = np.asarray(image_grid(images, columns=2, labels=["first", "second"]))
    top = MARGIN + LABEL_HEIGHT
    assert (grid[top : top + 8, MARGIN : MARGIN + 8] == 10).all()
    assert (grid[top : top + 8, 2 * MARGIN + 8 : 2 * MARGIN + 16] == 20).all()
    second = 2 * MARGIN + 8 + 2 * LABEL_HEIGHT
    assert (grid[second : second + 8, MARGIN : MARGIN + 8] == 30).all()
    save_grid(tmp_path / "new" / "grid.png", images, columns=2)
    with Image.open(tmp_path / "new" / "grid.png") as saved:
        assert saved.size == (3 * MARGIN + 16, 3 * MARGIN + 16)
