"""Images to the features that distances are taken between: of Lite0, Inception or DINOv2.

Lite0 is for small studies. All are one class and differ by network, size and range of pixels.
Images come as arrays of one size, or as sequences; for Inception and DINOv2 these may be of
different sizes.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Real, UInt8

from ldm_scaling.checkpoint.identity import weights_hash
from ldm_scaling.checkpoint.packaged import load_lite0
from ldm_scaling.encoders import Dinov2, Dinov2Config, EfficientNetLite0, InceptionV3
from ldm_scaling.encoders.dinov2 import META_OFFSET, PIXEL_MEAN, PIXEL_STD
from ldm_scaling.encoders.inception import SIZE
from ldm_scaling.evaluation.batches import InBatches
from ldm_scaling.evaluation.files import cached_array
from ldm_scaling.evaluation.resizing import RESIZES, resize, resize_one
from ldm_scaling.metrics import FeatureStatistics
from ldm_scaling.naming import check_name
from ldm_scaling.types import Params

# [N, H, W, 3] or N times [H, W, 3]. All uint8: that is checked when they come.
ImageSet: TypeAlias = Real[np.ndarray, "_ _ _ 3"] | Sequence[Real[np.ndarray, "_ _ 3"]]


class FeatureNetwork:
    """uint8 images to features, on one device or many.

    Attributes:
      name: of network and settings: features under different names do not compare.
      dimension: of a feature.
    """

    def __init__(
        self,
        name: str,
        dimension: int,
        network: Callable[[Params, Array], Array],
        params: Params,
        *,
        batch_size: int,
        mesh: Mesh | None,
    ):
        """`network`: (params, images 0..255 of any real dtype [B, H, W, 3]) -> [B, dimension].

        `batch_size` and `mesh` as for `InBatches`.
        """
        self.name, self.dimension, self.params = name, dimension, params
        self._run = InBatches(network, params, batch_size=batch_size, mesh=mesh)

    def __call__(self, images: ImageSet) -> Float[np.ndarray, "N D"]:
        """Pooled features, float32, of N >= 1 images.

        Raises ValueError where images are not uint8: other ranges would give other numbers.
        """
        if images[0].dtype != np.uint8:
            raise ValueError(f"images of dtype {images[0].dtype}: uint8 in 0..255 is expected")
        if isinstance(images, np.ndarray):
            return self._run(images)
        size = self._run.batch_size  # no more images at once: scaled ones are large
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        return np.concatenate([self._run(self._stacked(part)) for part in parts])

    def _stacked(self, images: ImageSet) -> np.ndarray:
        fitted = [self._fit(image) for image in images]
        if len(sizes := {image.shape for image in fitted}) > 1:
            raise ValueError(
                f"images of {sorted(sizes)}: {self.name} takes those of one size; scale them first"
            )
        return np.stack(fitted)

    def _fit(self, image: np.ndarray) -> np.ndarray:
        """What `network` takes of an image of a sequence: where it scales, all have one size."""
        return image

    def cached(
        self, images: UInt8[np.ndarray, "N H W 3"], folder: Path
    ) -> Float[np.ndarray, "N D"]:
        """Features kept in `folder`, under a name that weights, settings and pixels decide."""
        settings = f"{weights_hash(self.params)} {self.name} {images.shape}"
        digest = hashlib.sha256(settings.encode())
        digest.update(images.tobytes())
        path = folder / f"{self.name}-{digest.hexdigest()[:16]}.npy"
        return cached_array(path, lambda: self(images))

    def statistics(self, pieces: Iterable[ImageSet]) -> FeatureStatistics:
        """Moments of the features of images that come in pieces; no more than one is held.

        Pieces of many batches waste least. Sets that several processes went through are put
        together by `statistics.merged_over_processes`.
        """
        total = FeatureStatistics.empty(self.dimension)
        for images in pieces:
            total = total.update(self(images))
        return total


class Lite0(FeatureNetwork):
    """EfficientNet-Lite0 (ImageNet), whose weights come in a package.

    Attributes:
      size: side in pixels that images are scaled to. 224 is what the network was trained at;
        smaller is faster, and gives other numbers.
    """

    def __init__(
        self,
        size: int = 128,
        batch_size: int = 64,
        params: Params | None = None,
        mesh: Mesh | None = None,
    ):
        """`params` default to the packaged weights."""
        self.size = size
        module = EfficientNetLite0(size)

        def network(params, images):
            return module.apply({"params": params}, images.astype(jnp.float32) / 127.5 - 1)

        params = load_lite0() if params is None else params
        super().__init__(f"lite0_{size}", 1280, network, params, batch_size=batch_size, mesh=mesh)


class Inception(FeatureNetwork):
    """FID's Inception.

    Attributes:
      mode: how images come to 299 pixels, of `RESIZES`.
    """

    def __init__(
        self,
        params: Params,
        mode: str = "legacy",
        batch_size: int = 32,
        mesh: Mesh | None = None,
    ):
        """With `params` of `checkpoint.published.load_inception`.

        Args:
          params: of `encoders.InceptionV3`.
          mode: "legacy" is pytorch-fid's FID, "clean" clean-fid's, "tensorflow" torch-fidelity's
            (FID, KID, Inception score); never compare across them.
          batch_size, mesh: as for `InBatches`.
        """
        self.mode = check_name("resize", mode, RESIZES)
        module: Any = InceptionV3()  # linen's `apply` is typed to return more than arrays

        def network(params, images):
            pixels = resize(images, mode, SIZE)
            # The graph's own (x - 128) / 128; pytorch-fid takes black and white to -1 and 1.
            scaled = pixels / 127.5 - 1 if mode == "legacy" else (pixels - 128) / 128
            return module.apply({"params": params}, scaled).features

        super().__init__(
            f"inception_{mode}", 2048, network, params, batch_size=batch_size, mesh=mesh
        )

    def _fit(self, image: np.ndarray) -> np.ndarray:
        return resize_one(image, self.mode, SIZE)

    def unbiased_logits(self, features: Float[np.ndarray, "N 2048"]) -> Float[np.ndarray, "N 1008"]:
        """What the Inception score is computed from: a linear map of the features, on the host."""
        return features @ np.asarray(self.params["fc"]["kernel"])


class Dinov2Features(FeatureNetwork):
    """The state of DINOv2's class token after the final norm, as in arXiv:2306.04675.

    Its authors' code (layer6ai-labs/dgm-eval) scales images to 224 pixels by Pillow's bicubic
    filter and runs Meta's own ViT-L/14, whose positions this follows. It rounds scaled pixels to 8
    bits unless it is run with --clean_resize; here, as in NVlabs/edm2, they are not rounded.

    Attributes:
      size: side in pixels that images are scaled to.
    """

    def __init__(
        self,
        config: Dinov2Config,
        params: Params,
        size: int = 224,
        batch_size: int = 32,
        mesh: Mesh | None = None,
    ):
        """With `config` and `params` of `checkpoint.diffusers.import_dinov2`.

        Args:
          config: `position_offset` and `dtype` are not read: the one is Meta's, the other float32,
            in full precision on every device.
          params: of `encoders.Dinov2`.
          size: a multiple of the patches'. 224 is what is published; others give other numbers.
          batch_size, mesh: as for `InBatches`.

        Raises ValueError for another size.
        """
        if size % config.patch_size:
            raise ValueError(f"size={size}: must be a multiple of patch_size={config.patch_size}")
        self.size = size
        config = dataclasses.replace(config, position_offset=META_OFFSET, dtype="float32")
        module: Any = Dinov2(config)
        mean, std = (np.asarray(x, np.float32)[None, None, None] for x in (PIXEL_MEAN, PIXEL_STD))

        def network(params, images):
            pixels = (resize(images, "clean", size) / 255 - mean) / std
            with jax.default_matmul_precision("highest"):
                return module.apply({"params": params}, pixels)[:, 0]

        name = f"dinov2_{config.hidden_size}_{size}"
        super().__init__(
            name, config.hidden_size, network, params, batch_size=batch_size, mesh=mesh
        )

    def _fit(self, image: np.ndarray) -> np.ndarray:
        return resize_one(image, "clean", self.size)
