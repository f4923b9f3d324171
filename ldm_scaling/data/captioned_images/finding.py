"""Which kind of source a folder holds, and its shards."""

from collections.abc import Sequence
from pathlib import Path

from ldm_scaling.data.captioned_images.coco import PATTERN, coco_shards
from ldm_scaling.data.captioned_images.entries import Shard
from ldm_scaling.data.captioned_images.parquet import parquet_shards
from ldm_scaling.data.captioned_images.webdataset import SUFFIXES, TarShard
from ldm_scaling.data.source import DataError
from ldm_scaling.naming import check_name

KINDS = ("webdataset", "parquet", "coco")


def find_shards(
    source: str | Path,
    kind: str = "auto",
    *,
    max_bytes: int,
    caption_field: str = "",
    score_field: str = "",
) -> list[Shard]:
    """The shards of a source, in an order that depends on nothing but their names.

    Args:
      source: a folder, searched with all below it; or one tar or parquet file.
      kind: one of `KINDS`; "auto" takes the first of them that is there (img2dataset leaves a
        parquet of statistics beside every tar).
      max_bytes: larger image files are not read.
      caption_field, score_field: where captions and aesthetic scores are in KEY.json or in the
        table; "" looks under the usual names.

    Raises:
      DataError: nothing of that kind is there.
    """
    check_name("kind", kind, ("auto", *KINDS))
    root = Path(source)
    for name in KINDS if kind == "auto" else (kind,):
        files = _files(root, name)
        shards: list[Shard] = []
        for path in files:
            if name == "webdataset":
                shards.append(TarShard(path, max_bytes, caption_field, score_field))
            elif name == "parquet":
                shards += parquet_shards(path, max_bytes, caption_field, score_field)
            else:
                shards += coco_shards(path, max_bytes)
        if shards:
            return shards
    if not root.exists():
        raise DataError(f"source={str(root)!r}: no such folder or file")
    raise DataError(
        f"source={str(root)!r}, kind={kind!r}: nothing there; webdataset needs *.tar, parquet "
        f"*.parquet, coco {PATTERN}"
    )


def _files(root: Path, kind: str) -> Sequence[Path]:
    if kind == "coco":
        return sorted(root.glob(PATTERN))
    suffixes = SUFFIXES if kind == "webdataset" else (".parquet",)
    found = [root] if root.is_file() else root.rglob("*")
    return sorted(path for path in found if path.name.endswith(suffixes) and path.is_file())
