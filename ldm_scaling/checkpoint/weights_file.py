"""Reading and writing the files that weights travel in: safetensors only, whole or not at all."""

import json
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def read_weights(folder: str | os.PathLike[str], stem: str) -> dict[str, np.ndarray]:
    """All arrays of `stem`.safetensors, of its fp16 variant, or of its shards.

    Raises:
      FileNotFoundError: none of them is there; the message says which were looked for, and what
        weights in another format are there instead.
      ValueError: a file is torn, or a shard is not what the index says.
    """
    home = epath.Path(folder)
    wanted = [f"{stem}.safetensors", f"{stem}.fp16.safetensors"]
    for name in wanted:
        if (home / name).exists():
            return _read_safetensors(home / name)
        if (home / f"{name}.index.json").exists():
            return _read_shards(home, f"{name}.index.json")
    others = [p.name for p in home.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    hint = (
        f"; {others[0]} may hide code and is not read, convert it to safetensors" if others else ""
    )
    raise FileNotFoundError(f"{home}: no {' or '.join(wanted)}{hint}")


def write_weights(
    folder: str | os.PathLike[str], stem: str, arrays: Mapping[str, np.ndarray], dtype: str
) -> None:
    """Writes `stem`.safetensors (or its fp16 variant's content, under the plain name), atomically.

    Raises ValueError for a dtype that is not "float32", "float16" or "bfloat16", and for values
    that it cannot hold.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose from {', '.join(DTYPES)}")
    home = epath.Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    cast = {name: _cast(name, array, dtype) for name, array in sorted(arrays.items())}
    temporary = home / f".{stem}.safetensors.tmp"
    metadata = {"format": "pt"}  # diffusers refuses files that do not say so
    if "://" in os.fspath(home):
        temporary.write_bytes(safetensors.numpy.save(cast, metadata))
    else:
        temporary.touch()
        mode = os.stat(temporary).st_mode  # as this process' umask has it; safetensors gives 0600
        safetensors.numpy.save_file(cast, os.fspath(temporary), metadata)
        os.chmod(temporary, mode)
    temporary.replace(home / f"{stem}.safetensors")


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


def _read_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        if "://" in os.fspath(path):
            return safetensors.numpy.load(path.read_bytes())
        return safetensors.numpy.load_file(os.fspath(path))
    except safetensors.SafetensorError as error:
        size = path.stat().length
        raise ValueError(f"{path}: torn or not safetensors, {size} bytes ({error})") from error


def _read_shards(folder: epath.Path, index: str) -> dict[str, np.ndarray]:
    home = read_json(folder / index)["weight_map"]  # name of an array -> shard
    arrays: dict[str, np.ndarray] = {}
    for name in sorted(set(home.values())):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder / name}: named by {index}, and not there")
        arrays |= _read_safetensors(folder / name)
    if arrays.keys() != home.keys():
        differing = sorted(arrays.keys() ^ home.keys())[:5]
        raise ValueError(f"{folder / index}: the shards do not hold what it says: {differing}")
    return arrays


def _cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = np.asarray(array, DTYPES[dtype], order="C")
    if np.isfinite(array).all() and not np.isfinite(cast).all():
        raise ValueError(f"{name}: {np.abs(array).max()} does not fit into {dtype}")
    return cast
