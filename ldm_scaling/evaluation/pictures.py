"""Pictures of many images, for a person to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from ldm_scaling.evaluation.files import write_atomically

LABEL_HEIGHT = 18
MARGIN = 6


def image_grid(
    images: UInt8[np.ndarray, "N H W 3"], columns: int, labels: Sequence[str] = ()
) -> Image.Image:
    """Images row by row on white, with a line of text above each row that has a label.

    Args:
      columns: images in a row; the last row may be shorter.
      labels: of the rows, from the first; what does not fit the row's width is cut.
    """
    height, width = images.shape[1:3]
    rows = -(-len(images) // columns)
    above = LABEL_HEIGHT if labels else 0
    size = (
        columns * (width + MARGIN) + MARGIN,
        rows * (height + MARGIN + above) + MARGIN,
    )
    grid = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(grid), ImageFont.load_default(12)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left = MARGIN + column * (width + MARGIN)
        top = MARGIN + row * (height + MARGIN + above)
        if column == 0 and row < len(labels):
            text = _cut(labels[row], font, size[0] - 2 * MARGIN)
            pen.text((left, top), text, fill=(40, 40, 40), font=font)
        grid.paste(Image.fromarray(image), (left, top + above))
    return grid


def save_grid(
    path: Path, images: UInt8[np.ndarray, "N H W 3"], columns: int, labels: Sequence[str] = ()
) -> None:
    """Writes `image_grid` as a PNG file, whole or not at all."""
    grid = image_grid(images, columns, labels)
    write_atomically(path, lambda file: grid.save(file, "png"))


def _cut(text: str, font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
