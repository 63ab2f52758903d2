"""Whose a run's folder is: one configuration, one corpus, and at any time one job that writes to it."""

import difflib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from bltjax.checkpoint import check_same, differences, is_free
from bltjax.config import TrainConfig, from_dict, to_dict
from bltjax.data.views import Source
from bltjax.metrics import flat, replace_file
from bltjax.provenance import Provenance

MAY_DIFFER = ("checkpoint_every", "keep_every", "mesh")  # what a run may go on with although it was begun otherwise


def data_identity(source: Source) -> dict[str, Any]:
    """What the data of a run is known by: its size, and hashes of its documents and of how rows are cut from them."""
    hashes = {}
    for name, arrays in source.parts().items():
        found = hashlib.sha256()
        for array in arrays:
            # In pieces: an array may be as long as the corpus, and lie on disk.
            for first in range(0, len(array), 1 << 20):
                found.update(array[first : first + (1 << 20)].tobytes())
        hashes[name] = found.hexdigest()[:16]
    return {"bytes": source.documents.total_bytes, **hashes}


def about_run(config: TrainConfig, source: Source) -> dict[str, Any]:
    """All that decides how a run ends, as JSON values."""
    return {**to_dict(config), "data": data_identity(source)}


def read_config(folder: Path) -> TrainConfig:
    """The configuration of the run in a folder.

    Raises:
      FileNotFoundError: where there is no run.
      ValueError: for a file that is no configuration.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no run (no config.json): name the folder of a training run.")
    about = _read(folder / "config.json")
    return from_dict(TrainConfig, {key: value for key, value in about.items() if key not in ("data", "changes")})


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): restore it, or give this run another folder.") from error


class Claim:
    """The sole right to write to the folder of a run, until `release` or the end of the process, however it ends.

    Attributes:
      may_differ: keys and groups of keys in which the folder's earlier checkpoints may differ from this run.
    """

    def __init__(
        self,
        folder: Path,
        about: dict[str, Any],
        allow_change: Sequence[str] = (),
        provenance: Provenance | None = None,
    ) -> None:
        """Takes the folder, and writes config.json or compares with the one that is there.

        Args:
          about: as `about_run` gives it.
          allow_change: keys ("steps", "optim/peak_rate" or "optim.peak_rate") or groups of keys that may differ from
            what the run was begun with. Such a change is noted in config.json.
          provenance: is written into the folder, in the place of what an earlier part of the run has left.

        Raises:
          ValueError: for a folder of another run or of something else, naming what differs, or an unknown key.
          BlockingIOError: while another process has the folder.
          OSError: for a folder that can't be written to.
        """
        self.folder = folder
        allowed = tuple(name.replace(".", "/").replace("-", "_") for name in allow_change)
        for name, given in zip(allowed, allow_change, strict=True):
            known = [*flat(about), *about]
            if not any(is_free(key, (name,)) for key in known):
                near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.3))
                raise ValueError(
                    f"allow_change={given!r}: is not a key of this configuration; the nearest are: {near}."
                )
        self._lock = locked(folder)
        try:
            self.may_differ = self._compare(about, allowed)
            if provenance is not None:
                provenance.write(folder)
        except BaseException:
            self.release()
            raise

    def _compare(self, about: dict[str, Any], allowed: tuple[str, ...]) -> tuple[str, ...]:
        path = self.folder / "config.json"
        if not path.exists():
            if (self.folder / "metrics.jsonl").exists() or (self.folder / "checkpoints").exists():
                raise ValueError(
                    f"{self.folder} holds parts of a run, but no config.json: give this run its own folder."
                )
            replace_file(path, json.dumps(about, indent=2).encode())
            return MAY_DIFFER
        stored = _read(path)
        changes = stored.pop("changes", [])
        check_same(stored, about, str(self.folder), (*MAY_DIFFER, *allowed))
        new = differences(stored, about, MAY_DIFFER)
        if new:
            changes = [*changes, {"allowed": list(allowed), "differences": new}]
            replace_file(path, json.dumps({**about, "changes": changes}, indent=2).encode())
        return (*MAY_DIFFER, *(name for change in changes for name in change["allowed"]))

    def release(self) -> None:
        """Lets another process have the folder."""
        self._lock.close()


def locked(folder: Path, wait: bool = False) -> IO[bytes]:
    """A lock on a folder, until it is closed or the process ends, however it ends.

    Args:
      wait: until another process has let go of it.

    Raises:
      BlockingIOError: while another process has it, unless it is waited for.
      OSError: for a folder that can't be written to.
    """
    # The kernel drops such a lock with the process that holds it, whatever ends it: no stale lock is ever in the way.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+b")  # noqa: SIM115
    except OSError as error:
        raise type(error)(error.errno, f"this run can't write to its folder ({error.strerror})", str(folder)) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read(200).decode(errors="replace").strip() or "another process"
        file.close()
        raise BlockingIOError(
            error.errno, f"{holder} is training in this folder: wait for it, or give this run another", str(folder)
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    file.flush()
    return file
