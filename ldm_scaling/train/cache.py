"""Latents and text embeddings made ahead, once for a source and a pair of encoders."""

from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from ldm_scaling.checkpoint.identity import weights_hash
from ldm_scaling.data import ArraySource, Source, Transform, sequential
from ldm_scaling.hosts import all_say, is_first, wait_for_all
from ldm_scaling.records import measurement_hash
from ldm_scaling.sharding import batch_sharding, param_shardings, put_whole, replicated
from ldm_scaling.tasks.frozen import FrozenEncoders
from ldm_scaling.types import Params

PROBES = 64
"""Examples whose pixels and captions enter the name of a cache."""


def cached_source(
    folder: Path,
    source: Source,
    transform: Transform,
    encoders: FrozenEncoders,
    params: Params,
    mesh: Mesh,
    batch_size: int = 64,
) -> ArraySource:
    """A source of "latent_mean", "latent_std", "context", "caption" and "example_id".

    Encodes every example of `source` once, or reads what an earlier call left in `folder`: the
    file's name is a hash of both encoders' weights, the tokenisation, and a sample of the examples
    as they are after `transform`, so that none of them can change unnoticed.

    Args:
      transform: deterministic (its randomness would be frozen into the cache).
      params: of the encoders.
      batch_size: examples encoded at a time, rounded up to a multiple of the mesh's slices.
    """
    path = folder / f"{_name(source, transform, encoders, params)}.npz"
    if all_say(path.exists()):
        logging.info("Cached latents and text embeddings: %s", path)
        return ArraySource.load(path)
    slices = mesh.shape["replica"] * mesh.shape["fsdp"]
    batch_size = -(-batch_size // slices) * slices
    # Every process reads all examples and gets all latents, but its devices encode their part.
    encode = jax.jit(encoders.encode_batch, out_shardings=replicated(mesh))
    placed = put_whole(params, param_shardings(mesh, params))
    columns: dict[str, list[np.ndarray]] = {}
    total = -(-len(source) // batch_size)
    for batch in tqdm(
        sequential(source, batch_size, transform), "encoding", total, unit="batch", disable=None
    ):
        tokens = encoders.tokenize(batch["caption"])
        count = len(batch["example_id"])
        inputs = {"image": batch["image"], **tokens}
        padded = {name: _pad(array, batch_size) for name, array in inputs.items()}
        spread = jax.tree.map(lambda _: batch_sharding(mesh), padded)
        encoded = jax.device_get(encode(placed, put_whole(padded, spread)))
        kept = {"example_id": batch["example_id"], "caption": batch["caption"]}
        for name, array in {**encoded, **kept}.items():
            columns.setdefault(name, []).append(np.asarray(array)[:count])
    cached = ArraySource({name: np.concatenate(parts) for name, parts in columns.items()})
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        cached.save(path)
    wait_for_all("the cache is written")
    if not path.exists():  # a disk of this machine's own
        folder.mkdir(parents=True, exist_ok=True)
        cached.save(path)
    return cached


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    """Repeats the last row, so that the last batch needs no program of its own."""
    return np.concatenate([array, np.repeat(array[-1:], length - len(array), axis=0)])


def _name(source: Source, transform: Transform, encoders: FrozenEncoders, params: Params) -> str:
    rng = np.random.default_rng(0)
    places = np.unique(np.linspace(0, len(source) - 1, PROBES).astype(int))
    probes = [transform(source[int(i)], rng) for i in places]
    pixels = {str(i): np.asarray(p["image"]) for i, p in zip(places, probes, strict=True)}
    tokens = encoders.tokenize([p["caption"] for p in probes])
    return measurement_hash(
        version=1,
        weights={name: weights_hash(params[name]) for name in sorted(params)},
        examples=len(source),
        probes=weights_hash({"pixels": pixels, **tokens}),
    )
