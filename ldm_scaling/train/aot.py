"""The programs of a run, compiled for a TPU slice on a machine without one, and what they cost.

What is lowered is the loop's own step (`train.step.build`) with abstract arguments: nothing is
allocated, no data are read. The estimates are the TPU compiler's; no time was measured on a TPU.
"""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_scaling.diffusion import Schedule
from ldm_scaling.encoders import Autoencoder, AutoencoderConfig, Bert, BertConfig
from ldm_scaling.records import Metric, Record
from ldm_scaling.sharding import batch_sharding, make_mesh
from ldm_scaling.sharding.topology import Chip, chip_of, topology_devices
from ldm_scaling.tasks import FrozenEncoders, PretrainTask
from ldm_scaling.train.compiled import Kernel, Reading, read
from ldm_scaling.train.optimizer import make_optimizer
from ldm_scaling.train.step import Program, build
from ldm_scaling.unet import unet_config

LANES = 128
"""Channels of a matrix unit: heads of fewer channels leave the rest of it idle."""

FLASH_EFFICIENCY = 0.76
"""Share of the matrix units' time that the flash kernels use, at heads padded to `LANES`.

Counted by hand for v5p from the final schedule of the forward kernel for heads of 40 channels and
4096 tokens: 5,400 instruction bundles a block of 1024 x 1024 scores, where the padded products
alone fill 4,096. The compiler itself gives custom calls no cost."""


def abstract_task(config: ConfigDict) -> PretrainTask:
    """The task that `config` would train, with shapes in place of frozen weights.

    The text encoder of an online run (`config.cache` is False) is a BERT-large: of the encoders
    with 1024 features, the one that this library has.
    """
    model = unet_config(
        config.width, sample_size=config.data.image_size // AutoencoderConfig().factor,
        **config.model,
    )  # fmt: skip
    unconditional: Any = jax.ShapeDtypeStruct((config.max_tokens, model.context_size), jnp.float32)
    encoders, params = None, None
    if not config.cache:
        bert = BertConfig(
            hidden_size=model.context_size, num_hidden_layers=24, num_attention_heads=16,
            intermediate_size=4 * model.context_size,
        )  # fmt: skip
        encoders = FrozenEncoders(AutoencoderConfig(), bert, _no_tokenizer, config.max_tokens)
        size, ids = config.data.image_size, jnp.zeros((1, config.max_tokens), jnp.int32)
        image = jnp.zeros((1, size, size, 3))
        key = jax.random.key(0)
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


def _no_tokenizer(prompts: Any, max_tokens: int) -> Any:
    raise NotImplementedError("nothing is tokenised where a program is only compiled")


def abstract_batch(config: ConfigDict, task: PretrainTask, mesh: Mesh) -> dict[str, Any]:
    """Shapes of one global batch, as `task.host_batch` would make it."""
    examples, sharding = config.batch_size, batch_sharding(mesh)

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((examples, *shape), dtype, sharding=sharding)

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


def lower(config: ConfigDict, mesh: Mesh, program: str = "train") -> tuple[Any, PretrainTask]:
    """Lowers one program of the run: "train" or "evaluate". Returns (lowered, task)."""
    task = abstract_task(config)
    built: Program = build(
        task,
        make_optimizer(config.optimizer),
        mesh,
        seed=config.seed,
        ema_decay=config.ema_decay,
        accumulate=config.accumulate,
    )
    batch = abstract_batch(config, task, mesh)
    frozen = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        dict(task.frozen),
        built.frozen,
    )
    if program == "train":
        return built.step.lower(built.state, frozen, batch), task
    return built.evaluate.lower(built.state.params, frozen, batch), task


