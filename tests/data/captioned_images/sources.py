"""Small sources of every kind, whole and damaged."""

import io
import tarfile

import numpy as np
from PIL import Image


def jpeg(seed=0, size=(40, 30)):
    """The bytes of a small photograph-like JPEG, another for every seed."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def tar_bytes(members):
    """A tar of (name, bytes) or of ready-made (TarInfo, bytes)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            header = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            header.size = header.size or len(data)
            archive.addfile(header, io.BytesIO(data))
    return file.getvalue()


def samples(keys, size=(40, 30)):
    """Members of whole examples: an image and a caption for each key."""
    for seed, key in enumerate(keys):
        yield f"{key}.jpg", jpeg(hash_of(key) + seed, size)
        yield f"{key}.txt", f"picture {key}".encode()


def hash_of(key):
    return sum(map(ord, key))
