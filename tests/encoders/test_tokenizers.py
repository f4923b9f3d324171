import builtins
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from absl import logging
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ldm_scaling.encoders.tokenizers import load_tokenizer
from tests.encoders.vocabularies import openai_merges, write_clip


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


@pytest.fixture
def said(monkeypatch):
    """Warnings, as they are given."""
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


def test_pads_to_max_tokens_and_takes_an_empty_prompt(tokenizer):
    ids, mask = tokenizer(["red apple", ""], 5)
    np.testing.assert_array_equal(ids, [[1, 4, 5, 2, 0], [1, 2, 0, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])


def test_truncation_keeps_the_closing_token_and_is_said_once(tokenizer, said):
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
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no such file, nor any of vocab"):
        load_tokenizer(tmp_path)


def test_a_length_is_needed_where_the_model_takes_any(tokenizer):
    assert tokenizer.longest is None
    with pytest.raises(ValueError, match="no longest prompt"):
        tokenizer(["red"])


@pytest.mark.parametrize(("padding", "padding_id"), [("<|endoftext|>", 515), ("!", 0)])
def test_clip_in_parts(tmp_path, said, padding, padding_id):
    """As Stable Diffusion 1.x and 2.x have it; 77 tokens, and what does not fit is said."""
    write_clip(tmp_path, ["c a", "ca t</w>"], padding)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.longest == 77
    ids, mask = tokenizer(["A  Cat", ""])
    assert ids.shape == mask.shape == (2, 77)
    # start, "a" that ends a word, the merged word, end
    np.testing.assert_array_equal(ids[0, :4], [514, 256 + ord("a") - ord("!"), 513, 515])
    np.testing.assert_array_equal(ids[1, :2], [514, 515])
    np.testing.assert_array_equal(ids[0, 4:], padding_id)
    np.testing.assert_array_equal(mask.sum(1), [4, 2])
    assert not said

    long = " ".join(["cat"] * 75 + ["dog"])  # the start and the end count, too
    ids, mask = tokenizer([long, " ".join(["cat"] * 75)])
    np.testing.assert_array_equal(ids[0], ids[1])
    assert (ids[0, -1], mask.min()) == (515, 1)
    (text,) = said
    assert "1 of 2 prompts exceed max_tokens=77" in text
    assert text.endswith("lost 'dog'")


def test_t5_pads_with_its_own_token(tmp_path):
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁red", -1.0), ("▁cat", -2.0)]
    fast = Tokenizer(models.Unigram(words, unk_id=2))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    fast.save(str(tmp_path / "tokenizer.json"))
    config = {"pad_token": {"content": "<pad>"}, "model_max_length": int(1e30)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.longest is None
    ids, mask = tokenizer(["red cat", ""], 5)
    np.testing.assert_array_equal(ids, [[3, 4, 1, 0, 0], [1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])


def test_padding_of_the_special_tokens_map(tmp_path):
    write_clip(tmp_path, [], "!")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "#"}')
    assert load_tokenizer(tmp_path)(["a"], 4)[0][0, -1] == 2


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    plain = builtins.__import__

    def without(name, *args, **options):
        if name == "sentencepiece":
            raise ImportError(name)
        return plain(name, *args, **options)

    (tmp_path / "spiece.model").write_bytes(b"")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"to read it: pip install 'sentencepiece<0\.2\.3'"):
        load_tokenizer(tmp_path)


@pytest.mark.slow
def test_clips_whole_vocabulary(load_golden, tmp_path):
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        pytest.skip("needs pip install --no-deps open-clip-torch, for CLIP's byte pairs")
    write_clip(tmp_path, openai_merges(Path(spec.submodule_search_locations[0])), "!")
    tokenizer = load_tokenizer(tmp_path)
    _, arrays = load_golden("clip_tokens")
    straight = [not set(prompt) & set("“”‘’") for prompt in arrays["prompts"]]
    assert sum(straight) == 9
    for n in (77, 9):
        ids, mask = tokenizer(arrays["prompts"], n)
        np.testing.assert_array_equal(ids, arrays[f"ids_{n}"])
        np.testing.assert_array_equal(mask, arrays[f"mask_{n}"])
        # OpenCLIP's own makes curly quotes straight; else all three agree.
        np.testing.assert_array_equal(ids[straight], arrays[f"open_clip_{n}"][straight])


@pytest.mark.slow
def test_t5_from_its_sentence_pieces(tmp_path):
    spm = pytest.importorskip("sentencepiece", reason="needs pip install 'sentencepiece<0.2.3'")
    transformers = pytest.importorskip("transformers")
    sentences = ["a red apple", "the face of a cat", "a cat and an apple", "red red cat"] * 20
    (tmp_path / "text").write_text("\n".join(sentences))
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=40,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    prompts = ["a red cat", "", "an unseen word: Ωmega"]
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.longest == 512
    ids, mask = tokenizer(prompts, 16)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    fit = {"padding": "max_length", "truncation": True, "max_length": 16}
    expected = theirs(prompts, **fit, return_tensors="np")
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"])
    pieces = spm.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    assert list(ids[0, : mask[0].sum()]) == [*pieces.encode(prompts[0]), 1]
    # The same from the tokenizer.json that transformers writes of it.
    saved = tmp_path / "saved"
    theirs.save_pretrained(saved)
    assert (saved / "tokenizer.json").is_file()
    np.testing.assert_array_equal(load_tokenizer(saved)(prompts, 16)[0], ids)
