"""A name for a set of weights that depends on nothing but the weights."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ldm_scaling.checkpoint.merge import flatten
from ldm_scaling.types import Params


def weights_hash(params: Params) -> str:
    """Sixteen hex digits (SHA-256) of names, shapes, dtypes and bytes; order plays no role."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(params).items()):
        array = np.asarray(leaf, order="C")
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def files_hash(files: Iterable[tuple[str, Path]]) -> str:
    """Twelve hex digits (SHA-256) of names and contents of files, in the order given."""
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
