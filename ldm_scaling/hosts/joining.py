"""How the processes of a run find each other, and what each does when it ends."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags, logging

from ldm_scaling.hosts.signals import tame_signals
from ldm_scaling.hosts.watch import Hub, Watch

SHUTDOWN_SECONDS = 3600
"""How long a process that is done waits for the others: the first may still write an export."""

INITIALIZATION_SECONDS = 300
"""How long a process waits for all others to start."""

HUB_KEY = "ldm_scaling/hub"


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of `joined`, the same for every command."""
    flags.DEFINE_enum(
        "multihost",
        "auto",
        ["auto", "off"],
        "auto: join the processes of a TPU pod, a SLURM or Open MPI job, or a Kubernetes job, "
        "where this is one. off: this process is alone.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, where it will listen.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_processes", None, "How many processes there are.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "process_id", None, "Which of them this is, from 0.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "heartbeat_timeout_seconds",
        100,
        "After how many seconds of silence a machine counts as gone; all others end then. (A "
        "process that dies while its machine lives is noticed at once.)",
        lower_bound=4,
        flag_values=flag_values,
    )
    names = ["multihost", "coordinator", "num_processes", "process_id"]
    flags.register_multi_flags_validator(names, _valid, flag_values=flag_values)


def _valid(values: Mapping[str, Any]) -> bool:
    try:
        check_processes(**{name: values[name] for name in values if name != "multihost"})
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error
    if values["multihost"] == "off" and values["coordinator"] is not None:
        raise flags.ValidationError("--multihost=off contradicts --coordinator: give one of them")
    return True


def check_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Raises ValueError where the three do not name a process of a group; None, all: no group."""
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            f"--{missing[0]} is missing: give --coordinator, --num_processes and --process_id, all "
            "three or none"
        )
    if coordinator is None or num_processes is None or process_id is None:
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--coordinator={coordinator}: give HOST:PORT, as in 10.0.0.2:8476")
    if num_processes < 1:
        raise ValueError(f"--num_processes={num_processes}: must be at least 1")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id={process_id}: must lie in 0 .. {num_processes - 1}, as there are "
            f"--num_processes={num_processes}"
        )


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The body of a command, as `define_flags`' flags say: one of several processes, or alone.

    Leaves with all processes together. An exception in one of them ends them all, each with a
    message and exit code 1, and so does the death of one; `SystemExit` with a number is an end on
    which they agreed (see `train.interrupt`).

    Raises:
      ValueError: there are signs of a cluster, but not what it takes to join it.
    """
    values = flags.FLAGS
    watch = join(
        multihost=values.multihost,
        coordinator=values.coordinator,
        num_processes=values.num_processes,
        process_id=values.process_id,
        heartbeat_timeout_seconds=values.heartbeat_timeout_seconds,
    )
    if watch is None:
        yield
        return
    try:
        yield
    except BaseException as error:
        if not _agreed_end(error):
            _end_all(watch, error, values.heartbeat_timeout_seconds)
        _leave(watch)
        raise
    _leave(watch)


def join(
    *,
    multihost: str = "auto",
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout_seconds: int = 100,
) -> Watch | None:
    """Joins the others, before anything is computed; None where this process is alone.

    Raises:
      ValueError: see `joined` and `check_processes`.
    """
    check_processes(coordinator, num_processes, process_id)
    if coordinator is None and (multihost == "off" or _surely_alone(os.environ)):
        return None
    import jax

    # How processes on CPUs talk; elsewhere it has no effect.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    arguments: dict[str, Any] = {
        "initialization_timeout": INITIALIZATION_SECONDS,
        # The watch comes first, and names who is gone.
        "heartbeat_timeout_seconds": heartbeat_timeout_seconds + heartbeat_timeout_seconds // 2,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
    }
    if coordinator is not None:
        logging.info(
            "Process %s of %s meets the others at %s, for %d seconds at most",
            process_id, num_processes, coordinator, INITIALIZATION_SECONDS,
        )  # fmt: skip
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method="deactivate",
            **arguments,
        )
    elif not _join_detected(arguments):
        return None
    from jax._src import distributed  # as Orbax does: the state has no public name

    state = distributed.global_state
    if state.num_processes == 1:
        return None
    _show_host(state.process_id, state.num_processes)
    return _watch(state, heartbeat_timeout_seconds)


