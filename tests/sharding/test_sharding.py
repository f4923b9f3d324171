import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ldm_scaling.sharding import (
    AXES,
    batch_sharding,
    fsdp_spec,
    make_mesh,
    param_shardings,
    put_batch,
    rules,
)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (1, 8, 1)),
        ({"replica": 2}, (2, 4, 1)),
        ({"replica": -1, "fsdp": 2}, (4, 2, 1)),
        ({"replica": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
    ],
)
def test_minus_one_fills_the_mesh(sizes, shape):
    mesh = make_mesh(**sizes)
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == shape


def test_mesh_of_one_device():
    assert make_mesh(devices=jax.devices()[:1]).devices.shape == (1, 1, 1)


@pytest.mark.parametrize(
    "sizes",
    [{"fsdp": 3}, {"replica": 3}, {"replica": -1}, {"replica": 0}, {"fsdp": -2}, {"fsdp": 4}],
)
def test_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(ValueError, match="mesh="):
        make_mesh(**sizes)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 320, 640), P(None, None, "fsdp")),  # 40 x 640, not 320 x 80 in tiles of 128
        ((3, 3, 320, 1024), P(None, None, None, "fsdp")),  # both fill their tiles: the larger
        ((1280, 320), P("fsdp")),
        ((320, 320), P("fsdp")),
        ((1024, 1024), P("fsdp")),  # the first of equals
        ((1001, 320), P(None, "fsdp")),  # the only one that divides
        ((1001, 321), P()),  # nothing divides
        ((320,), P()),  # below the floor
        ((), P()),
    ],
)
def test_fsdp_rule(shape, spec):
    assert fsdp_spec(shape, fsdp=8) == spec


@pytest.mark.parametrize("fsdp", [16, 64, 256])
@pytest.mark.parametrize("width", [320, 512, 768])
def test_slices_fill_their_tiles(width, fsdp):
    """Of the kernels that hold most of the weights no slice takes more than twice its size."""
    for shape in (
        (3, 3, 4 * width, 4 * width),
        (3, 3, 8 * width, 4 * width),
        (2, 4 * width, 16 * width),
    ):
        spec = fsdp_spec(shape, fsdp)
        axis = spec.index("fsdp")
        part = tuple(n // fsdp if a == axis else n for a, n in enumerate(shape))
        assert rules.tiled_size(part) <= 2 * np.prod(part)


def test_fsdp_rule_on_one_slice_replicates():
    assert fsdp_spec((1280, 1280), fsdp=1) == P()


def test_params_and_batch_are_spread_over_the_devices():
    mesh = make_mesh(replica=2)
    params = {"kernel": jnp.ones((256, 512)), "bias": jnp.ones(512)}
    params = jax.device_put(params, param_shardings(mesh, params))
    assert params["kernel"].addressable_shards[0].data.shape == (256, 128)
    assert params["bias"].addressable_shards[0].data.shape == (512,)
    batch = put_batch(mesh, {"x": np.arange(16.0).reshape(16, 1)})
    assert batch["x"].sharding == batch_sharding(mesh)
    shards = sorted(float(s.data[0, 0]) for s in batch["x"].addressable_shards)
    assert shards == [0, 2, 4, 6, 8, 10, 12, 14]
