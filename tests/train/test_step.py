import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_scaling.sharding import make_mesh, put_batch
from ldm_scaling.train.optimizer import learning_rate_schedule, make_optimizer
from ldm_scaling.train.step import build, ema_decay_at, example_keys
from tests.train.toy import ToyBatches, ToyTask, toy_config


@functools.cache
def program_on(mesh, accumulate, tpu_options=""):
    return build(
        ToyTask(),
        make_optimizer(toy_config().optimizer),
        mesh,
        seed=0,
        ema_decay=0.99,
        accumulate=accumulate,
        min_shard_size=1,
        tpu_options=tpu_options,
    )


def run_steps(steps, *, devices=None, accumulate=1, bad_steps=(), mesh=None):
    """State and metrics after so many steps, and the state where it lies."""
    task, batches = ToyTask(), ToyBatches(bad_steps=bad_steps)
    mesh = make_mesh(**(mesh or {}), devices=devices or jax.devices()[:1])
    program = program_on(mesh, accumulate)
    state, frozen = program.init(), jax.device_put(task.frozen, program.frozen)
    history = []
    for i in range(steps):
        state, metrics = program.step(state, frozen, put_batch(mesh, batches.batch(i)))
        history.append(jax.device_get(metrics))
    assert program.step._cache_size() <= 1
    return jax.device_get(state), history, state


def assert_close(a, b, tolerance):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b
    )


@pytest.fixture(scope="module")
def alone():
    return run_steps(6)


@pytest.mark.parametrize("mesh", [{}, {"replica": 2, "fsdp": 4}, {"replica": 8, "fsdp": 1}])
def test_eight_devices_do_what_one_does(alone, mesh):
    state, history, placed = run_steps(6, devices=jax.devices(), mesh=mesh)
    assert_close(history, alone[1], 1e-5)
    assert_close(state, alone[0], 1e-5)
    slices = mesh.get("fsdp", 8)
    for tree in (placed.params, placed.ema_params, placed.opt_state[1][0].mu):
        kernel = tree["hidden"]["kernel"]
        assert kernel.addressable_shards[0].data.size * slices == kernel.size


def test_options_of_the_tpus_compiler_are_left_out_elsewhere():
    mesh = make_mesh(devices=jax.devices()[:1])
    program = program_on(mesh, 1, "xla_tpu_scoped_vmem_limit_kib=32768")
    batch = put_batch(mesh, ToyBatches().batch(0))
    assert int(program.step(program.init(), ToyTask().frozen, batch)[0].step) == 1


@pytest.mark.parametrize("options", ["a", "a=", "=1", "a=1,,b=2"])
def test_options_of_another_form_are_refused(options):
    with pytest.raises(ValueError, match=r"tpu_options='.*': give name=value"):
        program_on(make_mesh(devices=jax.devices()[:1]), 1, options)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_parts_equal_the_big_batch(alone, accumulate):
    state, history, _ = run_steps(6, accumulate=accumulate)
    assert_close(history[0], alone[1][0], 1e-6)
    first = run_steps(1, accumulate=accumulate)[0]
    assert_close(first.params, run_steps(1)[0].params, 1e-6)
    assert_close(state.params, alone[0].params, 1e-5)


def test_accumulation_spread_over_devices(alone):
    state, _, _ = run_steps(6, accumulate=2, devices=jax.devices())
    assert_close(state.params, alone[0].params, 1e-5)


def test_a_bad_step_changes_only_the_counters():
    before = run_steps(3)[0]
    after, history, _ = run_steps(4, bad_steps=(3,))
    kept = ("params", "opt_state", "ema_params")
    for field in kept:
        assert_equal(getattr(before, field), getattr(after, field))
    assert (after.step, after.skipped_in_a_row, after.skipped_total) == (4, 1, 1)
    assert np.isnan(history[3]["loss"])


