"""The reference implementations of metrics, on weights that they would otherwise download."""

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import numpy as np


def import_torchvision():
    """torchvision, which all of them import, also where its compiled operators do not load.

    They are made for one build of PyTorch (PyPI's, with CUDA) and missing with any other; the
    import then fails for want of two declarations, of operators that no metric uses.
    """
    import torch

    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.declarations = library  # they end with it
    return torchvision


def tensors(state: Mapping[str, np.ndarray]) -> dict:
    import torch

    return {name: torch.from_numpy(array) for name, array in state.items()}


@contextlib.contextmanager
def no_download(state: Mapping[str, np.ndarray]):
    """pytorch-fid and clean-fid find these Inception weights instead of the published ones."""
    import_torchvision()
    from cleanfid import inception_pytorch
    from pytorch_fid import inception

    found = {"load_state_dict_from_url": lambda *_, **__: tensors(state)}
    with mock.patch.multiple(inception, **found), mock.patch.multiple(inception_pytorch, **found):
        yield


@contextlib.contextmanager
def weights_file(state: Mapping[str, np.ndarray]):
    """Path of a .pth file, for those who take one."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(tensors(state), path)
        yield path


def pytorch_fid_network(state: Mapping[str, np.ndarray], **settings):
    """pytorch-fid's network, [B, 3, H, W] in [0, 1] -> a list of pooled features."""
    with no_download(state):
        from pytorch_fid.inception import InceptionV3

        return InceptionV3([3], **settings).eval()


def lpips_network(net: str, state: Mapping[str, np.ndarray]):
    """lpips' distance with the heads of its package, on a torchvision network of these weights."""
    torchvision = import_torchvision()
    import lpips

    name = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}[net]
    network = getattr(torchvision.models, name)()
    network.features.load_state_dict(
        {key.removeprefix("features."): value for key, value in tensors(state).items()}
    )
    with mock.patch.object(lpips.pretrained_networks.tv, name, return_value=network):
        return lpips.LPIPS(net=net, verbose=False)


def torch_fidelity_network(state: Mapping[str, np.ndarray], features: list[str]):
    """torch-fidelity's network, uint8 [B, 3, H, W] -> a tuple of `features`."""
    import_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with weights_file(state) as path:
        return FeatureExtractorInceptionV3("inception", features, str(path))
