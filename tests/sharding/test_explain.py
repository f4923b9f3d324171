import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ldm_scaling.sharding import explain, make_mesh, placements

PARAMS = {
    "dense": {"kernel": jnp.ones((256, 512)), "bias": jnp.ones(512)},
    "odd": {"kernel": jax.ShapeDtypeStruct((1001, 321), "bfloat16")},
}


def test_rows_tell_what_a_device_holds():
    rows = {row.name: row for row in placements(make_mesh(replica=2), PARAMS)}
    kernel = rows["dense/kernel"]
    assert (kernel.spec, kernel.bytes, kernel.bytes_per_device) == ("-, fsdp", 524288, 131072)
    assert kernel.reason == ""
    assert rows["dense/bias"].reason == "fewer than 16384 elements"
    odd = rows["odd/kernel"]
    assert (odd.bytes_per_device, odd.reason) == (2 * 1001 * 321, "no free axis divides by 4")


def test_bytes_are_those_of_the_arrays_in_place():
    mesh = make_mesh()
    from ldm_scaling.sharding import param_shardings

    dense = {"dense": PARAMS["dense"]}
    placed = jax.device_put(dense, param_shardings(mesh, dense))
    for row, leaf in zip(placements(mesh, dense), jax.tree.leaves(placed), strict=True):
        assert row.bytes_per_device == leaf.addressable_shards[0].data.nbytes


def test_the_table_adds_up():
    text = explain(make_mesh(replica=2), {"trained": PARAMS})
    assert "Mesh: replica 2 x fsdp 4 x tensor 1" in text
    assert "trained: 3 arrays, 1,168,978 bytes in all" in text
    assert "2 arrays of 644,690 bytes are not spread" in text


def test_one_device_spreads_nothing():
    rows = placements(make_mesh(devices=jax.devices()[:1]), PARAMS)
    assert {row.reason for row in rows} == {"the fsdp axis has size 1"}


ONE_KERNEL = "mid_block/attentions_0/transformer_blocks_0/attn1/to_q/kernel"


@pytest.mark.parametrize(
    ("config", "overrides", "mesh", "kernel"),
    [
        (  # for as many devices as there are
            "pretrain.py:768", ["--config.mesh.tensor=2"], "replica 1 x fsdp 4 x tensor 2",
            ["3072x3072", "fsdp,", "tensor", f"{4 * 3072 * 3072 // 8:,}"],
        ),
        (  # for a pod
            "pods.py:v5p-768", [], "replica 4 x fsdp 16 x tensor 1",
            ["3072x3072", "fsdp", f"{4 * 3072 * 3072 // 16:,}"],
        ),
    ],
)  # fmt: skip
def test_the_command_tells_where_the_5b_model_would_lie(tmp_path, config, overrides, mesh, kernel):
    """Without data, weights or a run: the table alone."""
    root = Path(__file__).parents[2]
    command = [
        sys.executable, root / "launch" / "train.py", f"--config={root}/configs/{config}",
        f"--workdir={tmp_path / 'run'}", "--explain_sharding", *overrides,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"Mesh: {mesh}" in done.stdout
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if "/" in line}
    assert rows[ONE_KERNEL] == kernel
    assert "frozen: " in done.stdout
    assert not (tmp_path / "run").exists()
