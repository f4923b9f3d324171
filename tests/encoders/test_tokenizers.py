import numpy as np
import pytest
from absl import logging
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ldm_scaling.encoders.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "red", "apple", "cat", "face"]
    vocabulary = {word: i for i, word in enumerate(words)}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    fast.enable_truncation(3)  # a file's own lengths must not matter
    fast.enable_padding(length=50)
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def test_pads_to_max_tokens_and_takes_an_empty_prompt(tokenizer):
    ids, mask = tokenizer(["red apple", ""], 5)
    np.testing.assert_array_equal(ids, [[1, 4, 5, 2, 0], [1, 2, 0, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])


def test_truncation_keeps_the_closing_token_and_is_said_once(tokenizer, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    ids, mask = tokenizer(["red cat face apple", "cat", "apple face red cat"], 4)
    np.testing.assert_array_equal(ids, [[1, 4, 6, 2], [1, 6, 2, 0], [1, 5, 7, 2]])
    assert mask.sum() == 11
    (text,) = said
    assert "2 of 3 prompts exceed max_tokens=4" in text
    assert "'red cat face apple' lost 'face apple'" in text


@pytest.mark.parametrize("prompt", [None, 3, b"red"])
def test_a_prompt_that_is_no_string(tokenizer, prompt):
    with pytest.raises(TypeError, match=r"prompts\[1\]=.*a prompt is a string"):
        tokenizer(["red", prompt], 4)


def test_one_string_instead_of_a_list(tokenizer):
    with pytest.raises(TypeError, match="give a list of strings"):
        tokenizer("red", 4)


def test_no_room_for_words(tokenizer):
    with pytest.raises(ValueError, match="max_tokens=2"):
        tokenizer(["red"], 2)


def test_folder_without_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
