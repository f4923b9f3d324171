"""Data: captioned images, and batches that are a pure function of (seed, step).

A source answers `len(source)` and `source[index]`; `open_source` opens the packaged Noto emoji,
any prepared TFDS data set or a folder of images. A `Pipeline` turns a source into batches by
index arithmetic: nothing has to be saved to resume, and neither hosts nor workers change the
order. `captioned_images` prepares such sources from what people have; `EncodedSource` reads latents
and text embeddings that were computed ahead. TFDS and grain are imported when they are first used.
"""

from ldm_scaling.data.encoded import EncodedSource, Encoding
from ldm_scaling.data.folder import FolderSource
from ldm_scaling.data.opening import open_source
from ldm_scaling.data.pipeline import Pipeline, sequential
from ldm_scaling.data.source import ArraySource, DataError, Example, Source
from ldm_scaling.data.transforms import (
    Compose,
    RandomFlip,
    Resize,
    Transform,
    image_transform,
    random_caption,
)

__all__ = [
    "ArraySource",
    "Compose",
    "DataError",
    "EncodedSource",
    "Encoding",
    "Example",
    "FolderSource",
    "Pipeline",
    "RandomFlip",
    "Resize",
    "Source",
    "Transform",
    "image_transform",
    "open_source",
    "random_caption",
    "sequential",
]
