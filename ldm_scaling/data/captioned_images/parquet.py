"""Parquet files of captions whose images have been downloaded beside them.

So img2dataset leaves a folder with `output_format="files"`: 00000.parquet, and 00000/ with
000000000.jpg and its neighbours, each named by the column "key". Tables with a column of paths
("file_name", ...) work as well. Of a table only a few rows are in memory at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_scaling.data.captioned_images.entries import (
    CAPTION_FIELDS,
    IMAGE_EXTENSIONS,
    SCORE_FIELDS,
    BadMetadataError,
    Entry,
    Item,
    Problem,
    captions_of,
    is_unsafe,
    score_of,
)
from ldm_scaling.data.captioned_images.files import read_image
from ldm_scaling.data.source import DataError

FILE_FIELDS = ("file_name", "file", "path", "image_path", "filepath")
ROWS = 10_000
"""Rows of a shard at most: as many images as img2dataset puts into a file."""
_BATCH = 256


@dataclass(frozen=True)
class ParquetShard:
    """Some rows of one row group.

    Attributes:
      path: of the parquet file.
      row_group, start, stop: which rows, counted within the group.
      place: "key" or the column that holds the path of the image.
      caption_field, score_field: columns; "" for neither.
      max_bytes: larger images are not read.
    """

    path: Path
    row_group: int
    start: int
    stop: int
    place: str
    caption_field: str
    score_field: str
    max_bytes: int

    @property
    def name(self) -> str:
        """File, row group and rows."""
        return f"{self.path.name}[{self.row_group}:{self.start}-{self.stop}]"

    def keys(self) -> Iterator[str]:
        """From the one column."""
        return (str(row[self.place]) for row in self._rows([self.place]))

    def entries(self) -> Iterator[Item]:
        """In the order of the rows."""
        columns = {self.place, self.caption_field, self.score_field, "status", "error_message"}
        return map(self._entry, self._rows(sorted(columns - {""})))

    def _rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        from pyarrow.parquet import ParquetFile

        with ParquetFile(self.path) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            batches = file.iter_batches(_BATCH, row_groups=[self.row_group], columns=present)
            seen = 0
            for batch in batches:
                first, last = max(self.start - seen, 0), min(self.stop - seen, len(batch))
                seen += len(batch)
                if first < last:
                    yield from batch.slice(first, last - first).to_pylist()
                if seen >= self.stop:
                    return

    def _entry(self, row: Mapping[str, Any]) -> Item:
        key = str(row[self.place])
        if self.place == "key" and row.get("status") not in (None, "success"):
            return Problem("not downloaded", key, str(row.get("error_message") or row["status"]))
        if is_unsafe(key):
            return Problem("unsafe name", key)
        try:
            captions = captions_of(row, self.caption_field)
            score = score_of(row, self.score_field) if self.score_field else None
        except BadMetadataError as error:
            return Problem("bad metadata", key, str(error))
        if not captions:
            return Problem("no caption", key)
        found = read_image(key, self._candidates(key), self.max_bytes)
        return found if isinstance(found, Problem) else Entry(key, found, captions, score)

    def _candidates(self, key: str) -> Iterator[Path]:
        folder = self.path.parent
        if self.place != "key":
            yield folder / key
            return
        for place in (folder / self.path.stem, folder):
            for extension in IMAGE_EXTENSIONS:
                yield place / f"{key}.{extension}"


def parquet_shards(
    path: Path, max_bytes: int, caption_field: str = "", score_field: str = ""
) -> list[ParquetShard]:
    """The shards of one file.

    Raises:
      DataError: not parquet, or without a column for captions or images.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a parquet file: {error}") from None
    caption = _column(path, names, "caption_field", caption_field, CAPTION_FIELDS)
    place = _column(path, names, "", "", ("key", *FILE_FIELDS))
    score = score_field or next((name for name in SCORE_FIELDS if name in names), "")
    if score and score not in names:
        raise DataError(f"{path}: score_field={score!r}: the columns are {', '.join(names)}")
    return [
        ParquetShard(path, group, start, min(start + ROWS, rows), place, caption, score, max_bytes)
        for group, rows in enumerate(groups)
        for start in range(0, rows, ROWS)
    ]


def _column(path: Path, names: list[str], field: str, wanted: str, usual: tuple[str, ...]) -> str:
    found = next((name for name in ((wanted,) if wanted else usual) if name in names), None)
    if found is None:
        looked = f"{field}={wanted!r}" if wanted else f"none of {', '.join(usual)}"
        raise DataError(f"{path}: {looked}: the columns are {', '.join(names)}")
    return found
