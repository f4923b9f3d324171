"""Goldens of FID's network, its resizes, what is computed from features, and LPIPS.

Needs torch, torchvision, pytorch-fid, clean-fid, torch-fidelity, lpips, prdc and scikit-image (its
photographs).
The weights are random and not stored, see `_seeded.py`: they would be 90 MB.
"""

from pathlib import Path

import numpy as np

from . import _peers
from ._seeded import backbone_state, feature_sets, inception_state
from .encoders import photographs

PLANAR = (0, 3, 1, 2)
# (height, width) -> side: up and down, odd, by much, and not at all.
RESIZES = ((64, 48, 299), (37, 53, 299), (300, 410, 299), (48, 64, 31), (299, 299, 299))


def make(out: Path) -> None:
    import torch

    torch.set_grad_enabled(False)
    np.savez_compressed(out / "encoders_inception.npz", **inception())
    np.savez_compressed(out / "evaluation_resizing.npz", **resizing())
    np.savez_compressed(out / "metrics_of_features.npz", **of_features())
    np.savez_compressed(out / "metrics_lpips.npz", **lpips())


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


def of_features() -> dict[str, np.ndarray]:
    """Pairs are mean and standard deviation."""
    import torch
    from cleanfid.fid import frechet_distance
    from prdc import compute_prdc
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    generated, real, logits = feature_sets()
    moments = [
        m
        for x in (generated.astype(np.float64), real.astype(np.float64))
        for m in (x.mean(axis=0), np.cov(x, rowvar=False))
    ]
    tensors = [torch.from_numpy(x) for x in (generated, real)]
    statistics = [fid_features_to_statistics(x.double()) for x in tensors]
    kid = kid_features_to_metric(*tensors, kid_subsets=30, kid_subset_size=100, verbose=False)
    shares = prc_features_to_metric(*tensors, verbose=False)
    by_prdc = compute_prdc(real, generated, nearest_k=5)
    return {
        "fid_pytorch_fid": calculate_frechet_distance(*moments),
        "fid_clean_fid": frechet_distance(*moments),
        "fid_torch_fidelity": fid_statistics_to_metric(*statistics, verbose=False)[
            "frechet_inception_distance"
        ],
        "kid": list(kid.values()),
        "inception_score": list(isc_features_to_metric(torch.from_numpy(logits)).values()),
        "inception_score_in_order": list(
            isc_features_to_metric(torch.from_numpy(logits), 7, False).values()
        ),
        "precision_recall": [shares["precision"], shares["recall"]],
        "prdc": [by_prdc[name] for name in ("precision", "recall", "density", "coverage")],
    }


def lpips() -> dict[str, np.ndarray]:
    """Photographs and what is near them or not, and an odd size, where pools have rests."""
    import torch

    images = photographs()[:4, :, 8:56]
    noise = np.random.default_rng(0).integers(-40, 41, images.shape)
    others = np.stack([*np.clip(images + noise, 0, 255)[:2], images[3], images[3]]).astype(np.uint8)
    pairs = {
        "photographs": (images, others),
        "odd": (picture(67, 74)[None], picture(74, 67).transpose(1, 0, 2)[None]),
    }
    arrays = {"images": images, "others": others}
    for net in ("alex", "vgg", "squeeze"):
        network = _peers.lpips_network(net, backbone_state(net))
        for name, pair in pairs.items():
            inputs = [torch.from_numpy(x.transpose(PLANAR) / 127.5 - 1).float() for x in pair]
            arrays[f"{name}/{net}"] = network(*inputs)[:, 0, 0, 0].numpy()
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
