"""Captions to what the networks are conditioned on, and to what alignment is measured against."""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ldm_scaling.checkpoint.identity import weights_hash
from ldm_scaling.checkpoint.packaged import MICRO_MAX_TOKENS, load_minilm
from ldm_scaling.encoders import TextConfig, encode_text, sentence_embedding
from ldm_scaling.encoders.tokenizers import load_tokenizer
from ldm_scaling.evaluation.files import cached_array
from ldm_scaling.types import Params

MAX_TOKENS = 77  # of models that do not say it: CLIP's, and what Stable Diffusion's family gives T5


class TextEncoder:
    """Captions to contexts, with a frozen encoder of any kind.

    What a context holds at padding is the encoder's business, see `encoders.text`.

    Attributes:
      max_tokens: length of a context; longer captions are cut.
    """

    def __init__(
        self,
        config: TextConfig,
        params: Params,
        tokenizer: Path,
        max_tokens: int | None = None,
        batch_size: int = 64,
    ):
        """Takes weights and the folder of their tokenizer; see `packaged`.

        Args:
          config, params: the encoder.
          tokenizer: folder.
          max_tokens: default `MAX_TOKENS`, or less where the encoder takes less.
          batch_size: captions encoded at a time.
        """
        self._tokenize = load_tokenizer(tokenizer)
        self._config, self._params, self._batch_size = config, params, batch_size
        self.max_tokens = max_tokens or min(MAX_TOKENS, self._tokenize.longest or MAX_TOKENS)
        self._encode = jax.jit(functools.partial(encode_text, config))

    @classmethod
    def packaged(cls, max_tokens: int = MICRO_MAX_TOKENS) -> "TextEncoder":
        """MiniLM-L6, from its PyPI package."""
        return cls(*load_minilm(), max_tokens=max_tokens)

    def __call__(self, captions: Sequence[str]) -> Float[np.ndarray, "N L D"]:
        """Contexts, float32; "" gives the unconditional one. Long ones are cut, with a warning."""
        found = []
        for start in range(0, len(captions), self._batch_size):
            part = list(captions[start : start + self._batch_size])
            padded = part + [""] * (self._batch_size - len(part))  # one shape, one compilation
            ids, mask = self._tokenize(padded, self.max_tokens)
            found.append(np.asarray(self._encode(self._params, ids, mask))[: len(part)])
        return np.concatenate(found)

    def cached(self, captions: Sequence[str], folder: Path) -> Float[np.ndarray, "N L D"]:
        """Contexts kept in `folder`, under a name that weights, settings and captions decide."""
        encoder = [weights_hash(self._params), repr(self._config)]
        settings = json.dumps([*encoder, self.max_tokens, list(captions)])
        name = hashlib.sha256(settings.encode()).hexdigest()[:16]
        return cached_array(folder / f"context-{name}.npy", lambda: self(captions))


def sentence_embeddings(context: Float[np.ndarray, "N L D"]) -> Float[np.ndarray, "N D"]:
    """Unit vectors along the mean over a caption's tokens, MiniLM's own way to pool them."""
    mask = (context != 0).any(axis=-1)
    return np.asarray(sentence_embedding(jnp.asarray(context), jnp.asarray(mask)))