def _join_detected(arguments: Mapping[str, Any]) -> bool:
    import jax

    try:
        jax.distributed.initialize(**arguments)
    except ValueError as error:
        if "coordinator_address" in str(error):  # JAX knows no cluster that this could be
            return False
        raise
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"--multihost=auto: this looks like a process of a cluster, but {error}. Give "
            "--multihost=off where it is alone, else --coordinator, --num_processes, --process_id"
        ) from error
    return True


def _surely_alone(environment: Mapping[str, str]) -> bool:
    """Whether signs that JAX would take for a cluster's are those of a single process.

    A SLURM job of one task; a Kubernetes pod that is none of an indexed job (on TPUs JAX reads
    the pod's TPU_WORKER_HOSTNAMES instead).

    Raises ValueError for an indexed job whose neighbours cannot be asked for: each process would
    take itself for the only one.
    """
    if environment.get("SLURM_NTASKS") == "1":
        return True
    on_tpu = "TPU_WORKER_HOSTNAMES" in environment or "TPU_PROCESS_ADDRESSES" in environment
    if "KUBERNETES_SERVICE_HOST" not in environment or on_tpu:
        return False
    if "JOB_COMPLETION_INDEX" not in environment:
        return True
    from importlib.util import find_spec

    if find_spec("kubernetes") is None:
        raise ValueError(
            "--multihost=auto: this is a pod of an indexed Kubernetes job, and JAX needs the "
            "package kubernetes to find the others: pip install 'jax[k8s]', or give "
            "--coordinator, --num_processes and --process_id, or --multihost=off"
        )
    return False


def _watch(state: Any, timeout: int) -> Watch:
    """Connects every process with the first, which tells where by JAX's key-value store."""
    index, count = state.process_id, state.num_processes
    if index == 0:
        hub = Hub(count, timeout)
        state.client.key_value_set(HUB_KEY, f"{hub.port} {hub.token}")
    found = state.client.blocking_key_value_get(HUB_KEY, INITIALIZATION_SECONDS * 1000)
    port, token = found.split()
    coordinator = state.coordinator_address.rpartition(":")[0].strip("[]")
    host = "localhost" if index == 0 else coordinator
    try:
        watch = Watch(index, count, (host, int(port)), token, timeout)
    except OSError as error:
        message = (
            f"process {index} of {count} ends: it cannot reach process 0 at {host}:{port} "
            f"({error}); the machines of a run must reach each other at every port\n"
        )
        os.write(2, message.encode())
        os._exit(1)  # no exception: on its way out JAX would wait for the others, and they for it
    tame_signals()
    return watch


def _show_host(index: int, count: int) -> None:
    """Every line of the text log says whose it is."""

    class HostFormatter(logging.PythonFormatter):
        def format(self, record: Any) -> str:
            lines = super().format(record).splitlines()
            return "\n".join(f"[{index}/{count}] {line}" for line in lines)

    logging.get_absl_handler().setFormatter(HostFormatter())


def _agreed_end(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and not isinstance(error.code, str)


def _end_all(watch: Watch, error: BaseException, timeout: int) -> None:
    """Says why this process ends, and ends all; does not return."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        why = str(error) or type(error).__name__
    else:
        traceback.print_exception(error)
        why = f"{type(error).__name__}: {error}".splitlines()[0]
    sys.stdout.flush()
    sys.stderr.flush()
    if _is_of_xla(error):
        # As likely as not a collective that lost another process: then the watch will say which.
        watch.wait(1.5 * timeout)
    watch.end_all(f"process {watch.index} failed: {why}")
    os._exit(1)


def _is_of_xla(error: BaseException | None) -> bool:
    """Whether XLA raised it, or what it was raised from."""
    import jax

    while error is not None and not isinstance(error, jax.errors.JaxRuntimeError):
        error = error.__cause__ or error.__context__
    return error is not None


def _leave(watch: Watch) -> None:
    """Waits for all to be done, so that none finds another one gone."""
    import jax

    jax.distributed.shutdown()
    watch.leave()
