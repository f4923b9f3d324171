"""The same images, from files to scores, with the packages that published numbers come from.

Needs `pip install torch pytorch-fid clean-fid torch-fidelity torchmetrics lpips torchvision`; run
with `pytest -m slow`. All measure with the same random weights in place of the published ones,
which are in no package.
"""

import importlib.util
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ldm_scaling import metrics
from ldm_scaling.checkpoint import load_lpips_heads, names
from ldm_scaling.encoders import InceptionV3, LpipsBackbone
from ldm_scaling.evaluation import Inception, load_gaussian, save_statistics
from tests.golden_makers import _peers
from tests.golden_makers._seeded import backbone_state, inception_state

PACKAGES = ("torch", "torchvision", "pytorch_fid", "cleanfid", "torch_fidelity", "lpips")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of other people's packages
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in PACKAGES), reason=f"needs {PACKAGES}"
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _torchvision():
    _peers.import_torchvision()


@pytest.fixture(scope="module")
def state():
    """Random weights whose features are about as large as those of the published ones."""
    drawn = inception_state()
    last = ("branch1x1", "branch3x3_2", "branch3x3dbl_3", "branch_pool")
    for name, array in drawn.items():
        block, branch, *leaf = name.split(".")
        if (
            block == "Mixed_7c"
            and branch.startswith(last)
            and leaf in (["bn", "weight"], ["bn", "bias"])
        ):
            drawn[name] = array * np.float32(0.1)
    return drawn


@pytest.fixture(scope="module")
def params(state):
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    template = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    return names.from_file(template, state, "seeded")


def waves(seed, count, height=40, width=48):
    """Coloured waves with noise; more of it for a larger seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None]
    images = []
    for _ in range(count):
        slope, phase = rng.uniform(0.05, 0.6, (2, 3)), rng.uniform(0, 6, 3)
        colour, swing = rng.uniform(60, 190, 3), rng.uniform(10, 60, 3)
        noise = rng.normal(0, 5 + 10 * seed, (height, width, 3))
        images.append(colour + swing * np.sin(x * slope[0] + y * slope[1] + phase) + noise)
    return np.clip(images, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def sets():
    return waves(0, 20), waves(1, 24)


@pytest.fixture(scope="module")
def folders(sets, tmp_path_factory):
    found = []
    for name, images in zip(("generated", "real"), sets, strict=True):
        folder = tmp_path_factory.mktemp(name)
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{i:03d}.png")
        found.append(str(folder))
    return found


@pytest.fixture(scope="module")
def features(params, sets):
    """mode -> our features of both sets."""

    def extract(mode):
        network = Inception(params, mode, batch_size=4)
        return network, [network(images) for images in sets]

    return extract


def our_fid(found):
    gaussians = [metrics.Gaussian.from_features(x) for x in found]
    return gaussians[0].frechet(gaussians[1])


def test_pytorch_fid(state, folders, features, tmp_path):
    _, found = features("legacy")
    with _peers.no_download(state):
        from pytorch_fid import fid_score

        theirs = fid_score.calculate_fid_given_paths(folders, 4, "cpu", 2048, 0)
        path = str(tmp_path / "theirs.npz")
        fid_score.save_fid_stats([folders[1], path], 4, "cpu", 2048, 0)
    assert theirs > 1
    assert our_fid(found) == pytest.approx(theirs, abs=1e-3)
    # Their statistics here, and ours there.
    generated = metrics.Gaussian.from_features(found[0])
    assert generated.frechet(load_gaussian(path)) == pytest.approx(theirs, abs=1e-3)
    save_statistics(tmp_path / "ours.npz", metrics.FeatureStatistics.of(found[1]))
    moments = fid_score.compute_statistics_of_path(
        str(tmp_path / "ours.npz"), None, 4, 2048, "cpu", 0
    )
    with np.load(path) as file:
        np.testing.assert_allclose(moments[0], file["mu"], atol=1e-5)
        np.testing.assert_allclose(moments[1], file["sigma"], atol=1e-5)


def test_clean_fid_in_both_of_its_modes(state, folders, features):
    network = _peers.pytorch_fid_network(state, resize_input=False, normalize_input=False)

    class TorchScriptNetwork:
        """clean-fid's other network is a file to download; the layers are the same."""

        def __init__(self, *_, **__):
            pass

        def to(self, device):
            return self

        def eval(self):
            return self

        def __call__(self, x):
            return network((x - 128) / 128)[0][..., 0, 0]

    with _peers.no_download(state):
        from cleanfid import features as cleanfid_features
        from cleanfid import fid

        with mock.patch.object(cleanfid_features, "InceptionV3W", TorchScriptNetwork):
            for mode, name in (("clean", "clean"), ("legacy", "legacy_pytorch")):
                theirs = fid.compute_fid(
                    *folders,
                    mode=name,
                    num_workers=0,
                    batch_size=4,
                    device="cpu",
                    use_dataparallel=False,
                    verbose=False,
                )
                assert theirs > 1
                assert our_fid(features(mode)[1]) == pytest.approx(theirs, abs=1e-3)


