"""Random weights by a rule, so that goldens of large networks need not store them.

The rule knows the names and shapes that we expect in a file. Where the reference implementation
loads the result strictly, they are the right ones; the tests draw the same numbers again.
"""

import zlib

import jax
import numpy as np

from ldm_scaling.checkpoint import names
from ldm_scaling.encoders.inception import InceptionV3
from ldm_scaling.encoders.lpips_backbones import LpipsBackbone


def seeded_state(template, seed: int = 0) -> dict[str, np.ndarray]:
    """State dict of float32 arrays; activations behind ReLUs keep their size from layer to layer.

    Norms are away from 1 and 0, else a mix-up would not show.
    """
    shapes = names.file_shapes(template)
    return {name: _draw(name, shape, seed) for name, shape in shapes.items()}


def inception_state(seed: int = 0) -> dict[str, np.ndarray]:
    """What the file of FID's Inception holds, with random numbers."""
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    return seeded_state(
        jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"], seed
    )


def backbone_state(net: str, seed: int = 0) -> dict[str, np.ndarray]:
    """What torchvision's file of one of LPIPS' networks holds, less the classifier."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    return seeded_state(
        jax.eval_shape(LpipsBackbone(net).init, jax.random.key(0), image)["params"], seed
    )


def feature_sets() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of 300 generated and 260 real images [N, 24], float32, and logits [300, 20]."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(24, 24)) / 5
    generated = np.abs(rng.normal(size=(300, 24)) @ mixing + 0.4)
    real = np.abs(rng.normal(size=(260, 24)) @ mixing + 0.3)
    logits = 2 * rng.normal(size=(300, 20))
    return tuple(array.astype(np.float32) for array in (generated, real, logits))


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("running_var"):
        array = rng.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        gain = np.sqrt(2 / np.prod(shape[1:]), dtype=np.float32)
        array = gain * rng.standard_normal(shape, np.float32)
    else:
        array = 0.2 * rng.standard_normal(shape, np.float32) + name.endswith(".weight")
    return array.astype(np.float32)
