"""Which rows a process needs, for meshes as they are on pods; the arrays themselves are tested with
real processes in tests/train/test_multihost.py.
"""

import itertools
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from ldm_scaling.sharding import (
    batch_sharding,
    fetch,
    hosts,
    local_rows,
    make_mesh,
    put_whole,
    replicated,
)
from ldm_scaling.sharding.mesh import AXES


class Device(NamedTuple):
    process_index: int


def mesh_of(processes):
    """A mesh of devices that are only known by their process: [replica, fsdp, tensor]."""
    devices = np.empty(np.shape(processes), dtype=object)
    for place in np.ndindex(devices.shape):
        devices[place] = Device(int(np.asarray(processes)[place]))
    return FakeMesh(devices)


class FakeMesh(Mesh):
    """`Mesh` accepts only real devices."""

    def __new__(cls, devices):
        return object.__new__(cls)

    def __init__(self, devices):
        self.__dict__.update(_axis_names=AXES, axis_names=AXES, devices=devices)


def rows(mesh, batch_size, count):
    whole = tuple(range(batch_size))
    return [local_rows(mesh, batch_size, i) or whole for i in range(count)]


def test_processes_side_by_side_get_consecutive_rows():
    mesh = mesh_of(np.arange(8).reshape(1, 8, 1) // 4)
    assert rows(mesh, 16, 2) == [tuple(range(8)), tuple(range(8, 16))]


def test_a_torus_deals_rows_out():
    """2 x 2 x 1 chips a host on a 4 x 4 x 1 torus that is one fsdp axis, x before y."""
    x, y = np.divmod(np.arange(16), 4)
    mesh = mesh_of((2 * (x // 2) + y // 2).reshape(1, 16, 1))
    assert rows(mesh, 32, 4)[1] == (4, 5, 6, 7, 12, 13, 14, 15)


def test_processes_of_one_tensor_group_need_the_same_rows():
    mesh = mesh_of(np.arange(8).reshape(1, 2, 4) // 2)  # four tensor devices on two processes
    assert rows(mesh, 4, 4) == [(0, 1), (0, 1), (2, 3), (2, 3)]


def test_one_group_over_all_processes_needs_all_rows_everywhere():
    mesh = mesh_of(np.arange(8).reshape(1, 1, 8) // 2)
    assert [local_rows(mesh, 4, i) for i in range(4)] == [None] * 4


def test_groups_may_differ_in_how_many_rows_a_process_needs():
    mesh = mesh_of([[[0], [0], [0], [1]]])
    assert rows(mesh, 8, 2) == [(0, 1, 2, 3, 4, 5), (6, 7)]


@pytest.mark.parametrize("seed", range(5))
def test_all_rows_are_somewhere_whatever_the_mesh(seed):
    rng = np.random.default_rng(seed)
    for shape in itertools.product((1, 2), (2, 4), (1, 2)):
        processes = rng.permutation(np.arange(np.prod(shape)) // 2).reshape(shape)
        count = int(processes.max()) + 1
        batch_size = 3 * shape[0] * shape[1]
        found = rows(mesh_of(processes), batch_size, count)
        assert set().union(*found) == set(range(batch_size))
        for process, own in enumerate(found):
            assert list(own) == sorted(set(own))
            parts = {r * shape[1] + f for r, f, _ in np.argwhere(processes == process)}
            assert set(own) == {3 * part + i for part in parts for i in range(3)}


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(
        ValueError, match=r"batch_size=12: must be a multiple of replica \* fsdp = 8"
    ):
        local_rows(make_mesh(), 12)


def test_rows_that_do_not_fill_the_parts_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="a batch of 12 rows on this process: must be a multiple"):
        hosts.put_batch(make_mesh(), {"x": np.zeros((12, 2), np.float32)})


@pytest.mark.parametrize("several", [False, True])
def test_placed_and_fetched_is_the_same(monkeypatch, several):
    """Also by the ways of several processes, of which this one has all devices."""
    mesh = make_mesh(replica=2, fsdp=2, tensor=2)
    tree = {"x": np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32), "n": np.int32(3)}
    shardings = {"x": batch_sharding(mesh), "n": replicated(mesh)}
    if several:
        monkeypatch.setattr(jax, "process_count", lambda: 2)
    placed = put_whole(tree, shardings)
    assert placed["x"].sharding == batch_sharding(mesh)
    jax.tree.map(np.testing.assert_array_equal, fetch(mesh, placed), tree)
    batch = hosts.put_batch(mesh, {"x": tree["x"]})
    np.testing.assert_array_equal(fetch(mesh, batch)["x"], tree["x"])
    assert batch["x"].sharding == batch_sharding(mesh)
