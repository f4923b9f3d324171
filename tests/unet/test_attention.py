"""The attention kernels agree with one another, with numpy, and across platforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_scaling.unet import attention
from ldm_scaling.unet.attention import dot_product_attention

SHAPE = (2, 24, 3, 4)  # batch, queries, heads, head size


@pytest.fixture(scope="module")
def qkv():
    rng = np.random.default_rng(0)
    shapes = (SHAPE, (2, 10, 3, 4), (2, 10, 3, 4))
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def loss(kernel, q, k, v):
    return jnp.sum(jnp.sin(dot_product_attention(q, k, v, kernel)))


def test_xla_against_numpy(qkv):
    q, k, v = (np.asarray(x, np.float64).swapaxes(1, 2) for x in qkv)
    weights = np.exp(q @ k.swapaxes(2, 3) / 2)
    expected = (weights / weights.sum(-1, keepdims=True)) @ v
    np.testing.assert_allclose(
        dot_product_attention(*qkv, "xla"), expected.swapaxes(1, 2), atol=1e-5
    )


@pytest.mark.parametrize("kernel", [attention._map_heads_and_queries, attention._map_queries])
def test_chunks_change_nothing(qkv, kernel, monkeypatch):
    monkeypatch.setattr(attention, "CPU_QUERIES", 8)
    monkeypatch.setattr(attention, "ACCELERATOR_QUERIES", 8)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: kernel(*args))
    gradient = jax.value_and_grad(loss, argnums=(1, 2, 3))
    assert str(jax.make_jaxpr(kernel)(*qkv)).count("scan[") >= 1
    expected = gradient("xla", *qkv)
    for a, b in zip(*map(jax.tree.leaves, (gradient("chunked", *qkv), expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_chunked_keeps_no_scores_for_the_backward_pass(qkv):
    def kept(kernel):
        pull = jax.eval_shape(
            lambda *qkv: jax.tree.leaves(jax.vjp(lambda *a: loss(kernel, *a), *qkv)[1]), *qkv
        )
        return [leaf.shape for leaf in pull if np.prod(leaf.shape) >= 2 * 3 * 24 * 10]

    assert kept("xla")
    assert not kept("chunked")


def test_auto_takes_chunks_where_scores_are_many(monkeypatch, qkv):
    def chunks(kernel):
        jaxpr = jax.make_jaxpr(lambda *a: dot_product_attention(*a, kernel))(*qkv)
        return "scan[" in str(jaxpr)

    assert (chunks("xla"), chunks("chunked"), chunks("auto")) == (False, True, False)
    monkeypatch.setattr(attention, "AUTO_CHUNKED_SCORES", 100)
    assert chunks("auto")


def test_lowering_decides_the_platform(qkv):
    """A program for a TPU has the TPU's chunks, whatever machine it is compiled on."""
    step = jax.jit(lambda *a: dot_product_attention(*a, "chunked"))
    texts = {
        platform: step.trace(*qkv).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu")
    }
    # Per head on a CPU: a product of two matrices; on a TPU all examples and heads at once.
    assert "batching_dims = [0, 1]" in texts["tpu"]
    assert "batching_dims = [0, 1]" not in texts["cpu"]


def test_flash_is_the_same_mathematics(monkeypatch):
    """The TPU's kernel, interpreted: results and gradients, over several blocks."""
    blocks = ((128, 256, 128), (128, 128, 128))
    monkeypatch.setattr(attention, "FLASH_BLOCKS", {8: blocks})
    rng = np.random.default_rng(1)
    qkv = tuple(jnp.asarray(rng.normal(size=(2, 256, 2, 8)), jnp.float32) for _ in range(3))
    flash = functools.partial(attention._splash, interpret=True)
    both = [
        jax.value_and_grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1, 2))(*qkv)
        for f in (flash, attention._plain)
    ]
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def test_flash_leaves_alone_what_its_blocks_do_not_fit(qkv):
    np.testing.assert_array_equal(
        dot_product_attention(*qkv, "flash"), dot_product_attention(*qkv, "xla")
    )


def test_auto_takes_flash_on_a_tpu_only():
    big = jax.ShapeDtypeStruct((1, 1024, 2, 8), jnp.float32)
    step = jax.jit(lambda *a: dot_product_attention(*a, "auto"))
    traced = step.trace(big, big, big)
    texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu")}
    assert "tpu_custom_call" in texts["tpu"]
    assert "tpu_custom_call" not in texts["cpu"]


def test_flash_runs_on_each_devices_examples_and_heads():
    """Under a mesh the kernel sees its own examples and heads, and nothing is gathered."""
    from ldm_scaling.sharding import make_mesh, within

    mesh = make_mesh(replica=2, fsdp=2, tensor=2)
    big = jax.ShapeDtypeStruct((8, 1024, 4, 8), jnp.float32)
    step = jax.jit(within(mesh, lambda *a: dot_product_attention(*a, "flash")))
    text = step.trace(big, big, big).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
    assert "tensor<2x2x8x1024xf32>" in text  # 8 examples over 4 devices, 4 heads over 2


def test_large_scores_do_not_overflow():
    big = jnp.full((1, 4, 1, 8), 100.0)
    out = dot_product_attention(big, big, big, "xla")
    np.testing.assert_allclose(out, big)


@pytest.mark.parametrize("kernel", ["xla", "chunked"])
def test_bfloat16_keeps_float32_softmax(qkv, kernel):
    q, k, v = (x.astype(jnp.bfloat16) for x in qkv)
    out = dot_product_attention(q, k, v, kernel)
    assert out.dtype == jnp.bfloat16
    # Between inputs of 8 bits and an output of 8 bits nothing else is rounded to 8 but weights.
    exact = dot_product_attention(*(x.astype(jnp.float32) for x in (q, k, v)), "xla")
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.01)
    for gradient in jax.grad(loss, argnums=(1, 2, 3))(kernel, q, k, v):
        assert gradient.dtype == jnp.bfloat16
        assert bool(jnp.isfinite(gradient.astype(jnp.float32)).all())


@pytest.mark.parametrize(("queries", "limit", "pieces"), [(4096, 512, 8), (64, 512, 1), (21, 8, 3)])
def test_pieces_are_equal(queries, limit, pieces):
    assert attention._pieces(queries, limit) == pieces
