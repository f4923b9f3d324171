"""Reading and writing the files that weights travel in: safetensors only, whole or not at all."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from ldm_scaling.checkpoint.stored import AnyArray, open_safetensors

SHARD_BYTES = 5 * 2**30  # Hugging Face's tools open shards of any size
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def read_weights(folder: str | os.PathLike[str], stem: str) -> Mapping[str, AnyArray]:
    """All arrays of `stem`.safetensors, of its fp16 variant, or of its shards; still in the file.

    Raises:
      FileNotFoundError: none of them is there; the message says which were looked for, and what
        weights in another format are there instead.
      ValueError: a file is torn, or a shard is not what the index says.
    """
    home = epath.Path(folder)
    wanted = {  # file -> index of its shards, as diffusers and transformers call them
        f"{stem}.safetensors": f"{stem}.safetensors.index.json",
        f"{stem}.fp16.safetensors": f"{stem}.safetensors.index.fp16.json",
    }
    for name, index in wanted.items():
        if (home / name).exists():
            return open_safetensors(home / name)
        if (home / index).exists():
            return _read_shards(home, index)
    others = [p.name for p in home.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    hint = (
        f"; {others[0]} may hide code and is not read, convert it to safetensors" if others else ""
    )
    raise FileNotFoundError(f"{home}: no {' or '.join(wanted)}{hint}")


def write_weights(
    folder: str | os.PathLike[str],
    stem: str,
    arrays: Mapping[str, AnyArray],
    dtype: str,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `stem`.safetensors, or shards and their index where it would exceed `shard_bytes`.

    Each file is replaced atomically, the index after the shards, and what an earlier write has left
    under other names is removed. In memory is one shard at a time.

    Raises ValueError for a dtype that is not "float32", "float16" or "bfloat16", and for values
    that it cannot hold.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose from {', '.join(DTYPES)}")
    home = epath.Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    sizes = {
        name: math.prod(array.shape) * np.dtype(DTYPES[dtype]).itemsize
        for name, array in sorted(arrays.items())
    }
    shards = _split(sizes, shard_bytes)
    files = [f"{stem}.safetensors"]
    if len(shards) > 1:
        files = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in _from_one(shards)]
    for file, names in zip(files, shards, strict=True):
        _write_safetensors(home / file, {name: _cast(name, arrays[name], dtype) for name in names})
    if len(shards) > 1:
        homes = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = f"{stem}.safetensors.index.json"
        write_json(
            home / index, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": homes}
        )
        files.append(index)
    for path in home.glob(f"{stem}*.safetensors*"):
        if path.name not in files and _is_ours(path.name, stem):
            path.unlink()


def _from_one(entries: Sequence[Any]) -> range:
    return range(1, len(entries) + 1)


def _is_ours(name: str, stem: str) -> bool:
    """Whether `write_weights` writes files of that name, also in other numbers of shards."""
    shard = r"(-\d{5}-of-\d{5})?"
    return bool(re.fullmatch(rf"{re.escape(stem)}{shard}\.safetensors(\.index\.json)?", name))


def _split(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in order, in parts of at most `most` bytes each; a larger array is a part alone."""
    parts: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if parts[-1] and filled + size > most:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += size
    return parts


def _write_safetensors(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    metadata = {"format": "pt"}  # diffusers refuses files that do not say so
    temporary = path.parent / f".{path.name}.tmp"
    if "://" in os.fspath(path):
        temporary.write_bytes(safetensors.numpy.save(dict(arrays), metadata))
    else:
        temporary.touch()
        mode = os.stat(temporary).st_mode  # as this process' umask has it; safetensors gives 0600
        safetensors.numpy.save_file(dict(arrays), os.fspath(temporary), metadata)
        os.chmod(temporary, mode)
    temporary.replace(path)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError, or ValueError where it is none; both name it."""
    file = epath.Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object was expected, not {type(content).__name__}")
    return content


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes a JSON object atomically, in the layout that diffusers gives its configs."""
    file = epath.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.parent / f".{file.name}.tmp"
    temporary.write_text(json.dumps(dict(content), indent=2, sort_keys=True) + "\n")
    temporary.replace(file)


def _read_shards(folder: epath.Path, index: str) -> Mapping[str, AnyArray]:
    home = read_json(folder / index)["weight_map"]  # name of an array -> shard
    arrays: dict[str, AnyArray] = {}
    for name in sorted(set(home.values())):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder / name}: named by {index}, and not there")
        arrays |= open_safetensors(folder / name)
    if arrays.keys() != home.keys():
        differing = sorted(arrays.keys() ^ home.keys())[:5]
        raise ValueError(f"{folder / index}: the shards do not hold what it says: {differing}")
    return arrays


def _cast(name: str, stored: AnyArray, dtype: str) -> np.ndarray:
    array = np.asarray(stored)
    with np.errstate(over="ignore"):
        cast = np.asarray(array, DTYPES[dtype], order="C")
    if np.isfinite(array).all() and not np.isfinite(cast).all():
        raise ValueError(f"{name}: {np.abs(array).max()} does not fit into {dtype}")
    return cast
