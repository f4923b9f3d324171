"""What we write opens in diffusers, what diffusers writes opens here, and both compute the same.

Needs `pip install torch diffusers`; run with `pytest -m slow`.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.checkpoint.diffusers import (
    export_autoencoder,
    export_unet,
    import_autoencoder,
    import_unet,
)
from ldm_scaling.encoders.autoencoder import Autoencoder, AutoencoderConfig
from ldm_scaling.unet.config import UNetConfig
from ldm_scaling.unet.unet import UNet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers', of its own future
]

SD1 = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64, 64),
    "attention_head_dim": 8,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
SD2 = {**SD1, "attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True}
MICRO = {
    **SD1,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (16, 32, 64),
    "attention_head_dim": 4,
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
UNETS = {"sd1": SD1, "sd2": SD2, "micro": MICRO}


@pytest.fixture(scope="module")
def diffusers():
    pytest.importorskip("torch")
    return pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def torch(diffusers):
    import torch

    torch.manual_seed(0)
    return torch


def assert_equal_states(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)


def on_device(params):
    return {"params": jax.tree.map(jnp.asarray, params)}


def close(ours, theirs):
    difference = np.abs(np.asarray(ours) - theirs).max()
    return difference <= 1e-4 * np.abs(theirs).max()


def load(diffusers, kind, folder, caplog):
    """Loads quietly: diffusers logs a warning for each field that it does not know."""
    diffusers.utils.logging.enable_propagation()
    caplog.clear()
    model, info = getattr(diffusers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert not [r for r in caplog.records if "config attributes" in r.getMessage()]
    return model


@pytest.mark.parametrize("name", UNETS)
def test_unet(diffusers, torch, tmp_path, caplog, name):
    theirs = diffusers.UNet2DConditionModel(**UNETS[name]).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = import_unet(tmp_path / "theirs")

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 8, config.in_channels)).astype(np.float32)
    context = rng.normal(size=(2, 5, config.context_size)).astype(np.float32)
    t = np.array([3.0, 871.0], np.float32)
    ours = UNet(config).apply(on_device(params), *map(jnp.asarray, (x, t, context)))
    with torch.no_grad():
        expected = theirs(
            torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t), torch.tensor(context)
        ).sample
    assert close(ours, expected.numpy().transpose(0, 2, 3, 1))

    export_unet(config, params, tmp_path / "ours")
    back = load(diffusers, "UNet2DConditionModel", tmp_path / "ours", caplog)
    assert_equal_states(back, theirs)
    ignored = {"_name_or_path", "_use_default_values", "_diffusers_version", "_prediction_type"}
    comparable = [
        {k: v for k, v in json.loads((tmp_path / which / "config.json").read_text()).items()}
        for which in ("ours", "theirs")
    ]
    same = comparable[0].keys() & comparable[1].keys() - ignored
    assert {k: comparable[0][k] for k in same} == {k: comparable[1][k] for k in same}
    # Every field that we do not know of would be missed here.
    ignored |= {"addition_embed_type_num_heads", "upcast_attention"}
    assert comparable[0].keys() - ignored == comparable[1].keys() - ignored


def test_head_size_means_the_same_there(diffusers, torch, tmp_path, caplog):
    config = UNetConfig(
        block_out_channels=(32, 64),
        attention_levels=(True, True),
        layers_per_block=1,
        heads=None,
        head_size=16,
        context_size=24,
        norm_groups=8,
        sample_size=8,
    )
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, 8, 8, 4), (1,), (1, 5, 24))]
    template = jax.eval_shape(UNet(config).init, jax.random.key(0), *shapes)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype(np.float32), template
    )
    export_unet(config, params, tmp_path)
    theirs = load(diffusers, "UNet2DConditionModel", tmp_path, caplog).eval()
    x, t, context = (rng.normal(size=shape.shape).astype(np.float32) for shape in shapes)
    ours = UNet(config).apply(on_device(params), *map(jnp.asarray, (x, t, context)))
    with torch.no_grad():
        expected = theirs(
            torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t), torch.tensor(context)
        ).sample
    assert close(ours, expected.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("mid_attention", [True, False])
def test_autoencoder(diffusers, torch, tmp_path, caplog, mid_attention):
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=8,
        scaling_factor=0.5,
        mid_block_add_attention=mid_attention,
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = import_autoencoder(tmp_path / "theirs")
    assert config == AutoencoderConfig(
        latent_channels=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_groups=8,
        mid_attention=mid_attention,
        scaling_factor=0.5,
    )
    x = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    apply = Autoencoder(config).apply
    mean, _ = apply(on_device(params), jnp.asarray(x), method="encode")
    images = apply(on_device(params), mean, method="decode")
    with torch.no_grad():
        latents = theirs.encode(torch.tensor(x.transpose(0, 3, 1, 2))).latent_dist.mean
        decoded = theirs.decode(latents).sample
    assert close(mean, latents.numpy().transpose(0, 2, 3, 1))
    assert close(images, decoded.numpy().transpose(0, 2, 3, 1))
    config = dataclasses.replace(config, shift_factor=0.125)
    export_autoencoder(config, params, tmp_path / "ours")
    back = load(diffusers, "AutoencoderKL", tmp_path / "ours", caplog)
    assert back.config.shift_factor == 0.125
    assert_equal_states(back, theirs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_opens_there(diffusers, torch, tmp_path, caplog, dtype):
    diffusers.UNet2DConditionModel(**MICRO).save_pretrained(tmp_path / "theirs")
    config, params = import_unet(tmp_path / "theirs")
    export_unet(config, params, tmp_path / "ours", dtype)
    back = load(diffusers, "UNet2DConditionModel", tmp_path / "ours", caplog)
    again = import_unet(tmp_path / "ours")[1]
    kernel = again["conv_in"]["kernel"].transpose(3, 2, 0, 1)
    assert np.array_equal(back.conv_in.weight.detach().float().numpy(), kernel)


def test_shards_of_the_fp16_variant_open_here(diffusers, torch, tmp_path):
    theirs = diffusers.UNet2DConditionModel(**MICRO).half()
    theirs.save_pretrained(tmp_path, variant="fp16", max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.fp16-*.safetensors"))) > 1
    kernel = import_unet(tmp_path)[1]["conv_in"]["kernel"].transpose(3, 2, 0, 1)
    assert np.array_equal(theirs.conv_in.weight.detach().float().numpy(), kernel)


@pytest.mark.parametrize("legacy", [True, False])
def test_torch_files(torch, tmp_path, legacy):
    from ldm_scaling.checkpoint.torch_pickle import load_torch_state

    big = torch.randn(4, 6)
    state = torch.nn.BatchNorm2d(3).state_dict()
    state |= {"t": big.T, "part": big[1:3, ::2], "half": big.half(), "b": big.bfloat16()}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    found = load_torch_state(tmp_path / "a.pth")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].shape == tuple(tensor.shape)
        assert np.array_equal(found[name].astype(np.float64), tensor.double().numpy())
