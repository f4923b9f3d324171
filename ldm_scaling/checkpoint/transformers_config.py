"""The config.json of transformers' text encoders, CLIP and DINOv2, to and from our configs.

As in `diffusers_config`, options we do not have are refused and defaults are those of the library
(transformers 5.23). Its files carry many fields that every model has and no encoder reads.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ldm_scaling.checkpoint.diffusers_config import (
    IGNORED,
    UnsupportedConfigError,
    one_value,
    read_fields,
    require,
)
from ldm_scaling.encoders.bert import BertConfig
from ldm_scaling.encoders.clip import ClipTextConfig
from ldm_scaling.encoders.clip_vision import ClipConfig, ClipVisionConfig
from ldm_scaling.encoders.dinov2 import Dinov2Config
from ldm_scaling.encoders.t5 import T5Config
from ldm_scaling.encoders.text import TextConfig
from ldm_scaling.naming import check_name

Config = TypeVar("Config")

# What transformers 4 and 5 write into the config of any model: how text is generated, which labels
# a classifier has, how a run was set up. None of it is read here.
# fmt: off
_OF_ANY_MODEL = (
    "architectures", "attn_implementation", "bad_words_ids", "begin_suppress_tokens",
    "bos_token_id", "chunk_size_feed_forward", "cross_attention_hidden_size",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping",
    "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing",
    "id2label", "label2id", "length_penalty", "max_length", "min_length", "model_type",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_past", "output_scores", "pad_token_id",
    "prefix", "problem_type", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params",
    "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version",
    "typical_p", "use_bfloat16", "use_cache",
)
# fmt: on
_FIXED_OF_ANY_MODEL: dict[str, Any] = {
    **dict.fromkeys(_OF_ANY_MODEL, IGNORED),
    "add_cross_attention": False,
    "is_decoder": False,
    "pruned_heads": {},
}

_BERT_FIXED: dict[str, Any] = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_BERT_SIZES = tuple(BertConfig.__dataclass_fields__)

_TOWER_READ: dict[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_CLIP_TEXT_READ: dict[str, Any] = {
    **_TOWER_READ,
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "projection_dim": 512,
    "eos_token_id": 49407,
}
_CLIP_VISION_READ: dict[str, Any] = {
    **_TOWER_READ,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
_TOWER_FIXED: dict[str, Any] = {
    **_FIXED_OF_ANY_MODEL,
    "attention_dropout": IGNORED,
    "dropout": IGNORED,
    "initializer_factor": IGNORED,
    "initializer_range": IGNORED,
    "is_encoder_decoder": False,
    "projection_dim": IGNORED,  # of a whole CLIP, which says it itself
}
_CLIP_READ: dict[str, Any] = {"projection_dim": 512}
_CLIP_FIXED: dict[str, Any] = {
    **_FIXED_OF_ANY_MODEL,
    "initializer_factor": IGNORED,
    "is_encoder_decoder": False,
    "logit_scale_init_value": IGNORED,
    **dict.fromkeys(
        ("text_config", "text_config_dict", "vision_config", "vision_config_dict"), IGNORED
    ),
}

_T5_READ: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}
_T5_FIXED: dict[str, Any] = {
    **_FIXED_OF_ANY_MODEL,
    "classifier_dropout": IGNORED,
    "dense_act_fn": IGNORED,  # it and the next follow from feed_forward_proj
    "is_gated_act": IGNORED,
    "dropout_rate": IGNORED,
    "initializer_factor": IGNORED,
    "is_encoder_decoder": IGNORED,  # it and the next are about the decoder
    "num_decoder_layers": IGNORED,
    "scale_decoder_outputs": IGNORED,
    "n_positions": IGNORED,  # any length runs
}

_DINOV2_READ: dict[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 14,
    "use_swiglu_ffn": False,
}
_DINOV2_FIXED: dict[str, Any] = {
    **_FIXED_OF_ANY_MODEL,
    "attention_probs_dropout_prob": IGNORED,
    "drop_path_rate": IGNORED,
    "hidden_dropout_prob": IGNORED,
    "initializer_range": IGNORED,
    "is_encoder_decoder": False,
    "layerscale_value": IGNORED,  # at the start of training
    "qkv_bias": True,
    "use_mask_token": IGNORED,  # of training
    **dict.fromkeys(  # of a backbone, which gives more than the last states
        ("apply_layernorm", "out_features", "out_indices", "reshape_hidden_states", "stage_names"),
        IGNORED,
    ),
}


def text_from_transformers(config: Mapping[str, Any], has_projection: bool) -> TextConfig:
    """config.json of a text encoder, or of a whole CLIP or T5 -> config of the text encoder.

    Args:
      config: `model_type` says the kind.
      has_projection: whether the weights have CLIP's text projection, where `architectures` does
        not say it.

    Raises:
      UnsupportedConfigError: names the field and its value.
      ValueError: a field that decides the size is not there.
    """
    readers: dict[str, Callable[[], TextConfig]] = {
        "bert": lambda: _bert(config),
        "clip": lambda: _clip_text(_part(config, "text"), _whole_projection(config)),
        "clip_text_model": lambda: _clip_text(config, _own_projection(config, has_projection)),
        "t5": lambda: _build(T5Config, read_fields(config, "T5", _T5_READ, _T5_FIXED)),
    }
    kind = str(config.get("model_type", "bert"))  # a BERT's was not always written
    try:
        check_name("model_type", kind, readers)
    except ValueError as error:
        raise UnsupportedConfigError(str(error)) from None
    return readers[kind]()


def text_to_transformers(config: TextConfig) -> dict[str, Any]:
    """Config of a text encoder -> config.json; the compute dtype is left out.

    transformers takes the state of another layer as an argument of each call, so that it has no
    field for `skipped_layers`: here it stands as a note.
    """
    if isinstance(config, BertConfig):
        sizes = {name: getattr(config, name) for name in _BERT_SIZES}
        return {"architectures": ["BertModel"], "model_type": "bert", **_BERT_FIXED, **sizes}
    if isinstance(config, T5Config):
        sizes = {name: getattr(config, name) for name in _T5_READ}
        return {
            "architectures": ["T5EncoderModel"],
            "model_type": "t5",
            "is_encoder_decoder": False,
            **sizes,
        }
    written = {name: getattr(config, name) for name in _CLIP_TEXT_READ}
    has_projection = written.pop("projection_dim") is not None
    if has_projection:
        written["projection_dim"] = config.projection_dim
    if config.skipped_layers:
        written["_skipped_layers"] = config.skipped_layers
    name = "CLIPTextModelWithProjection" if has_projection else "CLIPTextModel"
    return {"architectures": [name], "model_type": "clip_text_model", **written}


def clip_from_transformers(config: Mapping[str, Any]) -> ClipConfig:
    """config.json of a `CLIPModel` -> `ClipConfig`. Raises UnsupportedConfigError."""
    require("model_type", config.get("model_type", "clip"), "clip")
    projection_dim = _whole_projection(config)
    vision = read_fields(
        _part(config, "vision"), "CLIPVisionConfig", _CLIP_VISION_READ, _TOWER_FIXED
    )
    return ClipConfig(
        _clip_text(_part(config, "text"), None), _build(ClipVisionConfig, vision), projection_dim
    )


def dinov2_from_transformers(config: Mapping[str, Any]) -> Dinov2Config:
    """config.json of a `Dinov2Model` -> `Dinov2Config`.

    Raises UnsupportedConfigError, also for `dinov2_with_registers`: it has more tokens, and
    interpolates its positions with antialiasing.
    """
    require("model_type", config.get("model_type"), "dinov2")
    fields = read_fields(config, "Dinov2Model", _DINOV2_READ, _DINOV2_FIXED)
    fields |= {name: one_value(name, fields[name]) for name in ("image_size", "patch_size")}
    inner = int(fields["hidden_size"] * fields.pop("mlp_ratio"))
    if fields["use_swiglu_ffn"]:
        inner = (int(inner * 2 / 3) + 7) // 8 * 8  # two thirds: a gate is a third matrix
    return _build(Dinov2Config, {**fields, "intermediate_size": inner})


def _bert(config: Mapping[str, Any]) -> BertConfig:
    for name, supported in _BERT_FIXED.items():
        require(name, config.get(name, supported), supported)
    if missing := [name for name in _BERT_SIZES if name not in config]:
        raise ValueError(f"config.json of a BERT lacks {', '.join(missing)}")
    return _build(BertConfig, {name: config[name] for name in _BERT_SIZES})


def _clip_text(config: Mapping[str, Any], projection_dim: int | None) -> ClipTextConfig:
    fields = read_fields(config, "CLIPTextConfig", _CLIP_TEXT_READ, _TOWER_FIXED)
    skipped = config.get("_skipped_layers", 0)
    fields |= {"projection_dim": projection_dim, "skipped_layers": skipped}
    return _build(ClipTextConfig, fields)


def _whole_projection(config: Mapping[str, Any]) -> int:
    return read_fields(config, "CLIPConfig", _CLIP_READ, _CLIP_FIXED)["projection_dim"]


def _own_projection(config: Mapping[str, Any], has_projection: bool) -> int | None:
    size = config.get("projection_dim", _CLIP_TEXT_READ["projection_dim"])
    names = config.get("architectures") or ()
    if "CLIPTextModelWithProjection" in names or (not names and has_projection):
        return size
    return None


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A tower's config within a whole CLIP's. Old files have two; the second one is believed."""
    second = config.get(f"{name}_config_dict")
    return second if second is not None else config.get(f"{name}_config") or {}


def _build(cls: Callable[..., Config], fields: Mapping[str, Any]) -> Config:
    """Our own checks name field and value too."""
    try:
        return cls(**fields)
    except ValueError as error:
        raise UnsupportedConfigError(str(error)) from None