def test_torch_fidelity_and_torchmetrics(state, sets, folders, features):
    network, found = features("tensorflow")
    with _peers.weights_file(state) as path:
        import torch_fidelity

        theirs = torch_fidelity.calculate_metrics(
            input1=folders[0],
            input2=folders[1],
            batch_size=4,
            fid=True,
            kid=True,
            isc=True,
            prc=True,
            kid_subsets=10,
            kid_subset_size=15,
            feature_extractor="inception-v3-compat",  # by default prc takes VGG-16
            feature_extractor_weights_path=str(path),
            cuda=False,
            save_cpu_ram=True,
            cache=False,
            verbose=False,
        )
        assert our_fid(found) == pytest.approx(theirs["frechet_inception_distance"], abs=1e-3)
        kid = metrics.kid(*found, subsets=10, subset_size=15)
        assert kid.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
        assert kid.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)
        score = metrics.inception_score(network.unbiased_logits(found[0]))
        assert score.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
        assert score.std == pytest.approx(theirs["inception_score_std"], rel=1e-4)
        shares = metrics.precision_recall(*found)
        assert shares.precision == pytest.approx(theirs["precision"], abs=1e-6)
        assert shares.recall == pytest.approx(theirs["recall"], abs=1e-6)

        if importlib.util.find_spec("torchmetrics") is None:
            return
        import torch
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(
            feature_extractor_weights_path=str(path), antialias=False
        ).set_dtype(torch.float64)
        for images, real in zip(sets, (False, True), strict=True):
            for start in range(0, len(images), 4):
                part = torch.from_numpy(images[start : start + 4].transpose(0, 3, 1, 2))
                metric.update(part, real=real)
        assert our_fid(found) == pytest.approx(float(metric.compute()), abs=1e-3)


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_lpips_and_its_gradient(net, sets):
    import torch

    module, heads = LpipsBackbone(net), load_lpips_heads(net)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    template = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    params = names.from_file(template, backbone_state(net), net)
    x, y = (images[:3].astype(np.float32) / 127.5 - 1 for images in sets)

    def distance(x):
        taps = [module.apply({"params": params}, images) for images in (x, jnp.asarray(y))]
        return metrics.lpips_distance(*taps, heads)

    ours = jax.jit(distance)(x)
    gradient = jax.jit(jax.grad(lambda x: distance(x).sum()))(jnp.asarray(x))
    # In float64: in float32 their gradient is 1e-3 off, ours 1e-5.
    one, other = (torch.from_numpy(images.transpose(0, 3, 1, 2)).double() for images in (x, y))
    one.requires_grad_()
    theirs = _peers.lpips_network(net, backbone_state(net)).double()(one, other)[:, 0, 0, 0]
    theirs.sum().backward()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-4)
    expected = one.grad.numpy().transpose(0, 2, 3, 1)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())
