"""Tensor rules as checked data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ldm_scaling.encoders.bert import Bert, BertConfig
from ldm_scaling.encoders.clip import ClipText, ClipTextConfig
from ldm_scaling.encoders.clip_vision import Clip, ClipConfig, ClipVisionConfig
from ldm_scaling.encoders.t5 import T5, T5Config
from ldm_scaling.sharding import TENSOR_RULES, make_mesh, matched, param_shardings, path_name
from ldm_scaling.unet import WIDTHS, UNet, micro_config, unet_config

ONE = {"layers": ((r"up/kernel", (None, "tensor")), (r"down/kernel", ("tensor", None)))}


def unet_shapes(config):
    size = 2 ** (len(config.block_out_channels) - 1)
    x = jax.ShapeDtypeStruct((1, size, size, config.in_channels), "float32")
    context = jax.ShapeDtypeStruct((1, 1, config.context_size), "float32")
    t = jax.ShapeDtypeStruct((1,), "float32")
    return jax.eval_shape(UNet(config).init, jax.random.key(0), x, t, context)["params"]


def named(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}


@pytest.mark.parametrize("width", [64, 320, 768])
def test_the_family_fits_the_rules(width):
    split = matched(named(unet_shapes(unet_config(width))), 8)
    # 16 transformers, and in each: q, k, v, out of two attentions, and five arrays of GEGLU's pair.
    assert len(split) == 16 * (2 * 4 + 3)
    assert width in WIDTHS


IDS = jax.ShapeDtypeStruct((1, 4), "int32")
CLIP = ClipTextConfig(num_hidden_layers=2)
VISION = ClipVisionConfig(num_hidden_layers=3)


@pytest.mark.parametrize(
    ("module", "inputs", "arrays"),
    [
        (Bert(BertConfig(num_hidden_layers=2)), (IDS, IDS), 2 * 10),
        (ClipText(CLIP), (IDS,), 2 * 10),
        (
            Clip(ClipConfig(CLIP, VISION)),
            (jax.ShapeDtypeStruct((1, 224, 224, 3), "float32"), IDS),
            5 * 10,
        ),
        (T5(T5Config(num_layers=2)), (IDS, IDS), 2 * 7 + 1),
        (T5(T5Config(num_layers=2, feed_forward_proj="relu")), (IDS, IDS), 2 * 6 + 1),
    ],
)
def test_the_text_encoders_fit_the_rules(module, inputs, arrays):
    shapes = named(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])
    split = matched(shapes, 4)
    assert len(split) == arrays
    assert not any("embeddings/" in name or "norm" in name.lower() for name in split)


def test_one_slice_splits_nothing():
    assert matched({"up/kernel": (4, 4)}, 1, ONE) == {}


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(ValueError, match=r"'down/kernel' matches no parameter"):
        matched({"a/up/kernel": (4, 4)}, 2, ONE)


def test_rules_of_another_architecture_are_left_alone():
    assert matched({"conv/kernel": (3, 3, 4, 4)}, 2, ONE) == {}


def test_a_parameter_claimed_twice_is_named():
    rules = {"layers": ((r"\w+/kernel", (None, "tensor")), (r"up/kernel", ("tensor", None)))}
    with pytest.raises(ValueError, match=r"up/kernel is claimed by .* and 'up/kernel'"):
        matched({"up/kernel": (4, 4)}, 2, rules)


def test_an_axis_that_does_not_divide_is_named():
    shapes = {"up/kernel": (4, 6), "down/kernel": (6, 4)}
    with pytest.raises(ValueError, match=r"mesh.tensor=4: does not divide the 6 of up/kernel"):
        matched(shapes, 4, ONE)


def test_a_rule_of_another_rank_is_named():
    shapes = {"up/kernel": (4,), "down/kernel": (4, 4)}
    with pytest.raises(ValueError, match=r"\(None, 'tensor'\) for up/kernel, which has shape"):
        matched(shapes, 2, ONE)


def test_fsdp_takes_an_axis_that_tensor_leaves():
    mesh = make_mesh(fsdp=4, tensor=2)
    tree = {"a": {"up": {"kernel": jnp.ones((128, 512))}, "down": {"kernel": jnp.ones((512, 128))}}}
    block = {"attn1": {f"to_{x}": {"kernel": jnp.ones((128, 128))} for x in ("q", "k", "v")}}
    block["attn1"]["to_out_0"] = {"kernel": jnp.ones((128, 128)), "bias": jnp.ones(128)}
    block["attn2"] = block["attn1"]
    block["ff"] = {
        "net_0": {"proj": {"kernel": jnp.ones((2, 128, 512)), "bias": jnp.ones((2, 512))}},
        "net_2": {"kernel": jnp.ones((512, 128)), "bias": jnp.ones(128)},
    }
    specs = jax.tree.map(lambda s: s.spec, param_shardings(mesh, {**tree, "block": block}))
    assert specs["a"]["up"]["kernel"] == P(None, "fsdp")
    attention, feed_forward = specs["block"]["attn1"], specs["block"]["ff"]
    assert attention["to_q"]["kernel"] == P("fsdp", "tensor")
    assert attention["to_out_0"]["kernel"] == P("tensor", "fsdp")
    assert attention["to_out_0"]["bias"] == P()
    assert feed_forward["net_0"]["proj"]["kernel"] == P(None, "fsdp", "tensor")
    assert feed_forward["net_0"]["proj"]["bias"] == P(None, "tensor")
    assert feed_forward["net_2"]["kernel"] == P("tensor", "fsdp")


def collectives(text):
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return {kind: text.count(f" {kind}(") for kind in kinds if f" {kind}(" in text}


def test_a_transformer_block_exchanges_one_sum_a_branch():
    """Two attentions and a feed-forward: three sums forward, and nothing else moves."""
    from ldm_scaling.unet.blocks import TransformerBlock

    mesh = make_mesh(replica=1, fsdp=1, tensor=2, devices=jax.devices()[:2])
    block = TransformerBlock(heads=4, attention="xla")
    x, context = jnp.ones((2, 16, 32)), jnp.ones((2, 5, 24))
    params = jax.eval_shape(block.init, jax.random.key(0), x, context)
    shardings = param_shardings(mesh, params)
    everywhere = jax.sharding.NamedSharding(mesh, P())
    step = jax.jit(
        block.apply, in_shardings=(shardings, everywhere, everywhere), out_shardings=everywhere
    )
    found = collectives(step.lower(params, x, context).compile().as_text())
    assert found == {"all-reduce": 3}


def test_micro_widths_can_be_split_in_two():
    for width in (8, 48):
        assert matched(named(unet_shapes(micro_config(width))), 2)


def test_no_rule_is_dead():
    """Every architecture of the table is one that we have."""
    assert set(TENSOR_RULES) == {"transformer blocks", "BERT layers", "CLIP layers", "T5 blocks"}
    assert all(
        np.sum([axis == "tensor" for axis in axes]) == 1
        for group in TENSOR_RULES.values()
        for _, axes in group
    )
