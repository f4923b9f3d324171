"""CLIP against transformers' models, and what its architecture promises."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.encoders.clip import ClipText, ClipTextConfig, prompt_end
from ldm_scaling.encoders.clip_vision import (
    Clip,
    ClipConfig,
    ClipVision,
    ClipVisionConfig,
    clip_pixels,
)
from tests.encoders.conftest import assert_close, root_mean_square

IDS = jax.ShapeDtypeStruct((1, 4), jnp.int32)
# Root mean square of bfloat16's errors, of the values'; seen: 0.0083 (transformers' own: 0.0084)
# over all states, up to 0.013 over the few pooled ones.
BFLOAT16 = 0.02


QUICK = {"xla_backend_optimization_level": 0}  # compiling is most of the time here


@pytest.fixture(scope="module")
def text(load_golden, golden_params):
    """text(name) -> config, variables, arrays."""

    @functools.cache
    def load(name):
        fields, arrays = load_golden(f"clip_{name}")
        config = ClipTextConfig(**fields)
        ids = arrays["ids_7"].astype(np.int32)
        return config, {"params": golden_params(ClipText(config), arrays, ids)}, arrays

    return load


def run(config, variables, *inputs):
    return jax.jit(ClipText(config).apply, compiler_options=QUICK)(variables, *inputs)


@pytest.fixture(scope="module")
def whole(load_golden, golden_params):
    fields, arrays = load_golden("clip_whole")
    text_fields = {k: v for k, v in fields["text_config"].items() if k != "projection_dim"}
    config = ClipConfig(
        ClipTextConfig(**text_fields),
        ClipVisionConfig(**fields["vision_config"]),
        fields["projection_dim"],
    )
    ids = arrays["ids"].astype(np.int32)
    return config, {"params": golden_params(Clip(config), arrays, arrays["pixels"], ids)}, arrays


@pytest.mark.parametrize("name", ["quick", "gelu"])
@pytest.mark.parametrize("length", ["longest", 7])
def test_matches_transformers(text, name, length):
    config, variables, arrays = text(name)
    length = config.max_position_embeddings if length == "longest" else length
    ids, mask = (arrays[f"{kind}_{length}"].astype(np.int32) for kind in ("ids", "mask"))
    penultimate = dataclasses.replace(config, skipped_layers=1)

    def both(*inputs):  # one program: compiling is most of the time here
        return [ClipText(x).apply(variables, *inputs) for x in (config, penultimate)]

    def everything(ids, mask):
        return both(ids), both(ids, mask)

    found = jax.jit(everything, compiler_options=QUICK)(ids, mask)
    for suffix, (last, before) in zip(("", "_masked"), found, strict=True):
        # Padding has states too, and Stable Diffusion reads them.
        assert_close(last.context, arrays[f"last_{length}{suffix}"])
        assert_close(before.context, arrays[f"penultimate_{length}{suffix}"])
        for output in (last, before):
            assert_close(output.pooled, arrays[f"pooled_{length}{suffix}"])


@pytest.mark.parametrize("name", ["quick", "gelu"])
def test_bfloat16_stays_near_transformers_float32(text, name):
    config, variables, arrays = text(name)
    rough = dataclasses.replace(config, dtype="bfloat16")
    found = run(rough, variables, arrays["ids_7"].astype(np.int32))
    assert found.context.dtype == found.pooled.dtype == jnp.float32
    error = root_mean_square(found.context, arrays["last_7"])
    assert 1e-3 < error < BFLOAT16  # half precision was what ran
    assert error < 1.1 * root_mean_square(arrays["bfloat16_7"], arrays["last_7"])
    assert root_mean_square(found.pooled, arrays["pooled_7"]) < BFLOAT16


def test_the_penultimate_state_is_the_last_of_a_network_without_the_last_layer(text):
    """Stable Diffusion 2.x's two ways to store one encoder."""
    config, variables, arrays = text("quick")
    layers = config.num_hidden_layers - 1
    shallow = dataclasses.replace(config, num_hidden_layers=layers)
    tower = variables["params"]["text_model"]
    kept = {k: v for k, v in tower["encoder"].items() if k != f"layers_{layers}"}
    params = {"text_model": {**tower, "encoder": kept}}
    found = run(shallow, {"params": params}, arrays["ids_20"].astype(np.int32))
    assert_close(found.context, arrays["penultimate_20"])


def test_a_later_token_changes_no_earlier_state(text):
    config, variables, arrays = text("gelu")
    ids = arrays["ids_16"].astype(np.int32)[:1]
    changed = ids.copy()
    changed[0, 9] = (changed[0, 9] + 1) % 50
    a, b = np.asarray(run(config, variables, np.concatenate([ids, changed])).context)
    np.testing.assert_array_equal(a[:9], b[:9])
    assert (np.abs(a[9:] - b[9:]).max(-1) > 1e-3).all()


