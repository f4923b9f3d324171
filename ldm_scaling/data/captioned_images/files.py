"""Reading an image file that a table or an annotation names."""

from collections.abc import Iterable
from pathlib import Path

from ldm_scaling.data.captioned_images.entries import Problem


def read_image(key: str, candidates: Iterable[Path], max_bytes: int) -> bytes | Problem:
    """The bytes of the first of `candidates` that is there, or why there are none."""
    tried = None
    for path in candidates:
        tried = tried or path
        try:
            size = path.stat().st_size
            if size > max_bytes:
                detail = f"{path.name} has {size} bytes, of {max_bytes} allowed"
                return Problem("too many bytes", key, detail)
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return Problem("no image", key, str(error))
    return Problem("no image", key, f"no {tried}, nor with another extension")
