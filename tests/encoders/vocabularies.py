"""Folders of tokenizers in the parts that older models have them in."""

import gzip
import json
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS_OF_OPENAI = 49408


def printable_bytes() -> list[str]:
    """A printable character for each byte, in the order of CLIP's vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def write_clip(folder: Path, merges: list[str], padding: str) -> None:
    """vocab.json, merges.txt and tokenizer_config.json, as a pipeline's tokenizer/ holds them."""
    letters = printable_bytes()
    ends = [f"{letter}</w>" for letter in letters]
    words = [*letters, *ends, *("".join(merge.split()) for merge in merges), START, END]
    vocabulary = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": padding}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def openai_merges(package: Path) -> list[str]:
    """Byte pairs of CLIP, from the file that open_clip carries; it holds more than are used."""
    text = gzip.decompress((package / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
    return text.split("\n")[1 : TOKENS_OF_OPENAI - 2 * 256 - 2 + 1]
