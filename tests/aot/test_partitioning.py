"""What chips exchange: weights and their gradients, never examples."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ldm_scaling.aot import read, topology_devices
from ldm_scaling.placement import BATCH_AXES
from ldm_scaling.sharding import make_mesh, param_shardings, within
from ldm_scaling.unet.attention import Attention
from ldm_scaling.unet.blocks import Upsample
from ldm_scaling.unet.layers import GroupNorm

pytest.importorskip("libtpu", reason="the TPU's compiler is for Linux on x86-64")


def collectives_of_gradient(module, mesh, x):
    """What chips exchange for the gradient of a loss of `module`, and the size of its weights."""
    apart = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    x = jax.ShapeDtypeStruct(x, jnp.bfloat16, sharding=apart)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    placed = param_shardings(mesh, params)
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        params,
        placed,
    )

    def loss(params, x):
        return jnp.square(module.apply(params, x).astype(jnp.float32)).sum()

    step = jax.jit(within(mesh, jax.grad(loss, (0, 1))), out_shardings=(placed, apart))
    found = read(step.lower(params, x).compile().as_text()).collectives
    return found, sum(leaf.size for leaf in jax.tree.leaves(params))


def test_flash_attention_moves_no_examples():
    """Its input's layout is fixed on each device: of the whole array, 64 chips would gather it."""
    mesh = make_mesh(replica=4, fsdp=16, devices=topology_devices("v5p:4x4x4"))
    found, weights = collectives_of_gradient(
        Attention(heads=2, dtype=jnp.bfloat16), mesh, (64, 1024, 128)
    )
    assert set(found) == {"all-gather", "all-reduce"}
    assert found["all-gather"].bytes <= 2 * 2 * weights
    assert found["all-reduce"].bytes <= 4 * weights


def test_resampling_moves_no_examples():
    """Where a slice of its bias fills a tile, a compiler left alone spreads channels instead."""
    mesh = make_mesh(replica=16, fsdp=4, devices=topology_devices("v5p:4x4x4"))
    module = nn.Sequential([Upsample(512, jnp.bfloat16), GroupNorm(32, 1e-5, jnp.bfloat16)])
    found, weights = collectives_of_gradient(module, mesh, (128, 8, 8, 512))
    assert set(found) == {"all-gather", "reduce-scatter", "all-reduce"}
    assert found["all-gather"].bytes <= 2 * 2 * weights
    assert found["reduce-scatter"].bytes <= 2 * weights
    # Over the replicas: the slices of the gradient, in bfloat16. The rest is biases and statistics.
    assert found["all-reduce"].bytes <= 2 * weights / 4 + 1e5
