import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import monitoring  # listeners can be unregistered only here

from ldm_scaling.diffusion import (
    SAMPLERS,
    SamplerTable,
    Schedule,
    classifier_free_guidance,
    ddim,
    ddpm,
    initial_noise,
    pad,
    sample,
    sampler_table,
    to_denoiser,
)

SCHEDULE = Schedule.zero_terminal_snr()
SHAPE = (4, 4, 2)
WEIGHTS = 0.4 * jax.random.normal(jax.random.key(9), (2, 2))


def model_fn(x, t, context):
    level = jnp.mean(context, axis=(1, 2)) + jnp.sin(0.01 * t)
    return jnp.tanh(jnp.einsum("bhwc,cd->bhwd", x, WEIGHTS) + level.reshape(-1, 1, 1, 1))


def program(table, rate, keys, context):
    guided = classifier_free_guidance(model_fn, rate, jnp.zeros((1, *context.shape[1:])))
    denoise = to_denoiser(guided, context, SCHEDULE, "v_prediction")
    return sample(denoise, table, initial_noise(keys, SHAPE), keys)


@pytest.fixture(scope="module")
def run():
    return jax.jit(program)


@pytest.fixture(scope="module")
def keys():
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(4))


@pytest.fixture(scope="module")
def context():
    return jax.random.normal(jax.random.key(4), (4, 3, 5))


