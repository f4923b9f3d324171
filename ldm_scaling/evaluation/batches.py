"""Any number of examples through a frozen network, in batches of one shape, over many devices.

Or over many processes: each sends its share of the images through, and all have what all found.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Shaped
from tqdm import tqdm

from ldm_scaling.evaluation.image_sets import ImageSet
from ldm_scaling.hosts import check_agreed, is_first, wait_for_all
from ldm_scaling.sharding import check_batch, make_mesh, put_batch, replicated, within
from ldm_scaling.types import Params


class InBatches:
    """A function of examples, compiled once, whatever their number.

    The last batch is filled up by repeating its last example, and cut after: what is computed of
    an example does not depend on the others, so neither the batch size nor the number of devices
    nor the order of the examples changes it beyond rounding.

    Attributes:
      batch_size: examples at a time, over all devices of the mesh.
    """

    def __init__(
        self,
        function: Callable[..., jax.Array],
        params: Params,
        *,
        batch_size: int = 64,
        mesh: Mesh | None = None,
    ):
        """Places the weights, whole, on every device.

        Args:
          function: (params, arrays [B, ...]) -> array [B, ...].
          params: the network's.
          batch_size: a multiple of the mesh's batch devices.
          mesh: of this process' devices; default: the first of them alone.

        Raises:
          ValueError: `batch_size` cannot be spread over the mesh, or the mesh holds devices of
            other processes (each computes what it has been given).
        """
        mesh = mesh or make_mesh(devices=jax.local_devices()[:1])
        check_batch(mesh, batch_size)
        if mesh.is_multi_process:
            raise ValueError(
                "mesh: holds devices of other processes; make it of jax.local_devices(), and merge "
                "what the processes found"
            )
        self.batch_size, self._mesh = batch_size, mesh
        self._params = jax.device_put(params, replicated(mesh))
        self._run = jax.jit(within(mesh, function))

    def __call__(self, *arrays: Shaped[np.ndarray, "_ ..."]) -> Shaped[np.ndarray, "N ..."]:
        """Arrays of N >= 1 examples each -> results in their order.

        Raises ValueError where there are none, or not as many of each; and where a result is NaN or
        Inf, which no score would show for what it is.
        """
        count = len(arrays[0])
        if count == 0 or any(len(array) != count for array in arrays):
            raise ValueError(
                f"{[len(array) for array in arrays]} examples: at least 1, and as many of each"
            )
        results: list[np.ndarray] = []
        ahead: jax.Array | None = None
        for rows in self._batches(count):
            batch = put_batch(self._mesh, [array[rows] for array in arrays])
            result = self._run(self._params, *batch)
            if ahead is not None:  # fetched while the next batch is computed
                results.append(np.asarray(ahead))
            ahead = result
        results.append(np.asarray(ahead))
        found = np.concatenate(results)[:count]
        if broken := np.flatnonzero(~np.isfinite(found).reshape(count, -1).all(axis=1)).tolist():
            raise ValueError(
                f"the network gives NaN or Inf for {len(broken)} of {count} examples, the first is "
                f"{broken[0]}; its weights are damaged, or not those of this network"
            )
        return found

    def _batches(self, count: int) -> Iterator[np.ndarray]:
        for start in range(0, count, self.batch_size):
            yield np.minimum(np.arange(start, start + self.batch_size), count - 1)


def through(
    function: Callable[[list[Any]], Float[np.ndarray, "_ D"]], images: ImageSet, what: str
) -> Float[np.ndarray, "N D"]:
    """What a network makes of every image of a set, in the set's order.

    Of several processes, which all have to call it, each takes every n-th image, and all return
    the same array. A bar shows the time left.

    Args:
      function: images of any size [H, W, 3] -> float32 array, a row each.
      images: the same on all processes.
      what: label of the bar.

    Raises:
      ValueError: an image that cannot be read; fewer images than processes, or not the same.
    """
    count, index = jax.process_count(), jax.process_index()
    check_agreed(f"the list of images of {images.name}", "\n".join(images.keys))
    if len(images) < count:
        raise ValueError(f"{images.name}: {len(images)} images for {count} processes; start fewer")
    mine = ImageSet(images.name, images.keys[index::count], lambda i: images[index + i * count])
    found = []
    with tqdm(
        desc=f"{what} of {images.name}", total=len(mine), unit="image", disable=not is_first()
    ) as bar:
        for piece in mine.pieces():
            found.append(function(piece))
            bar.update(len(piece))
    return _of_all_processes(np.concatenate(found), len(images))


def _of_all_processes(share: np.ndarray, total: int) -> np.ndarray:
    """Rows index, index + count, ... of each process -> all of them."""
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return share
    wait_for_all("shares of images")
    longest = -(-total // jax.process_count())
    padded = np.concatenate([share, np.zeros((longest - len(share), share.shape[1]), share.dtype)])
    told = np.asarray(multihost_utils.process_allgather(padded))  # [processes, longest, D]
    return told.transpose(1, 0, 2).reshape(-1, share.shape[1])[:total]
