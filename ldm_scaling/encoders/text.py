"""The one door to text encoders: whoever turns prompts into a context need not know their kind.

BERT, T5   padding is masked and its states are zero, so that a context's length says nothing
CLIP       padding is read as text is and its states are kept: what Stable Diffusion and those
           after it were trained on (diffusers passes no mask)
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from ldm_scaling.encoders.bert import Bert, BertConfig
from ldm_scaling.encoders.clip import ClipText, ClipTextConfig
from ldm_scaling.encoders.t5 import T5, T5Config
from ldm_scaling.types import Context, Params, TokenIds

TextConfig: TypeAlias = BertConfig | ClipTextConfig | T5Config


class _Kind(NamedTuple):
    """What is particular to a kind of encoder.

    Attributes:
      module: config -> linen module, called with token ids and mask.
      size: name of the config's field with the features of a token.
      reads_padding: see above.
      library_names: transformers' classes of the encoder and of its tokenizer.
    """

    module: Callable[[Any], Any]
    size: str
    reads_padding: bool
    library_names: tuple[str, str]


_KINDS: dict[type, _Kind] = {
    BertConfig: _Kind(Bert, "hidden_size", False, ("BertModel", "BertTokenizerFast")),
    ClipTextConfig: _Kind(ClipText, "hidden_size", True, ("CLIPTextModel", "CLIPTokenizer")),
    T5Config: _Kind(T5, "d_model", False, ("T5EncoderModel", "T5TokenizerFast")),
}


def context_size(config: TextConfig) -> int:
    """Features of a token of the context."""
    return getattr(config, _KINDS[type(config)].size)


def library_names(config: TextConfig) -> tuple[str, str]:
    """transformers' classes of the encoder and of its tokenizer, for model_index.json."""
    # Also of a CLIP with a projection: diffusers would take the pooled state of that class.
    return _KINDS[type(config)].library_names


def text_params(config: TextConfig) -> Params:
    """Names and shapes of the parameters; nothing is allocated."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    module = _KINDS[type(config)].module(config)
    return jax.eval_shape(module.init, jax.random.key(0), ids, ids)["params"]


def encode_text(
    config: TextConfig, params: Params, token_ids: TokenIds, token_mask: TokenIds
) -> Context:
    """Token ids and mask (1 = token, 0 = padding) [B, L] -> context [B, L, D], float32.

    Args:
      config, params: the encoder.
      token_ids: as its tokenizer pads them; for CLIP the padding token matters.
      token_mask: of the tokens; CLIP does not use it, see above.

    Raises:
      ValueError: more tokens than the encoder has positions.
    """
    kind = _KINDS[type(config)]
    module = kind.module(config)
    if kind.reads_padding:
        return module.apply({"params": params}, token_ids, None).context
    hidden = module.apply({"params": params}, token_ids, token_mask)
    return hidden * token_mask[..., None].astype(hidden.dtype)