def test_a_whole_sweep_compiles_once(keys, context):
    """3 samplers x 10 step counts x 8 guidance rates: one trace, one compilation."""
    traces, compilations = [], []

    def traced(*args):
        traces.append(1)
        return program(*args)

    def listen(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(event)

    run = jax.jit(traced)
    results = set()
    context.block_until_ready()
    monitoring.register_event_duration_secs_listener(listen)
    try:
        for name in SAMPLERS:
            for steps in (2, 4, 5, 8, 10, 16, 20, 50, 100, 250):
                table = pad(sampler_table(name, SCHEDULE, steps, spacing="trailing"), 256)
                for rate in (1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0):
                    x_0 = run(table, np.float32(rate), keys, context)
                    results.add(np.asarray(x_0).tobytes())
    finally:
        monitoring.unregister_event_duration_listener(listen)
    # Two steps of DPM-Solver++(2M), both of first order, are two of DDIM.
    assert len(results) == 3 * 10 * 8 - 8
    assert len(traces) == 1
    assert len(compilations) == 1
    assert run._cache_size() == 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_padding_changes_no_bit(run, keys, context, sampler):
    table = sampler_table(sampler, SCHEDULE, 10, spacing="trailing")
    plain = run(table, 3.0, keys, context)
    for length in (16, 64):
        np.testing.assert_array_equal(run(pad(table, length), 3.0, keys, context), plain)


def test_padded_rows_call_no_network(keys):
    calls = []

    def denoise(x, t):
        jax.debug.callback(lambda t: calls.append(int(t)), t[0])
        return 0.5 * x

    table = pad(ddim(SCHEDULE, 3, spacing="trailing"))
    x_T = initial_noise(keys, SHAPE)
    jax.block_until_ready(jax.jit(lambda table: sample(denoise, table, x_T, keys))(table))
    jax.effects_barrier()
    assert calls == [999, 666, 332]


def test_an_example_draws_the_same_in_any_batch(run, keys, context):
    table = ddpm(SCHEDULE, 10, spacing="trailing")
    whole = run(table, 3.0, keys, context)
    halves = [run(table, 3.0, keys[i : i + 2], context[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-6)
    np.testing.assert_allclose(run(table, 3.0, keys[::-1], context[::-1])[::-1], whole, atol=1e-6)


def test_noise_is_bitwise_the_same_in_any_batch_padding_and_on_any_devices():
    """Initial and step noise summed up, with no network whose rounding could differ."""

    @jax.jit
    def noise_only(table, keys):
        return sample(lambda x, t: jnp.zeros_like(x), table, initial_noise(keys, SHAPE), keys)

    steps = 7
    ones, zeros = np.ones(steps), np.zeros(steps)
    table = SamplerTable(np.arange(steps, dtype=np.int32), ones, zeros, zeros, ones, ones > 0)
    keys = jax.random.split(jax.random.key(3), 8)
    whole = noise_only(table, keys)
    np.testing.assert_array_equal(noise_only(pad(table, 16), keys), whole)
    np.testing.assert_array_equal(noise_only(table, keys[2:3]), whole[2:3])

    mesh = jax.make_mesh((8,), ("replica",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("replica"))
    sharded = noise_only(table, jax.device_put(keys, spread))
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, whole)

    # Eight independent standard normals: variances add up, and the last is not the first.
    assert np.std(whole) == pytest.approx(np.sqrt(8), rel=0.15)
    shorter = table._replace(active=np.arange(steps) < steps - 1)
    last_noise = np.asarray(whole - noise_only(shorter, keys))
    first_noise = np.asarray(initial_noise(keys, SHAPE))
    assert abs(np.corrcoef(last_noise.ravel(), first_noise.ravel())[0, 1]) < 0.3
    assert np.std(last_noise) == pytest.approx(1, abs=0.25)


def test_stochastic_samplers_need_their_keys_and_deterministic_ones_do_not(keys):
    x_T = initial_noise(keys, SHAPE)
    other = initial_noise(keys, SHAPE) * 0 + x_T
    walk = jax.jit(lambda table, keys: sample(lambda x, t: 0.5 * x, table, other, keys))
    deterministic = ddim(SCHEDULE, 5, spacing="trailing")
    stochastic = ddim(SCHEDULE, 5, spacing="trailing", eta=1.0)
    np.testing.assert_array_equal(walk(deterministic, keys), walk(deterministic, keys[::-1]))
    assert np.abs(walk(stochastic, keys) - walk(stochastic, keys[::-1])).max() > 0.1


def test_the_state_stays_float32_for_a_bfloat16_network(keys):
    seen = []

    def denoise(x, t):
        seen.append((x.dtype, t.dtype))
        return jnp.tanh(x.astype(jnp.bfloat16))

    table = ddim(SCHEDULE, 5, spacing="trailing")
    x_0 = sample(denoise, table, initial_noise(keys, SHAPE).astype(jnp.bfloat16), keys)
    assert x_0.dtype == jnp.float32
    assert set(seen) == {(jnp.dtype("float32"), jnp.dtype("int32"))}


def test_multistep_consistency_sampling_is_a_table(keys):
    """Rows of x0 and fresh noise only (arXiv:2303.01469, algorithm 1): x <- alpha x0 + sigma z."""
    t = np.array([999, 759, 499, 259], np.int32)
    then = np.append(SCHEDULE.alpha_bar[t[1:]], 1.0)
    zeros = np.zeros(4)
    table = SamplerTable(t, zeros, np.sqrt(then), zeros, np.sqrt(1 - then), np.ones(4, bool))
    clean = jax.random.normal(jax.random.key(8), (4, *SHAPE))
    seen = []

    def consistent(x, t):
        jax.debug.callback(lambda t, x: seen.append((int(t), np.array(x))), t[0], x, ordered=True)
        return clean  # the same x_0 from everywhere

    x_0 = sample(consistent, table, initial_noise(keys, SHAPE), keys)
    jax.effects_barrier()
    np.testing.assert_array_equal(x_0, clean)
    assert [t for t, _ in seen] == t.tolist()
    for (_, x), level in zip(seen[1:], then[:-1], strict=True):
        noise = (x - np.sqrt(level) * clean) / np.sqrt(1 - level)
        assert np.std(noise) == pytest.approx(1, abs=0.2)


def test_eps_is_refused_at_zero_terminal_snr():
    with pytest.raises(ValueError, match="zero terminal SNR"):
        to_denoiser(model_fn, jnp.zeros((1, 1, 1)), SCHEDULE, "epsilon")
    with pytest.raises(ValueError, match="prediction_type='eps': did you mean 'epsilon'"):
        to_denoiser(model_fn, jnp.zeros((1, 1, 1)), SCHEDULE, "eps")
