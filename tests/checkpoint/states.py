"""Small training states, what they are made of, and folders of them."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldm_scaling.checkpoint.state import Checkpoints


class State(NamedTuple):
    step: jax.Array
    params: dict
    key: jax.Array


def make_state(value: float, axis: str | None = "data") -> State:
    mesh = Mesh(np.array(jax.devices()), ("data",))
    place = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(axis)))  # noqa: E731
    whole = NamedSharding(mesh, PartitionSpec())
    noise = jax.random.normal(jax.random.key(int(value)), (16, 8))
    params = {
        "dense_0": {"kernel": place(noise), "bias": place(noise[:, 0].astype(jnp.bfloat16))},
        "odd": jax.device_put(jnp.array([np.nan, -0.0, np.inf, 1e-45]), whole),
    }
    step = jax.device_put(jnp.int32(value), whole)
    return State(step, params, jax.device_put(jax.random.key(7), whole))


def abstract(state: State) -> State:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def bits(state: State) -> list[bytes]:
    state = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def save_steps(folder: Path, *steps: int, **options) -> None:
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"width": 16, "at": step})


def files_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
