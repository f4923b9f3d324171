"""What a run of the toy task left behind, and whether it is what another run left."""

import jax
import numpy as np

from ldm_scaling.checkpoint.state import Checkpoints
from ldm_scaling.records import read_records
from ldm_scaling.sharding import make_mesh
from ldm_scaling.train.optimizer import make_optimizer
from ldm_scaling.train.step import build
from tests.train.toy import ToyTask, toy_config


def losses(workdir):
    """Step -> loss, as the first process recorded them."""
    records = read_records(workdir / "training.jsonl")
    found = [r for r in records if r.kind == "training" and not r.protocol]
    return {r.point["step"]: r.metrics["loss"].value for r in found}


def held_out_losses(workdir):
    records = read_records(workdir / "training.jsonl")
    return {r.point["step"]: r.metrics["loss"].value for r in records if r.protocol}


def assert_same_losses(workdir, expected, steps=range(1, 13)):
    found = losses(workdir)
    assert sorted(found) == list(steps)
    np.testing.assert_allclose(
        [found[step] for step in steps], [expected[step] for step in steps], rtol=1e-5
    )


def saved_state(workdir):
    """(step, all arrays of the newest checkpoint)."""
    config = toy_config()
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer)
    program = build(ToyTask(), optimizer, mesh, seed=0, ema_decay=config.ema_decay)
    step, state, _ = Checkpoints(workdir / "checkpoints").restore_latest(program.state)
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_bitwise(workdir, other):
    (step, state), (other_step, other_state) = saved_state(workdir), saved_state(other)
    assert step == other_step
    for a, b in zip(state, other_state, strict=True):
        np.testing.assert_array_equal(a, b)
