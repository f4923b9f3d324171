"""Import from and export to the diffusers folder layout: the formats that others open.

A component is a folder with `config.json` and `diffusion_pytorch_model.safetensors`; text encoders,
CLIP and DINOv2 are transformers', with `model.safetensors`. Everything is strict: a missing,
unexpected or misshapen parameter raises `merge.KeyMismatchError` with the difference, an option we
do not have `UnsupportedConfigError`. Parameters come as numpy float32, whatever the file's dtype;
put them on devices as you like.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
from absl import logging
from etils import epath

from ldm_scaling.checkpoint import diffusers_config, names, transformers_config, transformers_names
from ldm_scaling.checkpoint.merge import KeyMismatchError, key_diff
from ldm_scaling.checkpoint.stored import AnyArray
from ldm_scaling.checkpoint.weights_file import read_json, read_weights, write_json, write_weights
from ldm_scaling.encoders.autoencoder import Autoencoder, AutoencoderConfig
from ldm_scaling.encoders.clip_vision import Clip, ClipConfig
from ldm_scaling.encoders.dinov2 import Dinov2, Dinov2Config
from ldm_scaling.encoders.text import TextConfig, text_params
from ldm_scaling.types import Params
from ldm_scaling.unet.config import UNetConfig
from ldm_scaling.unet.unet import UNet

WEIGHTS = "diffusion_pytorch_model"
TEXT_ENCODER_WEIGHTS = "model"
Folder: TypeAlias = str | os.PathLike[str]
State: TypeAlias = Mapping[str, AnyArray]  # names as in the file -> arrays

# Attention of autoencoders saved before diffusers 0.12, some with 1x1 convolutions for layers.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def import_unet(
    folder_or_state: Folder | State, config: Mapping[str, Any] | None = None
) -> tuple[UNetConfig, dict[str, Any]]:
    """Reads a `UNet2DConditionModel`.

    The prediction type is that of `../scheduler/scheduler_config.json` where there is one, else
    the note that `export_unet` left, else "epsilon", which is diffusers' default.

    Args:
      folder_or_state: the folder, or a state dict, which needs `config`.
      config: what config.json would hold; None: it is read from the folder.

    Raises:
      FileNotFoundError, ValueError: see the module; names the file.
    """
    raw, state, source = _open(folder_or_state, config, WEIGHTS)
    noted, prediction_type = raw.get("_prediction_type"), None
    if not isinstance(folder_or_state, Mapping):
        beside = epath.Path(folder_or_state).parent / "scheduler" / "scheduler_config.json"
        prediction_type = read_json(beside).get("prediction_type") if beside.exists() else None
        if noted and prediction_type not in (None, noted):
            message = "%s says prediction_type=%s, and is believed; %s was exported with %s."
            logging.warning(message, beside, prediction_type, source, noted)
    prediction_type = prediction_type or noted or "epsilon"
    unet_config = diffusers_config.unet_from_diffusers(raw, prediction_type)
    return unet_config, names.from_file(_unet_template(unet_config), state, source)


def export_unet(config: UNetConfig, params: Params, folder: Folder, dtype: str = "float32") -> None:
    """Writes what `UNet2DConditionModel.from_pretrained(folder)` opens.

    Args:
      config, params: the network; params are checked against the config.
      folder: made if missing; each file is replaced atomically, the weights first.
      dtype: of the stored weights: "float32", "float16" or "bfloat16".

    Raises:
      KeyMismatchError: params are not those of `config`.
      ValueError: a value does not fit into `dtype`.
    """
    raw = diffusers_config.unet_to_diffusers(config)
    _save(folder, WEIGHTS, raw, _unet_template(config), params, dtype)


def import_autoencoder(
    folder_or_state: Folder | State, config: Mapping[str, Any] | None = None
) -> tuple[AutoencoderConfig, dict[str, Any]]:
    """Reads an `AutoencoderKL`, also of the time when its attention had other names.

    Args and raises as `import_unet`.
    """
    raw, state, source = _open(folder_or_state, config, WEIGHTS)
    vae_config = diffusers_config.autoencoder_from_diffusers(raw)
    state = dict(_renamed_attention(name, array) for name, array in state.items())
    return vae_config, names.from_file(_autoencoder_template(vae_config), state, source)


def export_autoencoder(
    config: AutoencoderConfig, params: Params, folder: Folder, dtype: str = "float32"
) -> None:
    """Writes what `AutoencoderKL.from_pretrained(folder)` opens; see `export_unet`."""
    raw = diffusers_config.autoencoder_to_diffusers(config)
    _save(folder, WEIGHTS, raw, _autoencoder_template(config), params, dtype)


def import_text_encoder(
    folder_or_state: Folder | State, config: Mapping[str, Any] | None = None
) -> tuple[TextConfig, dict[str, Any]]:
    """Reads transformers' BERT, CLIP text encoder or T5 encoder from config.json and the weights.

    Also from a folder of the whole: of a CLIP the text encoder with its projection is taken, of a
    T5 the encoder. What the text encoder does not need is left aside: BERT's pooler, heads of
    pretraining, T5's decoder, and the buffer of position numbers that old files carry. Args and
    raises as `import_unet`.
    """
    raw, state, source = _open(folder_or_state, config, TEXT_ENCODER_WEIGHTS)
    has_projection = "text_projection.weight" in state
    text_config = transformers_config.text_from_transformers(raw, has_projection)
    kept = transformers_names.text_state(text_config, state)
    return text_config, names.from_file(text_params(text_config), kept, source)


def export_text_encoder(
    config: TextConfig, params: Params, folder: Folder, dtype: str = "float32"
) -> None:
    """Writes what transformers' encoder of that kind opens; see `export_unet`.

    `BertModel`, `T5EncoderModel`, `CLIPTextModel`, or with a projection
    `CLIPTextModelWithProjection`. `skipped_layers` of a CLIP is a note that this library reads;
    diffusers takes it as `clip_skip` of each call.
    """
    raw = transformers_config.text_to_transformers(config)
    _save(folder, TEXT_ENCODER_WEIGHTS, raw, text_params(config), params, dtype)


def import_clip(
    folder_or_state: Folder | State, config: Mapping[str, Any] | None = None
) -> tuple[ClipConfig, dict[str, Any]]:
    """Reads transformers' `CLIPModel`, both encoders. Args and raises as `import_unet`."""
    raw, state, source = _open(folder_or_state, config, TEXT_ENCODER_WEIGHTS)
    clip_config = transformers_config.clip_from_transformers(raw)
    kept = transformers_names.clip_state(state)
    return clip_config, names.from_file(_clip_template(clip_config), kept, source)


