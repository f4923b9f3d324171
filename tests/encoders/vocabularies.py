"""Folders of small text encoders, and tokenizers in the parts that older models have them in."""

import gzip
import json
from pathlib import Path

import numpy as np

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS_OF_OPENAI = 49408


def printable_bytes() -> list[str]:
    """A printable character for each byte, in the order of CLIP's vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def write_clip(folder: Path, merges: list[str], padding: str, longest: int = 77) -> None:
    """vocab.json, merges.txt and tokenizer_config.json, as a pipeline's tokenizer/ holds them."""
    letters = printable_bytes()
    ends = [f"{letter}</w>" for letter in letters]
    words = [*letters, *ends, *("".join(merge.split()) for merge in merges), START, END]
    vocabulary = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": longest, "pad_token": padding}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def openai_merges(package: Path) -> list[str]:
    """Byte pairs of CLIP, from the file that open_clip carries; it holds more than are used."""
    text = gzip.decompress((package / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
    return text.split("\n")[1 : TOKENS_OF_OPENAI - 2 * 256 - 2 + 1]


def write_t5(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json, a token for each letter."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -1.0) for c in ["▁", *letters])]
    fast = Tokenizer(models.Unigram(words, unk_id=2))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    fast.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "T5TokenizerFast", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_bert(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json, four words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "red", "disc", "a", "cat"]
    fast = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    fast.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "BertTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def export_random(config, folder: Path) -> None:
    """A text encoder with random weights in its folder."""
    import jax

    from ldm_scaling.checkpoint.diffusers import export_text_encoder
    from ldm_scaling.encoders.text import text_params

    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), text_params(config)
    )
    export_text_encoder(config, params, folder)


def clip_folder(encoder: Path, tokenizer: Path, width: int, longest: int = 12):
    """Writes a small CLIP text encoder and its tokenizer, which may share a folder."""
    from ldm_scaling.encoders import ClipTextConfig

    config = ClipTextConfig(
        vocab_size=515,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=longest,
        eos_token_id=514,
    )
    export_random(config, encoder)
    tokenizer.mkdir(exist_ok=True)
    write_clip(tokenizer, ["c a"], END, longest)
    return config


def t5_folder(encoder: Path, tokenizer: Path, width: int):
    """Writes a small T5 encoder and its tokenizer."""
    from ldm_scaling.encoders import T5Config

    config = T5Config(
        vocab_size=30, d_model=width, d_kv=4, d_ff=2 * width, num_layers=2, num_heads=2
    )
    export_random(config, encoder)
    tokenizer.mkdir(exist_ok=True)
    write_t5(tokenizer)
    return config


def bert_folder(encoder: Path, tokenizer: Path, width: int):
    """Writes a small BERT and its tokenizer."""
    from ldm_scaling.encoders import BertConfig

    config = BertConfig(
        vocab_size=8,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=16,
    )
    export_random(config, encoder)
    tokenizer.mkdir(exist_ok=True)
    write_bert(tokenizer)
    return config


FOLDERS = {"bert": bert_folder, "clip": clip_folder, "t5": t5_folder}
"""Kind -> (encoder's folder, tokenizer's folder, width) -> config."""
