"""What processes tell each other in passing; with one process, all of it costs nothing.

Each of these first waits for all processes by JAX's coordinator: CPUs begin a collective by finding
each other, and give up where one comes 30 seconds later than another.
"""

import hashlib
import itertools

import numpy as np

DAY = 24 * 60 * 60 * 1000
"""Milliseconds to wait for a process: it may compile for hours, and a death is noticed anyway."""

_waits = itertools.count()  # the same on all processes, as all wait for the same things


def is_first() -> bool:
    """Whether this process is the one that writes records, exports and the like."""
    import jax

    return jax.process_index() == 0


def first_says(number: int) -> int:
    """The first process' number, on all processes; they all have to ask."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return number
    wait_for_all("the first says")
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def all_say(yes: bool) -> bool:
    """Whether it is so on all processes; they all have to ask."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return yes
    wait_for_all("all say")
    return bool(np.all(multihost_utils.process_allgather(np.uint8(yes))))


def wait_for_all(name: str) -> None:
    """Returns when all processes have come here, however long that takes."""
    import jax
    from jax._src import distributed  # as Orbax does: barriers have no public name

    if jax.process_count() > 1:
        client = distributed.global_state.client
        assert client is not None
        client.wait_at_barrier(f"ldm_scaling/{next(_waits)}/{name}", DAY)


def check_agreed(what: str, value: str) -> None:
    """Raises ValueError, on all processes, where they were given different values of `what`."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return
    wait_for_all(what)
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint32)
    found = multihost_utils.process_allgather(digest)
    different = [i for i, other in enumerate(found) if not np.array_equal(other, found[0])]
    if different:
        raise ValueError(
            f"{what} of processes {different} differs from that of process 0: give all processes "
            "the same command, and the same files"
        )
