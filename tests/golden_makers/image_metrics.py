"""Goldens of FID's network and resizes: pytorch-fid, clean-fid and torch-fidelity.

Needs torch, torchvision, pytorch-fid, clean-fid, torch-fidelity and scikit-image (its photographs).
The weights are random and not stored, see `_seeded.py`: they would be 90 MB.
"""

from pathlib import Path

import numpy as np

from . import _peers
from ._seeded import inception_state
from .encoders import photographs

PLANAR = (0, 3, 1, 2)
# (height, width) -> side: up and down, odd, by much, and not at all.
RESIZES = ((64, 48, 299), (37, 53, 299), (300, 410, 299), (48, 64, 31), (299, 299, 299))


def make(out: Path) -> None:
    import torch

    torch.set_grad_enabled(False)
    np.savez_compressed(out / "encoders_inception.npz", **inception())
    np.savez_compressed(out / "evaluation_resizing.npz", **resizing())


def inception() -> dict[str, np.ndarray]:
    import torch

    images = photographs()[[0, 3, 4], :, 8:56]  # not square: a mix-up would show
    planar = torch.from_numpy(np.ascontiguousarray(images.transpose(PLANAR)))
    state = inception_state()
    legacy = _peers.pytorch_fid_network(state)(planar / 255)[0]
    names = ["2048", "logits", "logits_unbiased"]
    tensorflow = _peers.torch_fidelity_network(state, names)(planar)
    plain = _peers.pytorch_fid_network(state, resize_input=False, normalize_input=False)
    scaled = torch.from_numpy((clean(images, 299) - 128) / 128).permute(PLANAR).float()
    return {
        "images": images,
        "features_legacy": legacy[..., 0, 0].numpy(),
        "features_clean": plain(scaled)[0][..., 0, 0].numpy(),
        "features_tensorflow": tensorflow[0].numpy(),
        "logits_tensorflow": tensorflow[1].numpy(),
        "unbiased_logits_tensorflow": tensorflow[2].numpy(),
    }


def clean(images: np.ndarray, size: int) -> np.ndarray:
    _peers.import_torchvision()
    from cleanfid.resize import make_resizer

    resizer = make_resizer("PIL", False, "bicubic", (size, size))
    return np.stack([resizer(image) for image in images])


def resizing() -> dict[str, np.ndarray]:
    """Some pixels of each result, see `picked`: the file stays small."""
    import torch
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as like_tensorflow,
    )

    arrays = {}
    for height, width, size in RESIZES:
        image = picture(height, width)
        planar = torch.from_numpy(image[None].transpose(PLANAR)).float()
        legacy = torch.nn.functional.interpolate(
            planar, size=(size, size), mode="bilinear", align_corners=False
        )
        tensorflow = like_tensorflow(planar, size=(size, size), align_corners=False)
        results = {
            "clean": clean(image[None], size)[0],
            "legacy": legacy[0].permute(1, 2, 0).numpy(),
            "tensorflow": tensorflow[0].permute(1, 2, 0).numpy(),
        }
        for mode, array in results.items():
            arrays[f"{mode}/{height}x{width}/{size}"] = array[picked(size)]
    return arrays


def picked(size: int):
    """The pixels that are stored: some rows and columns, those at the edges among them."""
    lines = np.r_[0:3, size // 2 : size // 2 + 13, size - 3 : size]
    return np.ix_(lines, lines)


def picture(height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: noise, and a checker-board, which makes cubics overshoot."""
    rng = np.random.default_rng([height, width])
    pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    pixels[: height // 2, : width // 2] = 255 * (np.indices((height // 2, width // 2)).sum(0) % 2)[
        ..., None
    ].astype(np.uint8)
    return pixels
