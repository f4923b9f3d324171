"""The loop's own step, compiled by the TPU's compiler on a machine without a TPU."""

import dataclasses
import math
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ldm_scaling.aot import (
    CHIPS,
    COLLECTIVES,
    Collective,
    Kernel,
    chip_of,
    estimate,
    kernel_seconds,
    read,
    topology_devices,
)
from ldm_scaling.evaluation.abstract import sampling_record
from ldm_scaling.sharding import make_mesh, param_shardings
from ldm_scaling.sharding.rules import tiled_size
from ldm_scaling.train.abstract import abstract_task, compile_record
from ldm_scaling.unet.attention import dot_product_attention

CONFIGS = Path(__file__).parents[2] / "configs"
TPU = "v5p:2x2x1"
pytest.importorskip("libtpu", reason="the TPU's compiler is for Linux on x86-64")


def tiny_config(**changes):
    """A network of two levels at 8x8 latents: everything that the big ones have, in seconds."""
    config = runpy.run_path(str(CONFIGS / "pretrain.py"))["get_config"]("64")
    config.unlock()
    config.data.image_size = 64
    config.batch_size = 16
    config.cache = True
    config.model.update(
        block_out_channels=(64, 64),
        layers_per_block=1,
        attention_levels=(True, False),
        context_size=64,
        remat="none",
    )
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def record():
    return compile_record(tiny_config(), TPU)


def test_the_record_says_where_it_was_compiled_for(record):
    assert record.point["chips"] == 4
    assert (record.point["mesh_replica"], record.point["mesh_fsdp"]) == (1, 4)
    assert record.point["program"] == "train"
    assert "nothing was run" in record.protocol["source"]


def test_memory_is_that_of_the_state_in_tiles(record):
    """Arguments: parameters, two moments and the average, each slice in tiles; and the batch."""
    task = abstract_task(tiny_config())
    params = jax.eval_shape(task.init, jax.random.key(0))
    placed = param_shardings(make_mesh(fsdp=4, devices=topology_devices(TPU)), params)
    slices = jax.tree.map(lambda leaf, sharding: sharding.shard_shape(leaf.shape), params, placed)
    tiled = sum(map(tiled_size, jax.tree.leaves(slices, is_leaf=lambda x: isinstance(x, tuple))))
    assert record.costs["argument_bytes"] == pytest.approx(4 * 4 * tiled, rel=0.1)
    assert record.costs["hbm_bytes"] > record.costs["argument_bytes"]
    assert record.costs["hbm_capacity"] == 95 * 2**30


def test_flops_are_those_of_the_trace(record):
    task = abstract_task(tiny_config())
    assert record.costs["model_flops"] == 3 * task.forward_flops * 16 / 4
    assert record.costs["compiler_flops"] > 0.8 * record.costs["model_flops"]


def test_weights_are_gathered_and_gradients_summed(record):
    assert record.costs["all-gather_count"] > 10
    assert record.costs["all-reduce_count"] + record.costs.get("reduce-scatter_count", 0) > 0
    kinds = {kind: record.costs.get(f"{kind}_bytes", 0) for kind in COLLECTIVES}
    # A sum is both, a scatter and a gather.
    assert record.costs["collective_bytes"] == sum(kinds.values()) + kinds["all-reduce"]
    assert record.costs["slices_bytes"] == 0
    assert 0 < record.costs["exposed_seconds"] <= record.costs["collective_seconds"]