def test_masked_padding_carries_no_information(text):
    config, variables, arrays = text("gelu")
    ids, mask = (arrays[f"{name}_16"].astype(np.int32) for name in ("ids", "mask"))
    both = np.concatenate([ids, np.where(mask, ids, 7)])
    found = run(config, variables, both, np.concatenate([mask, mask]))
    a, b = (np.split(np.asarray(found.context), 2)[i] * mask[..., None] for i in range(2))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(*np.split(np.asarray(found.pooled), 2))


def test_whole_model_matches_transformers(whole):
    config, variables, arrays = whole
    ids, mask = arrays["ids"].astype(np.int32), arrays["mask"].astype(np.int32)
    apply = jax.jit(Clip(config).apply, compiler_options=QUICK)
    image, texts, scale = apply(variables, arrays["pixels"], ids, mask)
    assert_close(image, arrays["image_embeds"])
    assert_close(texts, arrays["text_embeds"])
    assert_close(scale * (image @ texts.T), arrays["logits_per_image"])
    np.testing.assert_allclose(np.linalg.norm(image, axis=-1), 1, rtol=1e-6)
    vision = {"params": variables["params"]["vision_model"]}
    apply = jax.jit(ClipVision(config.vision).apply, compiler_options=QUICK)
    assert_close(apply(vision, arrays["pixels"]), arrays["pooled"])


def test_whole_model_in_bfloat16(whole):
    config, variables, arrays = whole
    rough = ClipConfig(
        dataclasses.replace(config.text, dtype="bfloat16"),
        dataclasses.replace(config.vision, dtype="bfloat16"),
        config.projection_dim,
    )
    ids = arrays["ids"].astype(np.int32)
    apply = jax.jit(Clip(rough).apply, compiler_options=QUICK)
    image, texts, _ = apply(variables, arrays["pixels"], ids)
    assert root_mean_square(image, arrays["image_embeds"]) < BFLOAT16
    assert root_mean_square(texts, arrays["text_embeds"]) < BFLOAT16
    np.testing.assert_allclose(np.linalg.norm(image, axis=-1), 1, rtol=1e-6)


def test_pixels_are_normalised_as_openais():
    images = jnp.stack([jnp.full((2, 2, 3), value) for value in (-1.0, 0.0, 1.0)])
    first = np.asarray(clip_pixels(images))[:, 0, 0, 0]
    np.testing.assert_allclose(first, (np.array([0, 0.5, 1]) - 0.48145466) / 0.26862954, rtol=1e-6)


def test_the_end_of_a_prompt():
    ids = jnp.array([[1, 5, 9, 9, 9], [1, 9, 2, 3, 4]])
    np.testing.assert_array_equal(prompt_end(ids, 9), [2, 1])
    np.testing.assert_array_equal(prompt_end(ids, 2), [2, 1])  # an old config: the largest


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        # transformers' CLIPTextModel of openai/clip-vit-large-patch14
        ({}, 123_060_480),
        # of stabilityai/stable-diffusion-2-1: 23 layers of OpenCLIP ViT-H/14
        (
            {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 23,
                "num_attention_heads": 16,
                "hidden_act": "gelu",
            },
            340_387_840,
        ),
    ],
)
def test_parameter_counts_are_those_of_stable_diffusion(changes, count):
    module = ClipText(ClipTextConfig(**changes))
    params = jax.eval_shape(module.init, jax.random.key(0), IDS)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (ClipTextConfig, {"num_attention_heads": 7}, "num_attention_heads=7: must divide"),
        (ClipTextConfig, {"hidden_act": "quickgelu"}, "did you mean 'quick_gelu'"),
        (ClipTextConfig, {"dtype": "float16"}, "dtype='float16'"),
        (ClipTextConfig, {"skipped_layers": 13}, "skipped_layers=13: there are num_hidden_layers"),
        (ClipVisionConfig, {"patch_size": 15}, "patch_size=15: must divide 224"),
        (
            ClipConfig,
            {"text": ClipTextConfig(projection_dim=8), "vision": ClipVisionConfig()},
            "text.projection_dim=8: .* give None",
        ),
    ],
)
def test_bad_configs(config, fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_inputs_of_a_wrong_size(whole):
    config, variables, _ = whole
    ids = jax.ShapeDtypeStruct((1, 78), jnp.int32)
    with pytest.raises(ValueError, match="at most 77 tokens"):
        jax.eval_shape(ClipText(ClipTextConfig()).init, jax.random.key(0), ids)
    with pytest.raises(ValueError, match=r"images must be \(12, 12, 3\)"):
        Clip(config).apply(variables, jnp.zeros((1, 8, 12, 3)), method="embed_images")
