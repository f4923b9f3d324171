"""A pipeline made by diffusers: opened here, one image from one noise, and back again."""

import jax
import numpy as np
import pytest

from ldm_scaling.checkpoint.conversion import convert_folder
from ldm_scaling.diffusion import classifier_free_guidance, sample, sampler_table, to_denoiser
from ldm_scaling.encoders import Autoencoder
from ldm_scaling.evaluation import Model
from ldm_scaling.unet import UNet
from tests.make_pipeline import make_pipeline

pytestmark = pytest.mark.slow
PROMPTS, NEGATIVE = ["red apple", "a cat face on the moon"], "blurry"
GUIDANCE, STEPS = 5.0, 8


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def pipeline(request, tmp_path_factory):
    """A small pipeline as Stable Diffusion 2, and its folder."""
    for name in ("torch", "diffusers", "transformers"):
        pytest.importorskip(name)
    made = make_pipeline(request.param)
    home = tmp_path_factory.mktemp("pipeline")
    made.save_pretrained(home)
    return made, home


@pytest.fixture(scope="module")
def back(pipeline, tmp_path_factory):
    """The same pipeline after import and export, as diffusers opens it."""
    import diffusers

    _, home = pipeline
    folder = tmp_path_factory.mktemp("converted") / "new"
    convert_folder(home, folder, vae=home / "vae")
    found = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    found.set_progress_bar_config(disable=True)
    return found


def test_weights_come_back_unchanged(pipeline, back):
    for name in ("unet", "vae", "text_encoder"):
        before, after = getattr(pipeline[0], name).state_dict(), getattr(back, name).state_dict()
        assert before.keys() == after.keys()
        for key in before:
            np.testing.assert_array_equal(before[key].numpy(), after[key].numpy(), key)
    ids = [pipe.tokenizer(PROMPTS, padding="max_length").input_ids for pipe in (pipeline[0], back)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_the_same_noise_gives_the_same_image_in_both(pipeline, back, sampler):
    import diffusers
    import torch

    _, home = pipeline
    model = Model.from_folder(home)
    noise = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    if sampler == "dpmpp_2m":
        config = {**back.scheduler.config, "algorithm_type": "dpmsolver++", "solver_order": 2}
        config["timestep_spacing"] = "leading"
        scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config)
    else:
        scheduler = diffusers.DDIMScheduler.from_config(back.scheduler.config)
    other = diffusers.StableDiffusionPipeline(
        **{**back.components, "scheduler": scheduler}, requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    expected = other(
        PROMPTS,
        negative_prompt=[NEGATIVE] * 2,
        latents=latents * scheduler.init_noise_sigma,
        guidance_scale=GUIDANCE,
        num_inference_steps=STEPS,
        output_type="np",
    ).images

    unet = UNet(model.unet)
    params, context = model.params, model.text_encoder(PROMPTS)
    table = sampler_table(sampler, model.schedule, STEPS, spacing="leading")

    @jax.jit
    def draw(params, context, negative, noise):
        def model_fn(x, t, c):
            return unet.apply({"params": params["unet"]}, x, t, c)

        guided = classifier_free_guidance(model_fn, GUIDANCE, negative)
        denoise = to_denoiser(guided, context, model.schedule, model.unet.prediction_type)
        keys = jax.random.split(jax.random.key(0), len(noise))
        latents = sample(denoise, table, noise, keys) / model.autoencoder.scaling_factor
        decoder = Autoencoder(model.autoencoder)
        return decoder.apply({"params": params["autoencoder"]}, latents, method="decode")

    found = draw(params, context, model.text_encoder([NEGATIVE]), noise)
    found = np.clip(np.asarray(found) / 2 + 0.5, 0, 1)
    assert np.ptp(found) > 0.2  # an image, not a constant
    assert np.abs(found - expected).max() <= 2 / 255
