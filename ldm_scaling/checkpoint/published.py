"""Weights of metrics' networks that no package carries: published files, known by their SHA-256.

A score is comparable only where these are the very weights that everyone uses, so a file is held
against the digest in its published name before anything is made of it.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_scaling.checkpoint import names
from ldm_scaling.checkpoint.torch_pickle import load_torch_state
from ldm_scaling.encoders.inception import SIZE, InceptionV3
from ldm_scaling.encoders.lpips_backbones import BACKBONES, LpipsBackbone
from ldm_scaling.naming import check_name

# Where each is found; the last part of a name is how its SHA-256 begins.
INCEPTION = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
# torchvision's; the second ones are the same weights as they were saved before 2021.
BACKBONE_FILES = {
    "alex": ("alexnet-owt-7be5be79.pth", "alexnet-owt-4df8aa71.pth"),
    "vgg": ("vgg16-397923af.pth",),
    "squeeze": ("squeezenet1_1-b8a52dc0.pth", "squeezenet1_1-f364aa15.pth"),
}


def load_inception(path: str | os.PathLike[str], *, published: bool = True) -> dict[str, Any]:
    """Parameters of `encoders.inception.InceptionV3` from pytorch-fid's (or torch-fidelity's) file.

    Args:
      path: the .pth file.
      published: False for weights of one's own in the same format: their hash is not checked, and
        what is measured with them is no FID.

    Raises:
      FileNotFoundError: no such file; the message says where to get it.
      ValueError: it is not the published file.
      RefusedPickleError, KeyMismatchError: it does not hold these weights.
    """
    state = _read(path, (INCEPTION,), published)
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), np.float32)
    template = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    return names.from_file(template, state, str(path))


def load_lpips_backbone(
    net: str, path: str | os.PathLike[str], *, published: bool = True
) -> dict[str, Any]:
    """Parameters of `encoders.lpips_backbones.LpipsBackbone` from torchvision's ImageNet weights.

    Args:
      net: "alex", "vgg" or "squeeze".
      path: the .pth file; its classifier is not read.
      published: as for `load_inception`.

    Raises: as `load_inception`, and ValueError for another `net`.
    """
    check_name("net", net, BACKBONES)
    addresses = tuple(f"https://download.pytorch.org/models/{f}" for f in BACKBONE_FILES[net])
    state = _read(path, addresses, published)
    features = {k: v for k, v in state.items() if not k.startswith("classifier.")}
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    template = jax.eval_shape(LpipsBackbone(net).init, jax.random.key(0), image)["params"]
    return names.from_file(template, features, str(path))


def _read(
    path: str | os.PathLike[str], addresses: tuple[str, ...], published: bool
) -> Mapping[str, np.ndarray]:
    """The state dict of a file that is one of those at `addresses`, the counters of norms left out.

    The current file is the first of them.
    """
    path = Path(path)
    digests = [address.removesuffix(".pth").rsplit("-", 1)[-1] for address in addresses]
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; get it from {addresses[0]} (SHA-256 {digests[0]}...)"
        )
    if published:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(tuple(digests)):
            raise ValueError(
                f"{path}: its SHA-256 begins with {found[:8]}, that of {addresses[0]} with "
                f"{digests[0]}; pass published=False if these are other weights on purpose"
            )
    state = load_torch_state(path)
    return {k: v for k, v in state.items() if not k.endswith(".num_batches_tracked")}
