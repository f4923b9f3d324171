"""Text encoders in transformers' layout: round trips, wrappings, options we refuse."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from ldm_scaling.checkpoint.diffusers import (
    export_text_encoder,
    import_clip,
    import_text_encoder,
)
from ldm_scaling.checkpoint.diffusers_config import UnsupportedConfigError
from ldm_scaling.checkpoint.merge import KeyMismatchError
from ldm_scaling.checkpoint.names import to_file
from ldm_scaling.checkpoint.transformers_config import (
    clip_from_transformers,
    text_from_transformers,
    text_to_transformers,
)
from ldm_scaling.encoders import BertConfig, ClipTextConfig, ClipVisionConfig, T5Config
from ldm_scaling.encoders.clip_vision import Clip, ClipConfig
from ldm_scaling.encoders.text import text_params
from tests.checkpoint.networks import assert_same, random_like

CLIP = ClipTextConfig(
    vocab_size=20,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=6,
    eos_token_id=19,
)
TEXTS = {
    "bert": BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=6,
    ),
    "clip": CLIP,
    "clip gelu": dataclasses.replace(CLIP, hidden_act="gelu", projection_dim=5, eos_token_id=2),
    "clip penultimate": dataclasses.replace(CLIP, skipped_layers=1),
    "t5": T5Config(vocab_size=20, d_model=8, d_kv=3, d_ff=12, num_layers=2, num_heads=2),
    "t5 relu": T5Config(
        vocab_size=20,
        d_model=8,
        d_kv=3,
        d_ff=12,
        num_layers=1,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        layer_norm_epsilon=1e-5,
        feed_forward_proj="relu",
    ),
}
# As transformers wrote it in 2022 for openai/clip-vit-large-patch14, shortened to Stable Diffusion
# 1.x's text encoder.
SD1 = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}
# Of google/t5-v1_1-large.
T5_LARGE = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 2816,
    "d_kv": 64,
    "d_model": 1024,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 16,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 32128,
}


@pytest.fixture(scope="module")
def made():
    """made(name) -> config, params, config.json, state dict of one of TEXTS."""

    def make(name):
        config = TEXTS[name]
        params = random_like(text_params(config))
        return (
            config,
            params,
            text_to_transformers(config),
            {k: np.asarray(v) for k, v in to_file(params).items()},
        )

    return make


@pytest.mark.parametrize("name", TEXTS)
def test_round_trip_is_bitwise(tmp_path, made, name):
    config, params, _, _ = made(name)
    export_text_encoder(config, params, tmp_path)
    read, found = import_text_encoder(tmp_path)
    assert read == config
    assert_same(found, params)
    export_text_encoder(read, found, tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_half_precision_and_shards(tmp_path, made):
    config, params, _, _ = made("t5")
    export_text_encoder(config, params, tmp_path, "float16")
    expected = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params)
    assert_same(import_text_encoder(tmp_path)[1], expected)
    whole = tmp_path / "model.safetensors"
    state = safetensors.numpy.load_file(whole)
    whole.unlink()
    home = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(state))}
    for shard in set(home.values()):
        part = {name: array for name, array in state.items() if home[name] == shard}
        safetensors.numpy.save_file(part, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": home}))
    assert_same(import_text_encoder(tmp_path)[1], expected)


def test_clip_in_other_wrappings(made):
    config, params, raw, state = made("clip")
    bare = {name.removeprefix("text_model."): array for name, array in state.items()}
    old = {**state, "text_model.embeddings.position_ids": np.arange(6)[None]}
    for wrapped in (bare, old):
        assert_same(import_text_encoder(wrapped, raw)[1], params)
    # A projection that nobody announced is not dropped in silence, ...
    extra = {**state, "text_projection.weight": np.zeros((5, 8), np.float32)}
    with pytest.raises(KeyMismatchError, match=r"unexpected:\n +text_projection\.weight"):
        import_text_encoder(extra, raw)
    # ... and is taken where the config does not say what it is of.
    unsaid = {k: v for k, v in raw.items() if k != "architectures"} | {"projection_dim": 5}
    assert import_text_encoder(extra, unsaid)[0].projection_dim == 5
    assert import_text_encoder(state, unsaid)[0] == config


def test_t5_in_other_wrappings(made):
    _, params, raw, state = made("t5")
    table = state["shared.weight"]
    whole = {
        **state,
        "encoder.embed_tokens.weight": table,
        "decoder.embed_tokens.weight": table,
        "decoder.block.0.layer.0.layer_norm.weight": np.zeros(8, np.float32),
        "lm_head.weight": np.zeros((20, 8), np.float32),
    }
    assert_same(import_text_encoder(whole, raw)[1], params)
    tied = {k: v for k, v in state.items() if k != "shared.weight"}
    tied["encoder.embed_tokens.weight"] = table
    assert_same(import_text_encoder(tied, raw)[1], params)
    with pytest.raises(ValueError, match=r"embed_tokens\.weight differs from shared\.weight"):
        import_text_encoder({**state, "encoder.embed_tokens.weight": table + 1}, raw)
    with pytest.raises(KeyMismatchError, match=r"missing:\n +shared\.weight"):
        import_text_encoder({k: v for k, v in state.items() if k != "shared.weight"}, raw)


def test_whole_clip_gives_both_encoders_or_its_text_encoder():
    vision = ClipVisionConfig(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=4,
        patch_size=2,
    )
    config = ClipConfig(CLIP, vision, 5)
    inputs = (np.zeros((1, 4, 4, 3), np.float32), np.zeros((1, 6), np.int32))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
    params = random_like(jax.eval_shape(Clip(config).init, jax.random.key(0), *shapes)["params"])
    state = {**to_file(params), "vision_model.embeddings.position_ids": np.arange(5)[None]}
    part = {k: v for k, v in text_to_transformers(CLIP).items() if not k.startswith("arch")}
    raw = {
        "model_type": "clip",
        "projection_dim": 5,
        "text_config": part,
        "vision_config": {k: v for k, v in dataclasses.asdict(vision).items() if k != "dtype"},
        "logit_scale_init_value": 2.6592,
        "architectures": ["CLIPModel"],
    }
    read, found = import_clip(state, raw)
    assert read == config
    assert_same(found, params)
    text, found = import_text_encoder(state, raw)
    assert text == dataclasses.replace(CLIP, projection_dim=5)
    assert_same(found, {k: params[k] for k in ("text_model", "text_projection")})
    # Files of OpenCLIP have it twice, once incomplete.
    twice = {**raw, "text_config": {**part, "hidden_act": "relu"}, "text_config_dict": part}
    assert clip_from_transformers(twice) == config


def test_configs_of_the_world():
    assert text_from_transformers(SD1, False) == ClipTextConfig(eos_token_id=2)
    sd2 = {
        **SD1,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "projection_dim": 512,
    }
    assert text_from_transformers(sd2, False) == ClipTextConfig(
        hidden_act="gelu",
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_hidden_layers=23,
        eos_token_id=2,
    )
    assert text_from_transformers(T5_LARGE, False) == T5Config()
    few = {"model_type": "t5", "feed_forward_proj": "gated-gelu"}  # transformers' defaults
    assert text_from_transformers(few, False) == T5Config(
        d_model=512, d_ff=2048, num_layers=6, num_heads=8
    )


@pytest.mark.parametrize(
    ("raw", "change", "message"),
    [
        (SD1, {"hidden_act": "gelu_new"}, "hidden_act='gelu_new': did you mean 'gelu'"),
        (SD1, {"hidden_sise": 8}, r"hidden_sise=8: not a known .* nearest known is hidden_size"),
        (SD1, {"is_decoder": True}, "is_decoder=True: only False"),
        (SD1, {"num_attention_heads": 7}, "num_attention_heads=7: must divide"),
        (SD1, {"model_type": "clip_text"}, "'clip_text': did you mean 'clip_text_model'"),
        (T5_LARGE, {"feed_forward_proj": "gated-silu"}, "'gated-silu': did you mean 'gated-gelu'"),
        (T5_LARGE, {"num_head": 4}, "num_head=4: not a known .* nearest known is num_heads"),
        (T5_LARGE, {"model_type": "umt5"}, "model_type='umt5': did you mean 't5'"),
    ],
)
def test_unsupported_options_are_named(raw, change, message):
    with pytest.raises(UnsupportedConfigError, match=message):
        text_from_transformers({**raw, **change}, False)


def test_export_refuses_params_of_another_encoder(tmp_path, made):
    _, params, _, _ = made("clip")
    with pytest.raises(KeyMismatchError, match="params to export"):
        export_text_encoder(TEXTS["clip gelu"], params, tmp_path)
