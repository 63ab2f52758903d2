"""What surrounds a run: the compile cache, the first process, signals that ask for a clean stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import jax


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
def stop_on_signals() -> Iterator[StopRequest]:
    """Within it, SIGTERM and the first interrupt (Ctrl-C) ask for a clean stop; a second interrupt ends at once.

    Outside the main thread Python can't handle signals: there it only gives a request that nobody makes.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and stop.requested:
            raise KeyboardInterrupt
        stop.request(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_first_process() -> bool:
    """Whether this is the process that writes what there is one of: metrics, tables, messages."""
    return jax.process_index() == 0


def keep_compiled(folder: str | os.PathLike[str], at_least_seconds: float = 1.0) -> None:
    """Keeps compiled programs in a folder, so that a restart does not compile again.

    Args:
      folder: is made if need be. Processes that run at the same time should not share one on a CPU.
      at_least_seconds: programs that compile faster than this are not kept.

    Raises:
      OSError: when the folder can't be written to.
    """
    folder = Path(folder).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", at_least_seconds)
