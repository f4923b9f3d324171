"""A run without data and weights: its own programs, lowered for devices that need not exist."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from ldm_scaling.aot import record_of, topology_devices
from ldm_scaling.diffusion import Schedule
from ldm_scaling.encoders import Autoencoder, AutoencoderConfig, Bert, BertConfig
from ldm_scaling.records import Record
from ldm_scaling.sharding import AXES, batch_sharding, check_batch, explain, make_mesh
from ldm_scaling.tasks import FrozenEncoders, PretrainTask
from ldm_scaling.train.assemble import assemble
from ldm_scaling.train.step import build_from
from ldm_scaling.unet import unet_config

PROGRAMS = ("train", "evaluate")


def compile_record(
    config: ConfigDict, topology: str, *, slices: int = 1, program: str = "train"
) -> Record:
    """Compiles one program of a pretraining run for a TPU slice, and records what it needs.

    Args:
      config: as `configs/pretrain.py` makes it for one of the paper's widths.
      topology: chip and shape of a slice, such as "v5p:4x4x4".
      slices: how many slices the run spans.
      program: one of `PROGRAMS`; "train" is the loop's own step.

    Raises:
      ValueError: unknown topology, or a mesh or batch that does not fit it.
      MemoryError: the program does not fit into the chips' memory.
    """
    mesh = make_mesh(**config.mesh, devices=topology_devices(topology, slices))
    check_batch(mesh, config.batch_size, config.accumulate)
    task = abstract_task(config)
    passes = 3 if program == "train" else 1  # the backward pass costs twice the forward pass
    return record_of(
        lower(config, task, mesh, program),
        config,
        mesh,
        topology=topology,
        slices=slices,
        model_flops=passes * task.forward_flops * config.batch_size,
        point={
            **task.point,
            "program": program,
            "batch_size": config.batch_size,
            "accumulate": config.accumulate,
            "cache": bool(config.cache),
            "remat": config.model.remat,
            "mu_dtype": config.optimizer.get("mu_dtype", "float32"),
            **({"tpu_options": config.tpu_options} if config.tpu_options else {}),
        },
    )


def sharding_table(config: ConfigDict, workdir: Path) -> str:
    """Where every trained and frozen parameter of a run lies, in words.

    Of the paper's family nothing is loaded, and where `config.mesh` gives the size of each axis,
    such as that of a pod, this machine needs no such devices. Other runs are assembled as if to be
    trained, on this machine's devices.
    """
    sizes = dict(config.mesh)
    mesh: Mesh | AbstractMesh
    if config.task == "pretrain" and config.family == "paper":
        task: Any = abstract_task(config)
        given = tuple(sizes[axis] for axis in AXES)
        mesh = AbstractMesh(given, AXES) if min(given) > 0 else make_mesh(**sizes)
    else:
        mesh = make_mesh(**sizes)
        task = assemble(config, workdir, mesh)[0]
    trained = jax.eval_shape(task.init, jax.random.key(0))
    return explain(mesh, {"trained": trained, "frozen": dict(task.frozen)})


def lower(config: ConfigDict, task: PretrainTask, mesh: Mesh, program: str) -> Any:
    """Lowers one of `PROGRAMS` for a mesh, just as the loop builds it; allocates nothing."""
    built = build_from(config, task, mesh)
    batch = abstract_batch(config, task, mesh)
    frozen = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        dict(task.frozen),
        built.frozen,
    )
    if program == "train":
        return built.step.lower(built.state, frozen, batch)
    return built.evaluate.lower(built.state.params, frozen, batch)


def abstract_task(config: ConfigDict) -> PretrainTask:
    """The task that `config` would train, with shapes in place of frozen weights.

    The text encoder of an online run (`config.cache` is False) is a BERT-large: with 1024 features
    it has 334 million parameters, beside 340 of Stable Diffusion 2.x's CLIP and 341 of T5 v1.1.
    It computes in float32, and another `config.text_encoder_dtype` is refused.
    """
    size = config.data.image_size
    model = unet_config(
        config.width, sample_size=size // AutoencoderConfig().factor, **config.model
    )
    unconditional = jax.ShapeDtypeStruct((config.max_tokens, model.context_size), jnp.float32)
    encoders, params = None, None
    if not config.cache:
        if config.text_encoder_dtype != "float32":
            raise ValueError(
                f"text_encoder_dtype={config.text_encoder_dtype!r}: the text encoder of a report "
                "is a BERT, which computes in 'float32' alone"
            )
        bert = BertConfig(
            hidden_size=model.context_size,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4 * model.context_size,
        )
        encoders = FrozenEncoders(AutoencoderConfig(), bert, _no_tokenizer, config.max_tokens)
        key, ids = jax.random.key(0), jnp.zeros((1, config.max_tokens), jnp.int32)
        image = jnp.zeros((1, size, size, 3))
        params = {
            "autoencoder": jax.eval_shape(Autoencoder(AutoencoderConfig()).init, key, image),
            "text_encoder": jax.eval_shape(Bert(bert).init, key, ids, ids),
        }
        params = {name: tree["params"] for name, tree in params.items()}
    return PretrainTask(
        model,
        Schedule.from_name(config.diffusion.schedule),
        AutoencoderConfig(),
        unconditional,
        encoders=encoders,
        encoder_params=params,
        weighting=config.diffusion.weighting,
        gamma=config.diffusion.gamma,
        caption_dropout=config.caption_dropout,
    )


def abstract_batch(config: ConfigDict, task: PretrainTask, mesh: Mesh) -> dict[str, Any]:
    """Shapes of one global batch, as `task.host_batch` would make it."""
    sharding = batch_sharding(mesh)

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=sharding)

    ids = {"example_id": array(dtype=jnp.int32)}
    if not config.cache:
        size, tokens = config.data.image_size, config.max_tokens
        return {
            **ids,
            "image": array(size, size, 3),
            "token_ids": array(tokens, dtype=jnp.int32),
            "token_mask": array(tokens, dtype=jnp.int32),
        }
    model = task.config
    latents = (model.sample_size, model.sample_size, model.in_channels)
    return {
        **ids,
        "latent_mean": array(*latents),
        "latent_std": array(*latents),
        "context": array(config.max_tokens, model.context_size),
    }


def _no_tokenizer(prompts: Any, max_tokens: int) -> Any:
    raise NotImplementedError("nothing is tokenised where a program is only compiled")