def compile_record(
    config: ConfigDict, topology: str, *, slices: int = 1, program: str = "train"
) -> Record:
    """Compiles one program of a run for a slice, and records what the compiler says of it.

    Raises:
      ValueError: unknown topology, or a mesh or batch that does not fit it.
      MemoryError: the program does not fit into the chips' memory; says how much it needs.
    """
    mesh = make_mesh(**config.mesh, devices=topology_devices(topology, slices))
    _check_batch(config, mesh)
    start = time.monotonic()
    lowered, task = lower(config, mesh, program)
    traced = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"{topology}: does not fit: {str(error).splitlines()[0]}") from error
    seconds = {"trace": traced - start, "compile": time.monotonic() - traced}
    chips = int(math.prod(mesh.shape.values()))
    reading = read(compiled.as_text())
    passes = 3 if program == "train" else 1
    model_flops = passes * task.forward_flops * config.batch_size / chips
    costs = _costs(compiled, reading, chip_of(topology), model_flops)
    return Record(
        kind="compile",
        point={
            **task.point,
            "program": program,
            "topology": topology,
            "slices": slices,
            "chips": chips,
            **{f"mesh_{axis}": size for axis, size in mesh.shape.items()},
            "batch_size": config.batch_size,
            "accumulate": config.accumulate,
            "cache": bool(config.cache),
            "remat": config.model.remat,
            "attention": config.model.attention,
            "dtype": config.model.dtype,
            "mu_dtype": config.optimizer.get("mu_dtype", "float32"),
        },
        seed=config.seed,
        num_samples=0,
        metrics={"utilisation": Metric(model_flops / costs["seconds"] / chip_of(topology).flops)},
        costs=costs,
        protocol={"source": "the TPU compiler's estimate; nothing was run on a TPU"},
        provenance={
            "jax": jax.__version__,
            "libtpu": _version("libtpu"),
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
        },
    )


def _costs(compiled: Any, reading: Reading, chip: Chip, model_flops: float) -> dict[str, float]:
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()
    # Outputs that alias arguments (a donated state) lie in the arguments' memory.
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    cycles = sum(reading.cycles.values())
    kernels = sum(kernel_flops(kernel) * kernel.count for kernel in reading.kernels)
    kernel_seconds = kernels / chip.flops / FLASH_EFFICIENCY
    moved = sum(each.bytes for each in reading.collectives.values())
    costs = {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "hbm_bytes": peak,
        "hbm_capacity": chip.hbm_bytes,
        "model_flops": model_flops,
        "compiler_flops": analysis.get("flops", 0.0),
        "compiler_bytes": analysis.get("bytes accessed", 0.0),
        "compiler_seconds": analysis.get("optimal_seconds", 0.0),
        "cycles": cycles,
        "kernel_flops": kernels,
        "kernel_seconds": kernel_seconds,
        # Operations of a core run one after another: their cycles add up.
        "seconds": cycles / chip.clock + kernel_seconds,
        "collective_bytes": moved,
        "collective_seconds": moved / chip.ici_bytes,
        "unknown_loops": reading.unknown_loops,
        **{f"{kind}_count": each.count for kind, each in reading.collectives.items()},
        **{f"{kind}_bytes": each.bytes for kind, each in reading.collectives.items()},
    }
    return {name: float(value) for name, value in costs.items()}


def kernel_flops(kernel: Kernel) -> float:
    """FLOPs of one run of a flash kernel, its heads padded to `LANES`; 0 for any other call.

    The forward kernel multiplies twice for each score, the backward one five times.
    """
    products = {"splash_mha_fwd_residuals": 2, "splash_mha_fwd_no_residuals": 2}
    products |= {"splash_mha_dkv_no_residuals": 5}
    if kernel.name not in products:
        return 0.0
    arrays = [shape for shape in kernel.operands if len(shape) == 4]
    batch, heads, size, queries = arrays[0]  # tokens along the lanes
    keys = arrays[1][3]
    padded = -(-size // LANES) * LANES
    return products[kernel.name] * 2.0 * batch * heads * queries * keys * padded


def _check_batch(config: ConfigDict, mesh: Mesh) -> None:
    parts = mesh.shape["replica"] * mesh.shape["fsdp"] * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size={config.batch_size}: must be a multiple of replica * fsdp * accumulate = "
            f"{parts}"
        )


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
