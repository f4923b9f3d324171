"""What transformers saves opens here and computes the same, and goes back unchanged.

Needs `pip install torch transformers`; run with `pytest -m slow`.
"""

import jax
import numpy as np
import pytest

from ldm_scaling.checkpoint.diffusers import (
    export_text_encoder,
    import_clip,
    import_text_encoder,
)
from ldm_scaling.encoders.clip import ClipText
from ldm_scaling.encoders.clip_vision import Clip
from ldm_scaling.encoders.text import encode_text

pytestmark = pytest.mark.slow

CLIP = {
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 59,
    "projection_dim": 20,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
T5 = {
    "vocab_size": 60,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 4,
}
BERT = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}
# Class of transformers -> (its config class, its arguments)
MODELS = {
    "BertModel": ("BertConfig", BERT),
    "CLIPTextModel": ("CLIPTextConfig", CLIP),
    "CLIPTextModelWithProjection": ("CLIPTextConfig", {**CLIP, "hidden_act": "gelu"}),
    "T5EncoderModel": ("T5Config", {**T5, "feed_forward_proj": "gated-gelu"}),
    "T5ForConditionalGeneration": ("T5Config", {**T5, "feed_forward_proj": "relu"}),
}
WRITTEN_AS = {"T5ForConditionalGeneration": "T5EncoderModel"}
IDS = np.random.default_rng(0).integers(1, 59, (3, 10))
IDS[:, 7] = 59  # the end of each prompt
MASK = (np.arange(10) < np.array([[10], [8], [8]])).astype(np.int64)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def transformers(torch):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers


def randomised(model, torch):
    with torch.no_grad():
        for parameter in model.parameters():
            width = parameter.shape[-1] if parameter.ndim else 1
            parameter.normal_(0, max(width, 8) ** -0.5)
    return model.eval()


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    return np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("name", MODELS)
def test_text_encoders(transformers, torch, tmp_path, name):
    kind, fields = MODELS[name]
    config = getattr(transformers, kind)(**fields, attn_implementation="eager")
    theirs = randomised(getattr(transformers, name)(config), torch)
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = import_text_encoder(tmp_path / "theirs")

    ids, mask = torch.from_numpy(IDS), torch.from_numpy(MASK)
    encode = jax.jit(lambda ids, mask: encode_text(config, params, ids, mask))
    context = encode(IDS.astype(np.int32), MASK.astype(np.int32))
    if name.startswith("CLIP"):
        output = theirs(ids)
        expected = output.last_hidden_state
        pooled = jax.jit(ClipText(config).apply)({"params": params}, IDS.astype(np.int32)).pooled
        projected = name.endswith("WithProjection")
        assert close(pooled, output.text_embeds if projected else output.pooler_output)
    else:
        encoder = theirs.encoder if name in WRITTEN_AS else theirs
        expected = encoder(ids, mask).last_hidden_state * mask[..., None]
    assert close(context, expected)

    export_text_encoder(config, params, tmp_path / "ours")
    written_as = getattr(transformers, WRITTEN_AS.get(name, name))
    back, info = written_as.from_pretrained(tmp_path / "ours", output_loading_info=True)
    differing = set().union(*(info[f"{kind}_keys"] for kind in ("missing", "unexpected")))
    assert all(key.startswith("pooler.") for key in differing), info
    assert not info["mismatched_keys"], info
    state = theirs.state_dict()
    for key, tensor in back.state_dict().items():
        if not key.startswith("pooler."):
            assert torch.equal(tensor, state[key]), key
    for field in fields.keys() - {"num_decoder_layers", "bos_token_id"}:
        if name != "CLIPTextModel" or field != "projection_dim":
            assert getattr(back.config, field) == getattr(theirs.config, field), field


def test_whole_clip(transformers, torch, tmp_path):
    config = transformers.CLIPConfig(
        text_config=CLIP, vision_config=VISION, projection_dim=20, attn_implementation="eager"
    )
    theirs = randomised(transformers.CLIPModel(config), torch)
    theirs.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    output = theirs(torch.from_numpy(IDS), torch.tensor(pixels.transpose(0, 3, 1, 2)))
    config, params = import_clip(tmp_path)
    apply = jax.jit(Clip(config).apply)
    image, text, _ = apply({"params": params}, pixels, IDS.astype(np.int32))
    assert close(image, output.image_embeds)
    assert close(text, output.text_embeds)
    # The text encoder alone, from the same folder.
    config, params = import_text_encoder(tmp_path)
    assert config.projection_dim == 20
    pooled = jax.jit(ClipText(config).apply)({"params": params}, IDS.astype(np.int32)).pooled
    unit = pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)
    assert close(unit, output.text_embeds)


def test_half_precision_in_shards(transformers, torch, tmp_path):
    config = transformers.T5Config(**T5, feed_forward_proj="gated-gelu")
    theirs = randomised(transformers.T5EncoderModel(config), torch).half()
    theirs.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    _, params = import_text_encoder(tmp_path)
    found = params["encoder"]["final_layer_norm"]["scale"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(
        found, theirs.encoder.final_layer_norm.weight.float().numpy(force=True)
    )
