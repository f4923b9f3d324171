"""Any number of examples through a frozen network, in batches of one shape, over many devices."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped

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
