import collections
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from ldm_scaling.sharding import make_mesh
from ldm_scaling.train import loop
from ldm_scaling.train.compilation import cached_compilation
from tests.train.toy import ToyBatches, ToyTask, toy_config

MIN_SECONDS = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture
def events() -> Iterator[collections.Counter]:
    """How often JAX looked into the persistent cache, and found something or not."""
    counter: collections.Counter = collections.Counter()

    def listener(name: str, **_: object) -> None:
        if name.startswith("/jax/compilation_cache/cache_"):
            counter[name.removeprefix("/jax/compilation_cache/cache_")] += 1

    before = jax.config.values[MIN_SECONDS]
    jax.config.update(MIN_SECONDS, 0.0)  # the toy compiles fast
    jax.monitoring.register_event_listener(listener)
    yield counter
    jax.monitoring.unregister_event_listener(listener)
    jax.config.update(MIN_SECONDS, before)


def run(folder, workdir):
    jax.clear_caches()  # as a new process begins
    with cached_compilation("workdir", epath.Path(folder)):
        mesh = make_mesh(devices=jax.devices()[:1])
        return loop.run(toy_config(), workdir, mesh, ToyTask(), ToyBatches())


def test_the_second_start_compiles_nothing_and_computes_the_same(tmp_path, events):
    first = jax.device_get(run(tmp_path, tmp_path / "a"))
    compiled = events["misses"]
    assert compiled >= 2  # the initial state, the step
    assert not events["hits"]
    assert list((tmp_path / "compiled").glob("jit_step-*"))
    events.clear()
    second = jax.device_get(run(tmp_path, tmp_path / "b"))
    assert events == {"hits": compiled}
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_off_and_outside_nothing_is_kept(tmp_path, events):
    folder = epath.Path(tmp_path)
    with cached_compilation("off", folder):
        jax.jit(lambda x: x + 1)(jnp.ones(3))
    with cached_compilation("workdir", folder):
        pass
    jax.jit(lambda x: x + 2)(jnp.ones(3))
    assert not events
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chosen", ["by argument", "by the environment"])
def test_a_folder_may_be_shared(tmp_path, events, chosen):
    shared = tmp_path / "shared"
    where = str(shared)
    if chosen == "by the environment":
        where = "workdir"
        jax.config.update("jax_compilation_cache_dir", str(shared))  # JAX_COMPILATION_CACHE_DIR
    try:
        with cached_compilation(where, epath.Path(tmp_path)):
            jax.jit(lambda x: x + 3)(jnp.ones(3))
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert len(list(shared.iterdir())) == events["misses"] > 0
    assert not (tmp_path / "compiled").exists()
