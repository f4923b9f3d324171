"""One door to every kind of text encoder."""

import jax
import numpy as np
import pytest

from ldm_scaling.encoders.text import context_size, encode_text, library_names, text_params
from tests.checkpoint.test_text_encoders import TEXTS

IDS = np.array([[1, 5, 19, 0, 0], [1, 19, 0, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]], np.int32)


@pytest.fixture(scope="module")
def encoded():
    """encoded(name, ids, mask) -> context of one of TEXTS, with random weights."""

    def encode(name, ids, mask):
        config, rng = TEXTS[name], np.random.default_rng(0)
        params = jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), text_params(config)
        )
        run = jax.jit(
            lambda ids, mask: encode_text(config, params, ids, mask),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        return np.asarray(run(ids, mask))

    return encode


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_padding_of_bert_and_t5_is_masked_and_zero(encoded, name):
    a = encoded(name, IDS, MASK)
    assert a.shape == (2, 5, 8)
    assert ((a != 0).any(-1) == MASK).all()
    np.testing.assert_array_equal(encoded(name, np.where(MASK, IDS, 7), MASK), a)


@pytest.mark.parametrize("name", ["clip", "clip gelu", "clip penultimate"])
def test_padding_of_clip_is_read_and_kept(encoded, name):
    a = encoded(name, IDS, MASK)
    assert a.shape == (2, 5, 8)
    assert (a != 0).any(-1).all()
    np.testing.assert_array_equal(encoded(name, IDS, np.ones_like(MASK)), a)
    b = encoded(name, np.where(MASK, IDS, 7), MASK)
    changed = (a != b).any(-1)
    np.testing.assert_array_equal(changed, MASK == 0)  # a token does not see what follows it


def test_what_others_call_them():
    assert {name: context_size(config) for name, config in TEXTS.items()} == dict.fromkeys(TEXTS, 8)
    assert library_names(TEXTS["bert"]) == ("BertModel", "BertTokenizerFast")
    assert library_names(TEXTS["clip"]) == ("CLIPTextModel", "CLIPTokenizer")
    assert library_names(TEXTS["t5"]) == ("T5EncoderModel", "T5TokenizerFast")
