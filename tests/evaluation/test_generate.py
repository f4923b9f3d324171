import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from ldm_scaling.diffusion import ddim, ddpm, dpmpp_2m, initial_noise
from ldm_scaling.evaluation import Generator, example_keys
from ldm_scaling.sharding import make_mesh

COUNT = 13
CONTEXT = np.random.default_rng(0).normal(size=(COUNT, 3, 384)).astype(np.float32)
UNCONDITIONAL = np.random.default_rng(1).normal(size=(1, 3, 384)).astype(np.float32)
IDS = np.arange(100, 100 + COUNT)


@pytest.fixture(scope="module")
def generator(tiny_model):
    return Generator(tiny_model, batch_size=4)


@pytest.fixture(scope="module")
def table(tiny_model):
    return ddpm(tiny_model.schedule, 5, spacing="trailing")  # with noise at every step


def draw(generator, table, rows=slice(None), **options):
    options = {"guidance": 3.0, "seed": 7, **options}
    return generator(CONTEXT[rows], UNCONDITIONAL, IDS[rows], table, **options)


@pytest.fixture(scope="module")
def images(generator, table):
    return draw(generator, table)


def largest_difference(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_images_are_uint8_and_tell_examples_apart(images):
    assert images.shape == (COUNT, 8, 8, 3)
    assert images.dtype == np.uint8
    assert np.mean((images > 0) & (images < 255)) > 0.1
    assert len(np.unique(images.reshape(COUNT, -1), axis=0)) == COUNT


def test_keys_and_noise_are_bitwise_the_same_in_any_batch():
    ids = jnp.arange(16)
    keys = example_keys(3, ids)
    noise = initial_noise(keys, (4, 4, 4))
    for rows in (slice(5, 6), slice(8, 12)):
        part = example_keys(3, ids[rows])
        np.testing.assert_array_equal(jax.random.key_data(part), jax.random.key_data(keys[rows]))
        np.testing.assert_array_equal(initial_noise(part, (4, 4, 4)), noise[rows])


def test_batch_size_changes_nothing(tiny_model, table, images):
    other = Generator(tiny_model, batch_size=16)
    assert largest_difference(draw(other, table), images) <= 1


def test_number_of_devices_changes_nothing(tiny_model, table, images):
    assert jax.device_count() == 8
    spread = Generator(tiny_model, batch_size=16, mesh=make_mesh(replica=2, fsdp=4))
    assert largest_difference(draw(spread, table), images) <= 1


def test_a_partial_last_batch_and_a_subset_give_the_same_images(generator, table, images):
    for rows in (slice(0, 1), slice(3, 9)):
        assert largest_difference(draw(generator, table, rows), images[rows]) <= 1


def test_seed_example_and_guidance_matter(generator, table, images):
    assert largest_difference(draw(generator, table, seed=8), images) > 1
    assert largest_difference(draw(generator, table, guidance=1.0), images) > 1
    rates = np.where(np.arange(COUNT) < 5, 3.0, 1.0)
    mixed = draw(generator, table, guidance=rates)
    assert largest_difference(mixed[:5], images[:5]) <= 1
    assert largest_difference(mixed[5:], draw(generator, table, guidance=1.0)[5:]) <= 1


@pytest.mark.usefixtures("images")  # they were drawn before: the program is compiled
def test_a_sweep_needs_no_other_program(generator, tiny_model):
    compilations, found = [], {}

    def listen(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        for sampler in (ddim, ddpm, dpmpp_2m):
            for steps in (1, 2, 7, 16):
                for guidance in (1.0, 2.5, 7.5):
                    table = sampler(tiny_model.schedule, steps, spacing="trailing")
                    drawn = draw(generator, table, slice(0, 4), guidance=guidance, bucket=16)
                    found[sampler, steps, guidance] = drawn.tobytes()
    finally:
        monitoring.unregister_event_duration_listener(listen)
    assert not compilations
    # One step is the denoiser's estimate, whatever the sampler, and two leave the multistep solver
    # no room for its second order; all else differs.
    assert len(set(found.values())) == len(found) - 2 * 3 - 3


def test_bad_requests_are_refused(generator, tiny_model, table):
    with pytest.raises(ValueError, match="guidance=nan"):
        draw(generator, table, guidance=float("nan"))
    with pytest.raises(ValueError, match="context: empty"):
        draw(generator, table, slice(0, 0))
    with pytest.raises(ValueError, match="length=4: the table has 5 rows"):
        draw(generator, table, bucket=4)
    with pytest.raises(ValueError, match=r"batch_size=12: must be a multiple .* = 8"):
        Generator(tiny_model, batch_size=12, mesh=make_mesh())
