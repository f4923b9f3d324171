"""Latents and text embeddings made ahead, once for a source and a pair of encoders.

There is one way, whatever the size: `encoded_source` opens the encoded set of a folder and first
makes what is missing of it. A micro run does so as it starts; `launch/precompute.py` does it ahead
of a large one, on all devices and in as many processes as there are.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from ldm_scaling.checkpoint.identity import weights_hash
from ldm_scaling.data import DataError, EncodedSource, Encoding, Source, Transform, sequential
from ldm_scaling.data.encoded import write_shard
from ldm_scaling.naming import check_name
from ldm_scaling.records import measurement_hash
from ldm_scaling.sharding import make_mesh, param_shardings, put_batch
from ldm_scaling.tasks.frozen import FrozenEncoders
from ldm_scaling.types import Batch, Params

PROBES = 64
"""Examples whose pixels and captions enter the identity, and on which rounding is measured."""

SHARD_EXAMPLES = 4096
"""Examples of a file: 1 GB at 512 px, and as much as a killed run has to do again."""

MAX_ROUNDING = 1e-3
"""float16 rounds by some 2e-4 of a value; much more means that its range did not suffice."""

COLUMNS = ("latent_mean", "latent_std", "context")

WORDS = ("", "A photo of 2 cats, naïve CAFÉ 北京 🙂 " * 12)
"""Captions that tell tokenizers apart."""


class ForeignEncodingError(DataError):
    """The folder holds what other encoders, or another source, have made."""


class Encoder:
    """Everything that turns a source into an encoded set.

    Args:
      encoders: the modules and the tokenizer.
      params: of them.
      image_size: side of the images that `transform` gives, pixels.
      transform: deterministic (its randomness would be frozen into the set).
      mesh: the devices that encode.
      batch_size: examples encoded at a time, rounded up to a multiple of the mesh's slices.
      threads: that read and decode ahead.
    """

    def __init__(
        self,
        encoders: FrozenEncoders,
        params: Params,
        image_size: int,
        transform: Transform,
        mesh: Mesh,
        batch_size: int = 64,
        threads: int = 16,
    ):
        slices = mesh.shape["replica"] * mesh.shape["fsdp"]
        self._batch_size = -(-batch_size // slices) * slices
        self._encoders, self._params, self._image_size = encoders, params, image_size
        self._transform, self._mesh, self._threads = transform, mesh, threads

    def identity(self) -> dict[str, Any]:
        """What decides the values, but for the source."""
        configs = {
            "autoencoder": dataclasses.asdict(self._encoders.autoencoder),
            "text_encoder": dataclasses.asdict(self._encoders.text_encoder),
        }
        made_by = {
            name: measurement_hash(config=config, weights=weights_hash(self._params[name]))
            for name, config in configs.items()
        }
        tokens = weights_hash(self._encoders.tokenize(WORDS))
        max_tokens = self._encoders.max_tokens
        size = self._image_size
        return {**made_by, "tokenizer": tokens, "max_tokens": max_tokens, "image_size": size}

    def fingerprint(self, source: Source) -> dict[str, Any]:
        """The source: its length, and some examples as they are when they are encoded."""
        probes = next(sequential(source, PROBES, self._transform, indices=_probes(source)))
        captions = np.frombuffer("\0".join(probes["caption"]).encode(), np.uint8)
        return {
            "examples": len(source),
            "pixels": weights_hash({"image": probes["image"], "id": probes["example_id"]}),
            "captions": weights_hash({"caption": captions}),
        }

    def rounding(self, source: Source) -> dict[str, float]:
        """Column -> root mean square of what float16 changes, relative to the column's own.

        The standard deviation of latents is added to their mean: its error counts against that.
        Infinite where values are too large.
        """
        rows = list(self.examples(source, _probes(source)))
        encoded = {name: np.stack([row[name] for row in rows]) for name in COLUMNS}
        scales = {name: _rms(encoded[name]) for name in ("latent_mean", "context")}
        scales["latent_std"] = scales["latent_mean"]
        errors = {}
        for name, scale in scales.items():
            with np.errstate(over="ignore"):
                error = encoded[name].astype(np.float16).astype(np.float64) - encoded[name]
            errors[name] = _rms(error) / scale if scale else 0.0
        return errors

    def examples(
        self, source: Source, indices: Sequence[int] | np.ndarray
    ) -> Iterator[dict[str, Any]]:
        """The examples at `indices`, encoded; devices work while the next batch is read."""
        batches = sequential(
            source, self._batch_size, self._transform, indices=indices, threads=self._threads
        )
        waiting: tuple[Batch, Any] | None = None
        for batch in batches:
            dispatched = (batch, self._encode(batch))
            if waiting:
                yield from self._rows(*waiting)
            waiting = dispatched
        if waiting:
            yield from self._rows(*waiting)

    @functools.cached_property
    def _program(self) -> Any:
        placed = jax.device_put(self._params, param_shardings(self._mesh, self._params))
        return functools.partial(jax.jit(self._encoders.encode_batch), placed)

    def _encode(self, batch: Batch) -> Any:
        """Dispatches a batch, padded to the one size that is compiled."""
        inputs = {"image": batch["image"], **self._encoders.tokenize(batch["caption"])}
        padded = {name: _pad(array, self._batch_size) for name, array in inputs.items()}
        return self._program(put_batch(self._mesh, padded))

    def _rows(self, batch: Batch, encoded: Any) -> Iterator[dict[str, Any]]:
        kept = {"example_id": batch["example_id"], "caption": batch["caption"]}
        columns: Mapping[str, Any] = {**jax.device_get(encoded), **kept}
        for i in range(len(batch["example_id"])):
            yield {name: column[i] for name, column in columns.items()}


def encoded_source(folder: Path, encoder: Encoder, source: Source | None) -> EncodedSource:
    """The encoded set in `folder`; what is missing of it is made first, in float32 if it is new.

    Every process makes its own part, and waits for the others.

    Args:
      source: what was or will be encoded; None where only the set itself is at hand.

    Raises:
      ForeignEncodingError: other encoders, another size or another source made it; says which.
      DataError: there is none, or not all of it, and no source.
    """
    if source is None:
        found = EncodedSource(folder)
        _check(folder, found.encoding, encoder.identity())
        return found
    encode(folder, encoder, source, process=(jax.process_index(), jax.process_count()))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"encoded {folder}")
    return EncodedSource(folder)


def encode(
    folder: Path,
    encoder: Encoder,
    source: Source,
    *,
    dtype: str = "float32",
    shard_examples: int = SHARD_EXAMPLES,
    process: tuple[int, int] = (0, 1),
) -> Encoding:
    """Makes what is missing of an encoded set: of `count` processes, every count-th file.

    May be killed at any time: a file has its name only when it is whole, and the next call goes
    on with the first one that is missing. A set that was begun keeps its dtype and size of files.

    Args:
      folder: of the set.
      dtype: "float32", "float16", or "auto" for float16 where rounding to it changes no column by
        more than `MAX_ROUNDING`.
      shard_examples: examples of a file.
      process: (index, count) of this process.

    Raises:
      ForeignEncodingError: as `encoded_source`.
    """
    check_name("dtype", dtype, ("auto", "float16", "float32"))
    index, count = process
    if shard_examples < 1 or not 0 <= index < count:
        raise ValueError(
            f"shard_examples={shard_examples}, process={process}: a file needs at least 1 example, "
            "and 0 <= index < count"
        )
    identity = {**encoder.identity(), **encoder.fingerprint(source)}
    encoding = Encoding.load(folder)
    if encoding is None:
        rounding = encoder.rounding(source) if dtype != "float32" else {}
        if dtype == "auto":
            dtype = "float16" if max(rounding.values()) <= MAX_ROUNDING else "float32"
        encoding = Encoding(identity, len(source), shard_examples, dtype, rounding)
        encoding.save(folder)
        logging.info("%s: %s; rounding changes %s", folder, dtype, rounding or "nothing")
    _check(folder, encoding, identity)
    todo = [shard for shard in encoding.missing(folder) if shard % count == index]
    if not todo:
        logging.info("Latents and text embeddings: %s", folder)
        return encoding
    ranges = [encoding.range(shard) for shard in todo]
    logging.info("%s: encoding %d of %d files", folder, len(todo), encoding.shards)
    total = sum(stop - start for start, stop in ranges)
    with tqdm(total=total, desc="encoding", unit="image", disable=None) as bar:
        for shard, (start, stop) in zip(todo, ranges, strict=True):
            examples = (bar.update() or e for e in encoder.examples(source, range(start, stop)))
            write_shard(encoding.path(folder, shard), examples, encoding.dtype)
    return encoding


def encoding_mesh(mesh: Mesh) -> Mesh:
    """The run's own mesh; of several processes each encodes alone, on all of its devices."""
    return mesh if jax.process_count() == 1 else make_mesh(devices=jax.local_devices())


def _check(folder: Path, encoding: Encoding, identity: Mapping[str, Any]) -> None:
    different = [
        f"{name} {encoding.identity.get(name)} there, {ours} here"
        for name, ours in identity.items()
        if encoding.identity.get(name) != ours
    ]
    if different:
        raise ForeignEncodingError(
            f"{folder}: encoded by or from something else than this run's: {'; '.join(different)}. "
            "Give what made it, or another folder (--config.cache_dir, --output)"
        )


def _probes(source: Source) -> np.ndarray:
    return np.unique(np.linspace(0, len(source) - 1, PROBES).astype(int))


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    """Repeats the last row, so that the last batch needs no program of its own."""
    return np.concatenate([array, np.repeat(array[-1:], length - len(array), axis=0)])


def _rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.square(array, dtype=np.float64).mean()))
