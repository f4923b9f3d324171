import jax
import jax.numpy as jnp

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
