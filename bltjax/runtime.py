"""What surrounds a run: its processes and what they agree on, the compile cache, signals that ask for a clean stop."""

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax._src import distributed  # the only way to the coordinator's store of keys and values

AGREE_SECONDS = 600.0  # how long processes wait for one another before they say who is missing


class Stopped(Exception):
    """A run was asked to stop; it has saved its state, and the message says how to go on."""


class StopRequest:
    """A wish to stop, that a loop looks at where it can: `if stop.requested: ...`.

    Attributes:
      requested: whether somebody asked.
      reason: who did, for messages; "" before.
    """

    def __init__(self) -> None:
        self.requested = False
        self.reason = ""

    def request(self, reason: str) -> None:
        """Asks for a stop; may be called from a signal handler or another thread."""
        self.reason = self.reason or reason
        self.requested = True


@contextmanager
def stop_on_signals(grace_seconds: float | None = None) -> Iterator[StopRequest]:
    """Within it, SIGTERM and the first interrupt (Ctrl-C) ask for a clean stop; a second interrupt ends at once.

    Outside the main thread Python can't handle signals: there it only gives a request that nobody makes.

    Args:
      grace_seconds: after SIGTERM the process ends by itself, saying so, if it has not left this context by then;
        None: it takes the time that it takes.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    watch: list[threading.Timer] = []

    def give_up() -> None:
        sys.stderr.write(
            f"\nnot saved within the {grace_seconds:g} s after SIGTERM: ends now. The last finished checkpoint is "
            "whole; give more --grace-seconds, or save more often.\n"
        )
        sys.stderr.flush()
        os._exit(1)

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and stop.requested:
            raise KeyboardInterrupt
        stop.request(signal.Signals(number).name)
        if number == signal.SIGTERM and grace_seconds is not None and not watch:
            watch.append(threading.Timer(grace_seconds, give_up))
            watch[0].daemon = True
            watch[0].start()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for timer in watch:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    several: bool | None = None,
    start_seconds: float = 300.0,
    heartbeat_seconds: float = 100.0,
) -> None:
    """Joins the processes of a run into one; call it before anything asks JAX for devices.

    With no arguments it joins those that Slurm, Open MPI, GKE or Cloud TPU have started, if any.

    Args:
      coordinator: host:port of process 0.
      num_processes: of the run.
      process_id: of this one, from 0.
      several: whether there are several processes at all; None: where arguments, srun, mpirun or a GKE TPU node say so.
      start_seconds: to wait for the other processes.
      heartbeat_seconds: after so long a silence of one process the others end.

    Raises:
      ValueError: for some of the three addresses without the others.
      TimeoutError: where processes do not come.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise ValueError(
            f"coordinator={coordinator!r}, num_processes={num_processes!r}, process_id={process_id!r}: give all three, "
            "or none where Slurm, Open MPI, GKE or Cloud TPU start the processes."
        )
    if several is None:
        several = any(given) or _started_together() > 1
    if not several:
        return
    # Signals are ours: see `stop_on_signals`. JAX would catch SIGTERM too, and forget it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=round(start_seconds),
            heartbeat_timeout_seconds=round(heartbeat_seconds),
        )
    except RuntimeError as error:
        if "DEADLINE" not in str(error).upper() and "timed out" not in str(error).lower():
            raise
        raise TimeoutError(
            f"process {process_id} did not reach coordinator {coordinator} within {start_seconds:g} s: is process 0 "
            f"running there, and does a firewall let it through? ({str(error).strip().splitlines()[0]})"
        ) from error
    barrier("start", start_seconds)


def _started_together() -> int:
    # SLURM_NTASKS would not do: a batch script that starts one plain process has it too.
    sizes = [os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    hosts = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    return max(len(hosts), *(int(size) if size.isdigit() else 0 for size in sizes))


def process_count() -> int:
    """How many processes the run has."""
    return distributed.global_state.num_processes if distributed.global_state.client is not None else 1


def is_first_process() -> bool:
    """Whether this is the process that writes what there is one of: metrics, tables, messages."""
    return distributed.global_state.process_id == 0


_calls: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)


def gather(name: str, value: Any, seconds: float = AGREE_SECONDS) -> list[Any]:
    """What every process has to say under this name, in the order of processes; all of them must call it.

    It goes through the coordinator's store, not through devices, so it works while those are busy.

    Args:
      value: JSON values.

    Raises:
      TimeoutError: naming the processes that did not come in time.
    """
    client, index, count = distributed.global_state.client, distributed.global_state.process_id, process_count()
    if client is None:
        return [value]
    place = f"bltjax/{name}/{next(_calls[name])}"
    until = time.monotonic() + seconds

    def get(key: str, spare: float) -> str | None:
        try:
            wait = max(0.001, until + spare - time.monotonic())
            return client.blocking_key_value_get(f"{place}/{key}", round(1000 * wait) + 1)
        except RuntimeError as error:  # JaxRuntimeError
            if "DEADLINE" in str(error).upper() or "timed out" in str(error).lower():
                return None
            raise

    client.key_value_set(f"{place}/{index}", json.dumps(value))
    if index == 0:
        found = {i: get(str(i), 0) for i in range(count)}
        missing = [i for i, text in found.items() if text is None]
        client.key_value_set(
            f"{place}/all",
            json.dumps(
                {"missing": missing, "values": None if missing else [json.loads(t or "") for t in found.values()]}
            ),
        )
    # The others give process 0 a little longer, so that it is it who says who is missing.
    text = get("all", 5.0 + 0.05 * seconds)
    answer = {"missing": [0], "values": None} if text is None else json.loads(text)
    if answer["missing"]:
        raise TimeoutError(
            f"{name}: waited {seconds:g} s for process{'es' * (len(answer['missing']) > 1)} "
            f"{', '.join(map(str, answer['missing']))} of {count}: look at the log of "
            f"{'that one' if len(answer['missing']) == 1 else 'those'}."
        )
    return answer["values"]


def barrier(name: str, seconds: float = AGREE_SECONDS) -> None:
    """Returns when all processes have come here.

    Raises:
      TimeoutError: naming the processes that did not come in time.
    """
    gather(name, None, seconds)


def agree(name: str, error: BaseException | None) -> None:
    """Ends the same on all processes: raises `error` where there is one, and elsewhere says what went wrong.

    Raises:
      ValueError: on processes that had no error while another one had; its text says which and what.
    """
    said = gather(name, None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    wrong = {i: text for i, text in enumerate(said) if text is not None}
    if wrong:
        raise ValueError("; ".join(f"process {i}: {text}" for i, text in wrong.items()))


def together(name: str, action: Callable[[], Any], first_only: bool = False) -> Any:
    """What an action gives; if it fails on one process, it fails on all.

    Args:
      first_only: process 0 alone does it, the others get None.

    Raises:
      Exception: that of this process, or ValueError with what another one said.
    """
    result, failed = None, None
    if is_first_process() or not first_only:
        try:
            result = action()
        except Exception as error:
            failed = error
    agree(name, failed)
    return result


def keep_compiled(folder: str | os.PathLike[str], at_least_seconds: float = 1.0) -> None:
    """Keeps compiled programs in a folder, so that a restart does not compile again.

    Args:
      folder: is made if need be. Runs that go on at the same time should not share one on a CPU; the processes of one
        run may, since only the first of them writes.
      at_least_seconds: programs that compile faster than this are not kept.

    Raises:
      OSError: when the folder can't be written to.
    """
    folder = Path(folder).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", at_least_seconds)
