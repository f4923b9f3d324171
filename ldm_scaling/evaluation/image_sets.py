"""Sets of images that are scored: a folder, an array, or a split of a data set; read in pieces."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ldm_scaling.data import open_source
from ldm_scaling.data.images import UnreadableImageError, array_to_rgb, decode_rgb
from ldm_scaling.evaluation.files import open_npz

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
PIECE = 256  # images that are in memory at a time

Image = UInt8[np.ndarray, "_ _ 3"]


class ImageSet:
    """Images in a fixed order.

    Attributes:
      name: where they come from, for a record.
      keys: one a image; in a folder the names of the files.
    """

    def __init__(self, name: str, keys: Sequence[str], read: Callable[[int], Image]):
        """`read(i)` is the image of `keys[i]`; it may be called from several threads."""
        self.name, self.keys, self._read = name, list(keys), read

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Image:
        """Raises ValueError, naming the image, where it cannot be read."""
        try:
            return self._read(index)
        except UnreadableImageError as error:
            raise ValueError(f"{self.name}: {self.keys[index]}: {error}") from error

    def pieces(self, size: int = PIECE, threads: int = 4) -> Iterator[list[Image]]:
        """The images, `size` at a time; the next piece is read while one is used."""
        with ThreadPoolExecutor(threads) as pool:
            starts = range(0, len(self), size)

            def submit(start: int):
                rows = range(start, min(start + size, len(self)))
                return [pool.submit(self.__getitem__, row) for row in rows]

            ahead = submit(0)
            for start in starts:
                now, ahead = ahead, submit(start + size)
                yield [future.result() for future in now]


def open_images(name: str | Path) -> ImageSet:
    """Opens a set of images.

    Args:
      name: a folder of image files (those of its subfolders are left aside); an .npz file with
        uint8 images [N, H, W, 1 | 3 | 4] as its only array, or as "arr_0"; or DATA:SPLIT, a data
        set that `data.open_source` opens, such as "noto_emoji:test".

    Raises:
      FileNotFoundError: there is no such file, folder or data set.
      ValueError: it holds no images, or what is there are not images.
    """
    path = Path(name)
    if path.is_dir() and not path.name.endswith(":"):
        return _folder(path)
    if path.suffix == ".npz":
        return _array(path)
    data, colon, split = str(name).rpartition(":")
    if colon:
        source = open_source(data, split)
        return ImageSet(
            str(name),
            [str(i) for i in range(len(source))],
            lambda i: array_to_rgb(source[i]["image"]),
        )
    raise FileNotFoundError(
        f"{name}: no such folder; give a folder of images, an .npz file, or DATA:SPLIT"
    )


def drawn_facts(name: str | Path) -> dict[str, Any]:
    """Fields of a record that the folder of `launch/generate.py` itself decides.

    "point": the folder and how it was drawn; "seed"; "weights_hash". Of other images little is
    known: the name alone, 0 and "".
    """
    path = Path(name) / "generation.json"
    drawn = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    seed, weights = int(drawn.pop("seed", 0)), str(drawn.pop("weights_hash", ""))
    drawn.pop("ldm_scaling", None)
    return {"point": {"samples": str(name), **drawn}, "seed": seed, "weights_hash": weights}


def keys_hash(images: ImageSet) -> str:
    """Of the names of the images: which were scored, in which order."""
    return hashlib.sha256("\n".join(images.keys).encode()).hexdigest()[:12]


def _folder(path: Path) -> ImageSet:
    files = sorted(
        file.name
        for file in path.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        inside = sorted(child.name for child in path.iterdir())[:5]
        raise ValueError(
            f"{path}: no image files ({', '.join(SUFFIXES)}); it holds {inside or 'nothing'}"
        )
    return ImageSet(str(path), files, lambda i: decode_rgb(path / files[i]))


def _array(path: Path) -> ImageSet:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open_npz(path) as file:
        name = "arr_0" if "arr_0" in file else next(iter(file), "")
        images = np.asarray(file[name]) if name else np.zeros(0)
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(
            f"{path}: {name or 'nothing'} is {images.dtype}{list(images.shape)}, not uint8 images "
            "[N, H, W, 3]"
        )
    return ImageSet(
        str(path), [str(i) for i in range(len(images))], lambda i: array_to_rgb(images[i])
    )
