"""Prompts -> token ids, with the `tokenizers` library and a model's own tokenizer.json."""

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer


def load_tokenizer(folder: str | PathLike) -> "Tokenizer":
    """Reads `tokenizer.json` (and `tokenizer_config.json`, for the padding token) of a folder.

    Raises:
        FileNotFoundError: the folder has no tokenizer.json.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a tokenizer folder holds tokenizer.json")
    fast = FastTokenizer.from_file(str(path))
    return Tokenizer(fast, _padding_id(fast, path.with_name("tokenizer_config.json")))


def _padding_id(fast: FastTokenizer, config_path: Path) -> int:
    token: Any = None
    if config_path.is_file():
        token = json.loads(config_path.read_text(encoding="utf-8")).get("pad_token")
    if isinstance(token, dict):  # a serialised AddedToken
        token = token["content"]
    token_id = fast.token_to_id(token) if token is not None else None
    if token_id is not None:
        return token_id
    return fast.padding["pad_id"] if fast.padding else 0


class Tokenizer:
    """`tokenizer(prompts, max_tokens) -> (ids, mask)`; make one with `load_tokenizer`."""

    def __init__(self, fast: FastTokenizer, padding_id: int):
        # Lengths are the caller's business; the file may carry its own.
        fast.no_truncation()
        fast.no_padding()
        self._fast = fast
        self._padding_id = padding_id

    def __call__(self, prompts: Iterable[Any], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask, both int32 [B, max_tokens]; the mask is 1 at tokens, 0 at padding.

        Special tokens are added and count. A prompt that does not fit loses its end, and a warning
        says what was cut. An empty prompt is allowed.

        Raises:
            TypeError: `prompts` is one string, or has an entry that is not a string.
            ValueError: `max_tokens` leaves no room beside the special tokens.
        """
        prompts = _checked(prompts)
        specials = self._fast.num_special_tokens_to_add(is_pair=False)
        if max_tokens <= specials:
            raise ValueError(
                f"max_tokens={max_tokens}: needs to exceed the {specials} special tokens"
            )
        ids = np.full((len(prompts), max_tokens), self._padding_id, np.int32)
        mask = np.zeros((len(prompts), max_tokens), np.int32)
        cuts = []
        for i, encoding in enumerate(self._fast.encode_batch(prompts)):
            tokens, end = _fit(encoding, max_tokens)
            ids[i, : len(tokens)] = tokens
            mask[i, : len(tokens)] = 1
            if end is not None:
                cuts.append(f"{prompts[i]!r} lost {prompts[i][end:].strip()!r}")
        if cuts:
            logging.warning(
                "%d of %d prompts exceed max_tokens=%d and are truncated: %s",
                *(len(cuts), len(prompts), max_tokens, "; ".join(cuts)),
            )
        return ids, mask


def _checked(prompts: Iterable[Any]) -> list[str]:
    if isinstance(prompts, str):
        raise TypeError(f"prompts={prompts!r}: give a list of strings, not one string")
    prompts = list(prompts)
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(
                f"prompts[{i}]={prompt!r}: a prompt is a string, not {type(prompt).__name__}"
            )
    return [str(prompt) for prompt in prompts]  # numpy strings too


def _fit(encoding: Encoding, max_tokens: int) -> tuple[list[int], int | None]:
    """Token ids of at most `max_tokens`, closing special tokens kept; where the text was cut."""
    ids = encoding.ids
    if len(ids) <= max_tokens:
        return ids, None
    closing = 0
    while encoding.special_tokens_mask[-1 - closing]:
        closing += 1
    kept = max_tokens - closing
    return ids[:kept] + ids[len(ids) - closing :], encoding.offsets[kept - 1][1]
