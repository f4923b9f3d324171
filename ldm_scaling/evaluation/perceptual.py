"""LPIPS of many pairs of images."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from ldm_scaling.checkpoint.packaged import load_lpips_heads
from ldm_scaling.encoders import LpipsBackbone
from ldm_scaling.evaluation.batches import InBatches
from ldm_scaling.metrics import lpips_distance
from ldm_scaling.types import Params


class Lpips:
    """uint8 pairs to distances, on one device or many.

    Attributes:
      net: "alex" to report, "vgg" where images were optimised for another one.
    """

    def __init__(
        self,
        params: Params,
        net: str = "alex",
        heads: Sequence[np.ndarray] | None = None,
        batch_size: int = 64,
        mesh: Mesh | None = None,
    ):
        """With `params` of `checkpoint.published.load_lpips_backbone(net, ...)`.

        Args:
          params: of `encoders.LpipsBackbone(net)`.
          net: which network.
          heads: default: those of the package `lpips`.
          batch_size, mesh: as for `InBatches`.
        """
        self.net = net
        module: Any = LpipsBackbone(net)  # linen's `apply` is typed to return more than arrays
        weights = {
            "backbone": params,
            "heads": tuple(load_lpips_heads(net) if heads is None else heads),
        }

        def distance(weights, images, others):
            one, other = (
                module.apply({"params": weights["backbone"]}, x.astype(jnp.float32) / 127.5 - 1)
                for x in (images, others)
            )
            return lpips_distance(one, other, weights["heads"])

        self._run = InBatches(distance, weights, batch_size=batch_size, mesh=mesh)

    def __call__(
        self, images: UInt8[np.ndarray, "N H W 3"], others: UInt8[np.ndarray, "N H W 3"]
    ) -> Float[np.ndarray, "N"]:
        """Distance of each image to the other of its place; the published score is their mean."""
        return self._run(images, others)