def test_examples_stay_where_they_are(record):
    """No activation is moved: all traffic is weights, gathered twice, and gradients, once."""
    task = abstract_task(tiny_config())
    params = jax.eval_shape(task.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert record.costs["collective_bytes"] < 1.3 * 3 * count * 2  # bfloat16


def test_a_text_encoder_in_other_precision_is_not_estimated():
    config = tiny_config(cache=False, text_encoder_dtype="bfloat16")
    with pytest.raises(
        ValueError, match="text_encoder_dtype='bfloat16': the text encoder of a rep"
    ):
        abstract_task(config)


def test_options_reach_the_compiler():
    config = tiny_config(tpu_options="xla_tpu_no_such_option=1")
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_tpu_no_such_option"):
        compile_record(config, TPU)


def test_a_compile_of_less_effort_is_another_point(record):
    jax.config.update("jax_optimization_level", "O1")
    try:
        hurried = compile_record(tiny_config(), TPU, program="evaluate")
    finally:
        jax.config.update("jax_optimization_level", "UNKNOWN")
    expected = {**record.point, "program": "evaluate", "optimization_level": "O1"}
    assert hurried.point == expected


def test_a_program_too_big_says_so():
    config = tiny_config(batch_size=2**18)
    with pytest.raises(MemoryError, match="v5e:2x2: does not fit"):
        compile_record(config, "v5e:2x2")


def test_more_than_the_chip_has_is_said_though_it_compiles(monkeypatch, caplog):
    monkeypatch.setitem(CHIPS, "v5p", dataclasses.replace(CHIPS["v5p"], hbm_bytes=2**20))
    one = jax.sharding.SingleDeviceSharding(topology_devices(TPU)[0])
    numbers = jax.ShapeDtypeStruct((2**20,), jnp.float32, sharding=one)
    with caplog.at_level("WARNING"):
        costs = estimate(jax.jit(jnp.sin).lower(numbers), TPU, model_flops=1.0).costs
    assert costs["hbm_bytes"] > costs["hbm_capacity"] == 2**20
    assert "needs 0.0 GiB and has 0, though the compiler accepts it" in caplog.text


@pytest.mark.parametrize(
    ("topology", "message"),
    [("v5:2x2", "did you mean 'v5"), ("v5p:3x5x7", "topology='v5p:3x5x7'")],
)
def test_unknown_topologies_are_refused(topology, message):
    with pytest.raises(ValueError, match=message):
        topology_devices(topology)


def test_batches_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="batch_size=10: must be a multiple"):
        compile_record(tiny_config(batch_size=10), TPU)


def test_slices_share_nothing_but_gradients():
    mesh = make_mesh(replica=2, fsdp=4, devices=topology_devices("v5e:2x2", slices=2))
    for replica in range(2):
        assert len({d.slice_index for d in mesh.devices[replica].flat}) == 1
    with pytest.raises(ValueError, match="the devices are 2 slices, and replica must be"):
        make_mesh(replica=1, fsdp=8, devices=topology_devices("v5e:2x2", slices=2))


def test_slices_exchange_what_is_left_of_the_gradients():
    """Each chip sends its part of the gradients to the other slice, and nothing else."""
    devices = topology_devices("v5e:2x2", slices=2)
    mesh = make_mesh(replica=2, fsdp=4, devices=devices)
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    rows = NamedSharding(mesh, PartitionSpec(("replica", "fsdp")))

    def loss(weights, x):
        return jnp.sum(jnp.sin(x @ weights.astype(jnp.bfloat16)).astype(jnp.float32))

    weights = jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=sharding)
    x = jax.ShapeDtypeStruct((256, 512), jnp.bfloat16, sharding=rows)
    step = jax.jit(jax.grad(loss), out_shardings=sharding)
    found = read(step.lower(weights, x).compile().as_text()).collectives
    assert found["all-gather"].bytes == 512 * 512 * 2  # the weights, once, in bfloat16
    sent = found["send-to-slices"]
    assert sent.bytes == sent.hidden == 512 * 512 * 2 / 4


def test_loops_are_counted_as_often_as_they_run():
    mesh = make_mesh(fsdp=4, devices=topology_devices(TPU))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def total(x, repeats):
        def body(carry, _):
            # A sum over devices that depends on the last one, so that none can be left out.
            return jnp.sin(carry) + jnp.sum(jnp.sin(x * carry[0])), None

        return jax.lax.scan(body, jnp.ones(128), None, length=repeats)[0]

    found = []
    for repeats in (1, 7):
        x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=rows)
        step = jax.jit(total, static_argnums=1, out_shardings=everywhere)
        found.append(read(step.lower(x, repeats).compile().as_text()))
    assert [r.collectives["all-reduce"].count for r in found] == [1, 7]
    assert found[1].collectives["all-reduce"].bytes == 7 * found[0].collectives["all-reduce"].bytes
    assert sum(found[1].cycles.values()) > 3 * sum(found[0].cycles.values())


