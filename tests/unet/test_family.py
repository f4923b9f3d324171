"""The family is the paper's: counts and costs, read off the trace, against Table 1."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from ldm_scaling.unet import (
    MICRO_REFERENCE_WIDTH,
    MICRO_WIDTHS,
    PUBLISHED,
    REFERENCE_WIDTH,
    WIDTHS,
    UNetConfig,
    count_flops,
    forward_flops,
    micro_config,
    normalized_cost,
    parameter_count,
    unet_config,
)

# Millions of parameters and GFLOPs with 77 tokens, counted on diffusers' network.
COUNTED = {
    64: (38.8, 53.0),
    96: (83.4, 99.7),
    128: (144.8, 159.9),
    160: (223.0, 233.6),
    192: (318.0, 320.8),
    224: (429.8, 421.4),
    256: (558.3, 535.6),
    288: (703.7, 663.2),
    320: (865.9, 804.3),
    512: (2191.7, 1933.9),
    768: (4900.2, 4195.1),
}


@pytest.mark.parametrize("width", WIDTHS)
def test_counts(width):
    config, published = unet_config(width), PUBLISHED[width]
    millions, gflops = COUNTED[width]
    assert round(parameter_count(config) / 1e6, 1) == millions
    assert forward_flops(config) / 1e9 == pytest.approx(gflops, rel=0.01)

    digits = 1e9 if width >= 512 else 1e6
    assert round(parameter_count(config) / digits) * digits == published.parameters
    cost = normalized_cost(config, unet_config(REFERENCE_WIDTH))
    assert cost == pytest.approx(published.normalized_cost, abs=0.011, rel=0.011)
    off = abs(forward_flops(config) / 1e9 / published.gflops - 1)
    assert (off > 0.05) == ("gflops" in published.misprints)


def test_flops_do_not_depend_on_how_it_is_computed():
    plain = forward_flops(unet_config(64, attention="xla"))
    assert plain == forward_flops(unet_config(64, attention="chunked"))
    assert plain == forward_flops(unet_config(64, remat="block", dtype="bfloat16"))
    assert forward_flops(unet_config(64), batch=2) == 2 * plain


def test_count_flops():
    matrix, square = jnp.ones((3, 5)), jnp.ones((3, 3))
    assert count_flops(jnp.dot, matrix, jnp.ones((5, 7))) == 2 * 3 * 5 * 7
    assert count_flops(jax.jit(lambda a: a @ a.T), matrix) == 2 * 3 * 5 * 3
    assert count_flops(lambda a: jax.lax.fori_loop(0, 4, lambda _, x: x @ a, a), square) == 4 * 54
    assert count_flops(lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a, lambda: a), square) == 54
    # x -> x @ a: the value, and the gradients to x and to a
    assert count_flops(jax.value_and_grad(lambda a: (square @ a @ square).sum()), square) >= 4 * 54

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=2
        )

    x, kernel = jnp.ones((2, 8, 6, 4)), jnp.ones((3, 3, 2, 10))
    assert count_flops(convolve, x, kernel) == 2 * (2 * 8 * 6 * 10) * (3 * 3 * 2)

    def until_small(a):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ x, a)

    with pytest.raises(ValueError, match="while loop"):
        count_flops(until_small, square)


def test_micro_family_grows_to_its_reference():
    counts = [parameter_count(micro_config(width)) for width in MICRO_WIDTHS]
    assert counts == sorted(counts)
    assert len(set(counts)) >= 4
    reference = micro_config(MICRO_REFERENCE_WIDTH)
    costs = [normalized_cost(micro_config(width), reference, tokens=24) for width in MICRO_WIDTHS]
    assert costs == sorted(costs)
    assert costs[-1] == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: unet_config(300), "width=300: the nearest is 288"),
        (lambda: unet_config(10_000), "the nearest is 768"),
        (lambda: micro_config(33), "width=33: the nearest is 32"),
        (lambda: unet_config(64, head=4), "field='head': did you mean 'heads'"),
        (lambda: unet_config(64, head_size=8), "exactly one"),
        (lambda: unet_config(64, heads=None), "exactly one"),
        (lambda: unet_config(64, heads=7), "heads=7: must divide the 64 channels"),
        (lambda: unet_config(64, heads=None, head_size=48), "head_size=48: must divide"),
        (lambda: unet_config(64, heads=(1, 2)), "needs one number, or 4"),
        (lambda: unet_config(64, norm_groups=48), "norm_groups=48: must divide the 64"),
        (lambda: unet_config(64, attention_levels=(True,)), "needs 4 entries"),
        (lambda: unet_config(64, layers_per_block=0), "layers_per_block=0"),
        (lambda: unet_config(64, prediction_type="v"), "prediction_type='v'.*v_prediction"),
        (lambda: unet_config(64, dtype="float16"), "dtype='float16'.*bfloat16"),
        (lambda: unet_config(64, attention="fast"), "attention='fast'.*flash"),
        (lambda: unet_config(64, remat="all"), "remat='all'.*block"),
    ],
)
def test_bad_configs_say_what_would_be_right(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_heads():
    assert [unet_config(320).heads_of(i) for i in range(4)] == [8] * 4
    sized = unet_config(320, heads=None, head_size=64)
    assert [sized.heads_of(i) for i in range(4)] == [5, 10, 20, 20]
    listed = dataclasses.replace(UNetConfig(), heads=(5, 10, 20, 20))
    assert [listed.heads_of(i) for i in range(4)] == [5, 10, 20, 20]