def import_dinov2(
    folder_or_state: Folder | State, config: Mapping[str, Any] | None = None
) -> tuple[Dinov2Config, dict[str, Any]]:
    """Reads transformers' `Dinov2Model`, also from a folder of its classifier.

    The classifier and the token that masks patches in training are left aside. Args and raises as
    `import_unet`.
    """
    raw, state, source = _open(folder_or_state, config, TEXT_ENCODER_WEIGHTS)
    dinov2_config = transformers_config.dinov2_from_transformers(raw)
    kept = transformers_names.dinov2_state(state)
    return dinov2_config, names.from_file(_dinov2_template(dinov2_config), kept, source)


def _open(
    folder_or_state: Folder | State, config: Mapping[str, Any] | None, stem: str
) -> tuple[Mapping[str, Any], State, str]:
    """Config, state dict, and what to call them in a message."""
    if isinstance(folder_or_state, Mapping):
        if config is None:
            raise ValueError("config=None: a state dict alone does not tell its config")
        return config, folder_or_state, "state dict"
    if config is None:
        config = read_json(epath.Path(folder_or_state) / "config.json")
    return config, read_weights(folder_or_state, stem), os.fspath(folder_or_state)


def _save(
    folder: Folder, stem: str, config: dict[str, Any], template: Params, params: Params, dtype: str
) -> None:
    if diff := key_diff(template, params):
        raise KeyMismatchError(diff, "params to export")
    write_weights(folder, stem, names.to_file(params), dtype)
    write_json(epath.Path(folder) / "config.json", config)


def _renamed_attention(name: str, array: AnyArray) -> tuple[str, AnyArray]:
    match = re.fullmatch(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _OLD_ATTENTION:
        return name, array
    if len(array.shape) == 4:  # a 1x1 convolution, now a linear layer
        array = array[:, :, 0, 0]
    return f"{match[1]}.{_OLD_ATTENTION[match[2]]}.{match[3]}", array


def _shapes(init: Callable[..., Any], *shapes: tuple[int, ...]) -> Params:
    """Names and shapes of a network's parameters; nothing is allocated or computed."""
    arguments = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    return jax.eval_shape(init, jax.random.key(0), *arguments)["params"]


def _unet_template(config: UNetConfig) -> Params:
    # What leaves the parameters as they are is set to one value, and traced once.
    return _unet_shapes(
        dataclasses.replace(
            config, prediction_type="epsilon", dtype="float32", remat="none", attention="xla"
        )
    )


@functools.lru_cache(maxsize=8)
def _unet_shapes(config: UNetConfig) -> Params:
    size = 2 ** (len(config.block_out_channels) - 1)
    x, context = (1, size, size, config.in_channels), (1, 1, config.context_size)
    return _shapes(UNet(config).init, x, (1,), context)


@functools.lru_cache(maxsize=8)
def _autoencoder_template(config: AutoencoderConfig) -> Params:
    return _shapes(Autoencoder(config).init, (1, config.factor, config.factor, config.in_channels))


def _clip_template(config: ClipConfig) -> Params:
    vision = config.vision
    pixels = (1, vision.image_size, vision.image_size, vision.num_channels)
    arguments = [jax.ShapeDtypeStruct(pixels, "float32"), jax.ShapeDtypeStruct((1, 1), "int32")]
    return jax.eval_shape(Clip(config).init, jax.random.key(0), *arguments)["params"]


def _dinov2_template(config: Dinov2Config) -> Params:
    return _shapes(
        Dinov2(config).init, (1, config.patch_size, config.patch_size, config.num_channels)
    )
