"""Weights of transformers' text encoders, CLIP and DINOv2 under the names of their own classes.

The same weights travel in many wrappings: with a head or a decoder, as a part of a larger model,
with or without a prefix. What belongs to the encoder is kept, what is known not to is left aside,
and anything else stays, to be named by the strict comparison that follows.
"""

import re
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from ldm_scaling.checkpoint.stored import AnyArray
from ldm_scaling.encoders.bert import BertConfig
from ldm_scaling.encoders.t5 import T5Config
from ldm_scaling.encoders.text import TextConfig

State: TypeAlias = Mapping[str, AnyArray]  # names as in the file -> arrays

_POSITION_NUMBERS = re.compile(r"(.*\.)?embeddings\.position_ids$")  # a buffer of old files
_NOT_OF_BERT = re.compile(r"pooler\.|cls\.")
_NOT_OF_CLIP_TEXT = re.compile(r"vision_model\.|visual_projection\.|logit_scale$")
_NOT_OF_T5_ENCODER = re.compile(r"decoder\.|lm_head\.")
_NOT_OF_DINOV2 = re.compile(r"embeddings\.mask_token$|classifier\.")
_T5_TABLE, _T5_TIED = "shared.weight", "encoder.embed_tokens.weight"


def text_state(config: TextConfig, state: State) -> dict[str, AnyArray]:
    """The arrays of a text encoder, named as `names.file_name` names its parameters.

    Raises:
      ValueError: T5's table of tokens is there twice, with different values.
    """
    if isinstance(config, BertConfig):
        stripped = {name.removeprefix("bert."): array for name, array in state.items()}
        return _without(_NOT_OF_BERT, stripped)
    if isinstance(config, T5Config):
        return _t5_state(state)
    kept = _without(_NOT_OF_CLIP_TEXT, state)
    if any(name.startswith("text_model.") for name in kept):
        return kept
    # transformers 5 saves a CLIPTextModel without the prefix.
    return {
        k if k.startswith("text_projection.") else f"text_model.{k}": v for k, v in kept.items()
    }


def clip_state(state: State) -> dict[str, AnyArray]:
    """The arrays of a whole CLIP."""
    return {name: array for name, array in state.items() if not _POSITION_NUMBERS.match(name)}


def dinov2_state(state: State) -> dict[str, AnyArray]:
    """The arrays of a DINOv2, also from a file of its classifier."""
    stripped = {name.removeprefix("dinov2."): array for name, array in state.items()}
    return _without(_NOT_OF_DINOV2, stripped)


def _t5_state(state: State) -> dict[str, AnyArray]:
    kept = _without(_NOT_OF_T5_ENCODER, state)
    tied = kept.pop(_T5_TIED, None)  # the encoder's own name of the one table of tokens
    if tied is not None and not np.array_equal(kept.setdefault(_T5_TABLE, tied), tied):
        raise ValueError(f"{_T5_TIED} differs from {_T5_TABLE}: in a T5 the two are one table")
    return kept


def _without(pattern: re.Pattern[str], state: State) -> dict[str, AnyArray]:
    return {
        name: array
        for name, array in state.items()
        if not (pattern.match(name) or _POSITION_NUMBERS.match(name))
    }