def test_flash_attention_is_counted_by_hand():
    device = jax.sharding.SingleDeviceSharding(topology_devices(TPU)[0])
    array = jax.ShapeDtypeStruct((2, 1024, 4, 40), jnp.bfloat16, sharding=device)

    def loss(q, k, v):
        return dot_product_attention(q, k, v, "auto").astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(array, array, array).compile().as_text()
    kernels = {kernel.name: kernel for kernel in read(text).kernels}
    # 2 examples of 4 heads, 1024 x 1024 scores each; of a v5e: one core of 1.5 GHz
    for name, bundles in (("fwd_residuals", 4500), ("dkv_no_residuals", 10_700)):
        assert kernel_seconds(kernels[f"splash_mha_{name}"], "v5e") == pytest.approx(
            8 * bundles / 1.5e9
        )
    forward = kernels["splash_mha_fwd_residuals"]
    wide = Kernel(forward.name, ((2, 4, 3 * 128, 1024),) * 2, count=2)
    assert kernel_seconds(wide, "v6e") == pytest.approx(2 * 8 * 4600 * 1.5 / 1.75e9)
    assert kernel_seconds(Kernel("something_else", ((1, 2, 3, 4),), 1), "v5p") == 0


def test_a_collective_among_fused_operations_is_one():
    """It begins in one and ends in another; a scatter is a sum that keeps a part."""
    text = """
%start.1 (p: bf16[80,1280]) -> bf16[1280,1280] {
  %g.1 = bf16[1280,1280]{1,0} all-gather(%p), channel_id=6, dimensions={0}
}
%done.1 (p: bf16[80,1280]) -> bf16[1280,1280] {
  %g.2 = bf16[1280,1280]{1,0} all-gather(%p), channel_id=6, dimensions={0}
}
%all-reduce-scatter.3 (p: bf16[640,64]) -> bf16[160,64] {
  %r.1 = bf16[640,64]{1,0} all-reduce(%p), channel_id=7
}
ENTRY %main (p: bf16[80,1280]) -> bf16[160,64] {
  %a = bf16[1280,1280]{1,0} fusion(%p), kind=kCustom, calls=%start.1
  %b = bf16[1280,1280]{1,0} fusion(%a), kind=kCustom, calls=%done.1
  ROOT %c = bf16[160,64]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.3
}
"""
    gathered, scattered = 2 * 1280 * 1280, 2 * 640 * 64
    assert read(text).collectives == {
        "all-gather": Collective(1, gathered, hidden=gathered),
        "reduce-scatter": Collective(1, scattered, hidden=0),
    }


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize(("tokens", "size"), [(4096, 64), (4096, 128), (4096, 192), (1024, 192)])
def test_flash_fits_the_cores(topology, tokens, size):
    """Its blocks, for more examples than one: the next ones are fetched meanwhile."""
    device = jax.sharding.SingleDeviceSharding(topology_devices(topology)[0])
    array = jax.ShapeDtypeStruct((4, tokens, 8, size), jnp.bfloat16, sharding=device)

    def loss(q, k, v):
        return dot_product_attention(q, k, v, "flash").astype(jnp.float32).sum()

    jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(array, array, array).compile()


@pytest.mark.slow
def test_offloading_takes_blocks_out_of_the_chips_memory():
    kept = {
        remat: compile_record(
            tiny_config(batch_size=2048, model={**tiny_config().model, "remat": remat}), TPU
        ).costs["temporary_bytes"]
        for remat in ("none", "offload")
    }
    assert kept["offload"] < 0.7 * kept["none"]


@pytest.mark.parametrize("name", CHIPS)
def test_chips_agree_with_their_clocks(name):
    """Peak FLOP/s = clock x cores x units x size of a unit squared x 2."""
    chip = chip_of(f"{name}:2x2")
    side = 256 if name == "v6e" else 128
    assert math.isclose(chip.flops, chip.clock * chip.cores * 4 * side**2 * 2, rel_tol=0.01)


def test_read_refuses_what_is_no_module():
    with pytest.raises(ValueError, match="no entry computation"):
        read("nothing")


@pytest.mark.slow
def test_sampling_gathers_no_more_than_weights_and_counts_every_step():
    found = {n: sampling_record(tiny_config(), TPU, steps=n, batch_size=8) for n in (2, 6)}
    ratio = found[6].costs["model_flops"] / found[2].costs["model_flops"]
    assert ratio == 3
    assert found[6].costs["cycles"] > 1.5 * found[2].costs["cycles"]
    assert found[6].costs["unknown_loops"] == 0
    assert found[6].costs["temporary_bytes"] < 1.2 * found[2].costs["temporary_bytes"]


def test_sampling_checks_its_batch():
    with pytest.raises(ValueError, match=r"batch_size=3: must be a multiple .* = 4"):
        sampling_record(tiny_config(), TPU, batch_size=3)
