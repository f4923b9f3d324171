"""Reads the tensors of a PyTorch `.pth` file without PyTorch, and without running what is in it.

A pickle is a program. This reader admits the handful of names that a dict of plain tensors needs
(an allow-list, by exact name) and refuses every other, before anything of it is called. Both
formats: the zip archive of PyTorch 1.6 and later, and the sequence of pickles of the time before.
"""

import collections
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the old format (torch/serialization.py)
_LEGACY_PROTOCOL = 1001

_STORAGE_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class RefusedPickleError(ValueError):
    """The file asks for something that a dict of tensors does not need, or is not whole."""


def load_torch_state(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """A state dict: name -> array, as stored (dtype and shape of the tensor).

    Where the file holds more and the state dict is its entry "state_dict", the rest is left aside.

    Raises:
      FileNotFoundError: no such file.
      RefusedPickleError: it would load or call something other than tensors (the message names
        it), it is torn, or it is not a flat dict of tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
            file.seek(0)
            state = read(file)
            if not isinstance(state, dict):
                raise RefusedPickleError(f"holds a {type(state).__name__}, not a state dict")
            if isinstance(state.get("state_dict"), dict):  # a checkpoint of PyTorch Lightning
                state = state["state_dict"]
            return {str(name): _array(name, tensor) for name, tensor in state.items()}
    except RefusedPickleError as error:
        raise RefusedPickleError(f"{path}: {error}") from None
    except (*_TORN, pickle.UnpicklingError) as error:
        raise RefusedPickleError(f"{path}: torn, or not a PyTorch file ({error})") from error


_TORN = (EOFError, KeyError, IndexError, TypeError, ValueError, AttributeError, zipfile.BadZipFile)


class _Sealed:
    """Made by the pickle's program, but not to be changed by it (its BUILD instruction)."""

    def __setstate__(self, state: Any) -> None:
        raise RefusedPickleError("refused: it sets attributes of a tensor")


class _Storage(_Sealed):
    """A run of numbers that tensors are views of; its bytes may come after its name."""

    def __init__(self, dtype: Any, elements: int):
        self.dtype, self.elements = np.dtype(dtype), elements
        self.data: np.ndarray | None = None

    def fill(self, data: bytes) -> None:
        if len(data) != self.elements * self.dtype.itemsize:
            raise RefusedPickleError(
                f"torn: a storage has {len(data)} bytes of {self.elements * self.dtype.itemsize}"
            )
        self.data = np.frombuffer(data, self.dtype)


class _Tensor(_Sealed):
    """What `_rebuild_tensor_v2` is told; made into an array when the storages are filled."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any):
        if not isinstance(storage, _Storage):
            raise RefusedPickleError("a tensor without a storage")
        self.storage, self.offset = storage, int(offset)
        self.size, self.stride = tuple(map(int, size)), tuple(map(int, stride))

    def array(self) -> np.ndarray:
        data, size, stride = self.storage.data, self.size, self.stride
        if data is None:
            raise RefusedPickleError("torn: a storage is missing")
        if len(size) != len(stride) or min((self.offset, *size, *stride)) < 0:
            raise RefusedPickleError(f"a tensor of size {size} and strides {stride}")
        last = self.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        elements = math.prod(size, start=1)
        if elements > len(data) or (elements and last >= len(data)):
            raise RefusedPickleError("a tensor that reaches outside its storage")
        strides = tuple(step * data.itemsize for step in stride)
        view = np.lib.stride_tricks.as_strided(data[self.offset :], size, strides)
        return np.array(view, order="C")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    **{("torch", name): dtype for name, dtype in _STORAGE_DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Admits `_ADMITTED`, and storages by way of `storage_of`."""

    def __init__(self, file: io.BufferedIOBase, storage_of: Callable[[Any, str, int], _Storage]):
        super().__init__(file, encoding="utf-8")
        self._storage_of = storage_of

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise RefusedPickleError(
                f"refused: it asks for {module}.{name}, and a state dict needs no such thing"
            )
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", dtype, str(key), _, int(elements), *view):
                if view not in ([], [None]):
                    raise RefusedPickleError("refused: a storage that is a view of another")
                return self._storage_of(dtype, key, elements)
        raise RefusedPickleError(f"refused: a persistent object {pid!r} that is no storage")


def _read_zip(file: io.BufferedIOBase) -> Any:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise RefusedPickleError("not a PyTorch file: a zip archive without one data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if (
            root + "byteorder" in archive.namelist()
            and archive.read(root + "byteorder") != b"little"
        ):
            raise RefusedPickleError("only little-endian files are read")
        storages: dict[str, _Storage] = {}

        def storage_of(dtype: Any, key: str, elements: int) -> _Storage:
            if key not in storages:
                storages[key] = _Storage(dtype, elements)
                storages[key].fill(archive.read(f"{root}data/{key}"))
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), storage_of).load()


def _read_legacy(file: io.BufferedIOBase) -> Any:
    """Magic number, protocol, system, state dict, storage keys: five pickles; then the numbers."""
    storages: dict[str, _Storage] = {}

    def storage_of(dtype: Any, key: str, elements: int) -> _Storage:
        return storages.setdefault(key, _Storage(dtype, elements))

    def load() -> Any:
        return _Unpickler(file, storage_of).load()

    if load() != _LEGACY_MAGIC or load() != _LEGACY_PROTOCOL:
        raise RefusedPickleError("not a PyTorch file")
    if not load()["little_endian"]:
        raise RefusedPickleError("only little-endian files are read")
    state, keys = load(), load()
    end = os.fstat(file.fileno()).st_size
    for key in keys:
        storage = storages[key]
        elements = int.from_bytes(file.read(8), "little")
        if elements != storage.elements:
            raise RefusedPickleError(f"torn: storage {key} has {elements} elements")
        size = elements * storage.dtype.itemsize
        storage.fill(file.read(min(size, end - file.tell())))
    return state


def _array(name: Any, tensor: Any) -> np.ndarray:
    if not isinstance(tensor, _Tensor):
        kind = "nested dict" if isinstance(tensor, Mapping) else type(tensor).__name__
        raise RefusedPickleError(f"{name!r} is a {kind}, not a tensor")
    return tensor.array()
