"""A lock on a file that one process holds at a time, and that a dead process does not keep.

The kernel drops it with the process that holds it, whatever ends it: no stale lock is ever in the way. Between machines
it needs a file system that they share and that knows flock (NFS, Lustre mounted with `flock`); object stores do not.
"""

import fcntl
import os
import re
import socket
import time
from pathlib import Path
from types import TracebackType

PROBE_SECONDS = 0.25  # `holder` has a lock for a moment; so long is nobody refused for it


class Busy(BlockingIOError):
    """Another process holds a lock.

    Attributes:
      holder: which, in words.
    """

    holder = "another process"


class Lock:
    """Holds a file from here until `release`, the end of a `with` block, or the end of the process.

    The file stays behind: to remove it would let two processes hold two files of one name.
    """

    def __init__(self, path: Path, wait: bool = False, doing: str = "holds this lock: wait for it") -> None:
        """Takes the lock.

        Args:
          path: of the file; it and its folder are made if need be.
          wait: for as long as another process holds it.
          doing: what the other process does, for the error: "process 7 on box" is put before it.

        Raises:
          Busy: while another process holds it, unless this one waits.
          OSError: for a file that can't be written to.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115
        try:
            self._take(path, wait, doing)
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            self._file.flush()
        except BaseException:
            self._file.close()
            raise

    def _take(self, path: Path, wait: bool, doing: str) -> None:
        if wait:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            return
        until = time.monotonic() + PROBE_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > until:
                    self._file.seek(0)
                    named = _words(self._file.read(200))
                    busy = Busy(error.errno, f"{named} {doing}", str(path))
                    busy.holder = named
                    raise busy from error
            time.sleep(0.02)

    def release(self) -> None:
        """Lets another process have it."""
        self._file.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.release()


def holder(path: Path) -> str | None:
    """Which process holds a lock now, in words: "process 7 on box"; None: nobody does."""
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _words(file.read(200))
    return None


def _words(text: bytes) -> str:
    return re.sub(r"\s+", " ", text.decode(errors="replace")).strip() or Busy.holder