def test_training_goes_on_after_bad_steps():
    state, history, _ = run_steps(6, bad_steps=(1, 2, 4))
    assert [int(m["skipped_in_a_row"]) for m in history] == [0, 1, 2, 0, 1, 0]
    assert state.skipped_total == 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    counts = [s.count for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
              if hasattr(s, "mu")]  # fmt: skip
    assert counts == [3]  # the optimizer saw the good steps only


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_ema_is_the_warmed_up_average_of_the_params():
    history = [run_steps(n)[0] for n in (0, 1, 2, 3)]
    ema = history[0].params
    for s, state in enumerate(history[1:]):
        decay = min(0.99, (1 + s) / (10 + s))
        ema = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, ema, state.params)
        assert_close(state.ema_params, ema, 1e-6)


def test_ema_decay_warms_up_to_its_value():
    decays = [float(ema_decay_at(jnp.asarray(s), 0.999)) for s in (0, 90, 10**6)]
    np.testing.assert_allclose(decays, [0.1, 0.91, 0.999], rtol=1e-6)


def test_keys_belong_to_example_and_step():
    def data(ids, step, seed=0):
        return jax.random.key_data(example_keys(seed, jnp.asarray(ids), jnp.asarray(step)))

    assert_equal(data([5, 7], 3)[1], data([7], 3)[0])
    different = [data([7], 3), data([7], 4), data([8], 3), data([3], 7), data([7], 3, seed=1)]
    assert len({d.tobytes() for d in map(np.asarray, different)}) == len(different)


def test_learning_rate_warms_up_then_falls():
    config = toy_config().optimizer
    config.update(learning_rate=1.0, warmup_steps=4, decay="cosine", decay_steps=14)
    rates = [float(learning_rate_schedule(config)(s)) for s in range(15)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1, 1], rtol=1e-6)
    np.testing.assert_allclose([rates[9], rates[14]], [0.5, 0], atol=1e-6)
    config.decay = "constant"
    assert float(learning_rate_schedule(config)(10**6)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": "cosin"}, "did you mean 'cosine'"),
        ({"decay": "cosine", "decay_steps": 4}, "must be more than"),
    ],
)
def test_bad_schedule_is_named(changes, message):
    config = toy_config().optimizer
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        learning_rate_schedule(config)


def test_optimizer_clips_and_decays_weights():
    config = toy_config().optimizer
    config.update(learning_rate=1.0, warmup_steps=0, weight_decay=0.1, clip_norm=1e-3, eps=1.0)
    optimizer = make_optimizer(config)
    params = {"w": jnp.full(4, 2.0)}
    updates, _ = optimizer.update({"w": jnp.full(4, 1e6)}, optimizer.init(params), params)
    # Clipped gradient 5e-4 each; with eps=1 Adam's step is about the gradient itself.
    expected = -(5e-4 / (5e-4 + 1.0)) - 0.1 * 2.0
    np.testing.assert_allclose(optax.tree_utils.tree_max(updates), expected, rtol=1e-5)


def test_a_first_moment_in_bfloat16_halves_its_memory_and_stays_close():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(16, 16)), jnp.float32)}
    grads = [{"w": jnp.asarray(rng.normal(size=(16, 16)), jnp.float32)} for _ in range(5)]
    found, moments = {}, {}
    for dtype in ("float32", "bfloat16"):
        config = toy_config().optimizer
        config.mu_dtype = dtype
        optimizer, current = make_optimizer(config), params
        state = optimizer.init(params)
        for grad in grads:
            updates, state = optimizer.update(grad, state, current)
            current = optax.apply_updates(current, updates)
        found[dtype], moments[dtype] = current["w"] - params["w"], state[1][0]
    assert moments["bfloat16"].mu["w"].nbytes * 2 == moments["float32"].mu["w"].nbytes
    assert moments["bfloat16"].nu["w"].dtype == jnp.float32
    scale = float(jnp.abs(found["float32"]).max())
    np.testing.assert_allclose(found["bfloat16"], found["float32"], atol=0.02 * scale)


def test_an_unknown_dtype_of_the_moment_names_the_nearest():
    config = toy_config().optimizer
    config.mu_dtype = "bfloat"
    with pytest.raises(ValueError, match=r"optimizer.mu_dtype='bfloat': did you mean 'bfloat16'"):
        make_optimizer(config)
