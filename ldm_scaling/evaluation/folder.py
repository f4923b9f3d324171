"""A folder of generated images: drawn once each, whatever stops the process in between.

    000000397133.png    one image a caption, named by its id
    metadata.jsonl      file_name, caption and id of each, in order
    generation.json     how they were drawn; another way of drawing needs another folder

An image depends on the weights, its caption, the sampler and (seed, id), so those that are there
need not be drawn again, and several jobs can share a folder.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm_scaling import __version__
from ldm_scaling.diffusion import check_guidance_rate, sampler_table
from ldm_scaling.evaluation.captions import Caption, captions_hash
from ldm_scaling.evaluation.files import write_atomically
from ldm_scaling.evaluation.generate import Generator

METADATA, SETTINGS = "metadata.jsonl", "generation.json"
_AHEAD = 4  # batches between two writes: the device computes while files are written


def draw_folder(
    generator: Generator,
    captions: Sequence[Caption],
    folder: Path,
    *,
    sampler: str = "ddim",
    steps: int = 50,
    guidance: float = 7.5,
    spacing: str | None = None,
    eta: float = 0.0,
    seed: int = 0,
    bucket: int | None = None,
    index: int = 0,
    of: int = 1,
    progress: bool = True,
) -> int:
    """Draws an image of each caption that has none in `folder` yet.

    Args:
      generator: draws. Its batch size and devices change nothing but rounding.
      captions: of the whole folder, whatever part of it is drawn here.
      folder: see the module; made if missing.
      sampler, steps, guidance, spacing, seed: see `TextToImage`; eta is DDIM's.
      bucket: see `Generator`: one for several folders spares compiling again.
      index, of: draws the captions `index`, `index + of`, ...: one job of an array of `of`.
      progress: show a bar with the time left.

    Returns:
      How many images were drawn.

    Raises:
      ValueError: the folder holds images drawn in another way (names what differs); a sampler,
        steps, guidance or index that cannot be.
    """
    if not 0 <= index < of:
        raise ValueError(f"index={index}: must be in 0..{of - 1}, of={of} jobs")
    check_guidance_rate(guidance)
    model, batch_size = generator.model, generator.batch_size
    spacing = spacing or model.card.spacing
    options = {"eta": eta} if eta else {}
    table = sampler_table(sampler, model.schedule, steps, spacing=spacing, **options)
    settings = {
        "weights_hash": model.card.weights_hash,
        "sampler": sampler,
        "steps": steps,
        "guidance": guidance,
        "spacing": spacing,
        **options,
        "seed": seed,
        "count": len(captions),
        "captions_hash": captions_hash(captions),
    }
    _claim(folder, settings, captions)
    mine = captions[index::of]
    todo = [caption for caption in mine if not image_path(folder, caption).exists()]
    if not todo:
        return 0
    unconditional = model.text_encoder([""])
    with tqdm(
        desc="drawing", total=len(mine), initial=len(mine) - len(todo), disable=not progress
    ) as bar:
        for start in range(0, len(todo), _AHEAD * batch_size):
            part = todo[start : start + _AHEAD * batch_size]
            images = generator(
                model.text_encoder([caption.text for caption in part]),
                unconditional,
                np.array([caption.id for caption in part], np.int32),
                table,
                guidance=guidance,
                seed=seed,
                bucket=bucket,
            )
            for caption, image in zip(part, images, strict=True):
                _write(image_path(folder, caption), image)
            bar.update(len(part))
    return len(todo)


def image_path(folder: Path, caption: Caption) -> Path:
    """Where the image of a caption is, or will be."""
    return folder / f"{caption.id:012d}.png"


def _write(path: Path, image: np.ndarray) -> None:
    write_atomically(path, lambda file: Image.fromarray(image).save(file, "png"))


def _claim(folder: Path, settings: Mapping[str, Any], captions: Sequence[Caption]) -> None:
    path = folder / SETTINGS
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        different = [
            f"{name}={there.get(name)!r} there, {value!r} here"
            for name, value in settings.items()
            if there.get(name) != value
        ]
        if different:
            raise ValueError(
                f"{folder} holds images drawn in another way ({'; '.join(different)}); "
                "give another folder"
            )
        return
    lines = [
        json.dumps(
            {
                "file_name": image_path(folder, caption).name,
                "caption": caption.text,
                "id": caption.id,
                **({"reference": caption.reference} if caption.reference else {}),
            },
            ensure_ascii=False,
        )
        for caption in captions
    ]
    _write_text(folder / METADATA, "\n".join(lines) + "\n")
    written = {**settings, "ldm_scaling": __version__}
    _write_text(path, json.dumps(written, indent=2, sort_keys=True) + "\n")


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
