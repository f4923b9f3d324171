"""Prompts -> token ids, with the `tokenizers` library and a model's own vocabulary.

Folders with tokenizer.json are read directly. Older ones hold the parts it is made of (vocab.json
and merges.txt of Stable Diffusion's CLIP, spiece.model of T5), which transformers puts together.
"""

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

_PARTS = ("vocab.json", "spiece.model", "vocab.txt")  # one of them says which tokens there are
_NO_LIMIT = 10**9  # transformers writes 10^30 where a model has no longest prompt


def load_tokenizer(folder: str | PathLike) -> "Tokenizer":
    """Reads the tokenizer of a folder, its padding token and the longest prompt of its model.

    Stable Diffusion 1.x pads with its end token, 2.x with "!", T5 with "<pad>": the folder's
    tokenizer_config.json or special_tokens_map.json says so, else tokenizer.json.

    Raises:
      FileNotFoundError: the folder has neither tokenizer.json nor the parts of one.
      ImportError: there is only spiece.model, and not the package that reads it.
    """
    home = Path(folder)
    path = home / "tokenizer.json"
    if path.is_file():
        fast = FastTokenizer.from_file(str(path))
    elif any((home / name).is_file() for name in _PARTS):
        fast = _assembled(home)
    else:
        raise FileNotFoundError(
            f"{path}: no such file, nor any of {', '.join(_PARTS)}; a tokenizer folder holds one"
        )
    config = _read(home / "tokenizer_config.json")
    special = _read(home / "special_tokens_map.json")
    longest = config.get("model_max_length")
    if longest is not None and longest > _NO_LIMIT:
        longest = None
    return Tokenizer(fast, _padding_id(fast, config, special), longest)


def _assembled(folder: Path) -> FastTokenizer:
    """By transformers, which needs no PyTorch for it."""
    if (folder / "spiece.model").is_file():
        try:
            # For transformers, which without it would ask for a package that is of no use.
            from sentencepiece import sentencepiece_model_pb2  # noqa: F401
        except Exception as error:  # 0.2.3 asks for protobuf 7, and has an error of its own for it
            raise ImportError(
                f"{folder} has spiece.model and no tokenizer.json; to read it: "
                f"pip install 'sentencepiece<0.2.3' ({error})"
            ) from error
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # A plain copy: transformers gives its own object another way to decode.
    return FastTokenizer.from_str(made.backend_tokenizer.to_str())


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _padding_id(fast: FastTokenizer, *sources: dict[str, Any]) -> int:
    for source in sources:
        token: Any = source.get("pad_token")
        if isinstance(token, dict):  # a serialised AddedToken
            token = token["content"]
        token_id = fast.token_to_id(token) if token is not None else None
        if token_id is not None:
            return token_id
    return fast.padding["pad_id"] if fast.padding else 0


class Tokenizer:
    """`tokenizer(prompts, max_tokens) -> (ids, mask)`; make one with `load_tokenizer`.

    Attributes:
      longest: tokens of the longest prompt that the model takes, 77 for CLIP; None: any length.
    """

    def __init__(self, fast: FastTokenizer, padding_id: int, longest: int | None = None):
        # Lengths are the caller's business; the file may carry its own.
        fast.no_truncation()
        fast.no_padding()
        self._fast = fast
        self._padding_id = padding_id
        self.longest = longest

    def __call__(
        self, prompts: Iterable[Any], max_tokens: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask, both int32 [B, max_tokens]; the mask is 1 at tokens, 0 at padding.

        Special tokens are added and count. A prompt that does not fit loses its end, and a warning
        says what was cut. An empty prompt is allowed.

        Args:
          prompts: list of strings.
          max_tokens: length of each row; default the longest prompt that the model takes.

        Raises:
            TypeError: `prompts` is one string, or has an entry that is not a string.
            ValueError: `max_tokens` leaves no room beside the special tokens, or is not given and
              the model takes any length.
        """
        prompts = _checked(prompts)
        max_tokens = self._length(max_tokens)
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

    def _length(self, max_tokens: int | None) -> int:
        specials = self._fast.num_special_tokens_to_add(is_pair=False)
        length = self.longest if max_tokens is None else max_tokens
        if length is None:
            raise ValueError("max_tokens=None: this tokenizer has no longest prompt; give a length")
        if length <= specials:
            raise ValueError(f"max_tokens={length}: needs to exceed the {specials} special tokens")
        return length


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
