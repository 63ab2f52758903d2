"""Where a study keeps its runs: one folder a run with a manifest, and one table over all of them.

A run's folder is named by what it is: the hash of its configuration, its data and how it is scored. Its manifest is
written before the first step with status "running" and once more, complete, after the last, or failed, with the error
that ended it. One process at a time does a run: it holds the run's lock, which a dead process does not keep. No file is
ever seen half-written: each is written beside its place and moved there.
"""

import contextlib
import csv
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from bltjax.lock import Lock, holder

PACKAGES = ("bltjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")

Json = dict[str, Any]
State = Literal["waiting", "running", "interrupted", "failed", "complete"]


def digest(value: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Makes `path` by `write(temporary path)` and a move, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that a person can read; a number that is not finite is an error."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
      ValueError: if the file is not JSON, naming it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete it and start again.") from error


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def environment() -> Json:
    """What ran: git revision (and whether files differ from it), versions, device kind and count."""
    import jax

    devices = jax.devices()
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "git": _git(),
        "versions": versions,
        "device": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "command": sys.argv,
    }


def _git() -> Json:
    def ask(*arguments: str) -> str | None:
        folder = Path(__file__).resolve().parent
        try:
            answer = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip()

    revision = ask("rev-parse", "HEAD")
    changes = ask("status", "--porcelain", "--untracked-files=no") if revision else None
    return {"revision": revision, "dirty": None if changes is None else bool(changes)}


@dataclasses.dataclass(frozen=True)
class Run:
    """The folder of one run."""

    folder: Path

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    def manifest(self) -> Json | None:
        """The manifest, or None before the run began."""
        return read_json(self.manifest_path) if self.manifest_path.exists() else None

    @property
    def complete(self) -> bool:
        manifest = self.manifest()
        return manifest is not None and manifest["status"] == "complete"

    @property
    def state(self) -> State:
        """waiting: nobody began it; running: a live process does it; interrupted: its process ended without an end."""
        while True:
            held = self.holder is not None
            manifest = self.manifest()
            status = "waiting" if manifest is None else manifest["status"]
            if status != "complete" and held:
                return "running"
            if status != "running":
                return status
            if self.holder is None and self.manifest() == manifest:
                return "interrupted"

    @property
    def holder(self) -> str | None:
        """Which process does it now, in words; None: none does."""
        return holder(self.folder / "run.lock")

    def hold(self) -> Lock:
        """The sole right to do this run, until the block ends, or the process.

        Raises:
          Busy: while another process has it.
        """
        return Lock(self.folder / "run.lock", doing="is doing this run: leave it, or wait for it")

    def fail(self, identity: str, error: BaseException) -> None:
        """Writes that the run ended with an error, and which; what cannot be written, on a full disk, is left."""
        about = {"type": type(error).__name__, "message": str(error), "time": now()}
        manifest = self.manifest() or {"id": identity, "starts": []}
        with contextlib.suppress(OSError):
            write_json(self.manifest_path, {**manifest, "status": "failed", "error": about})

    def begin(self, planned: Mapping[str, Any], resumed_from: int | None = None) -> Json:
        """Writes what is known before the first step; a run that was begun before keeps its earlier starts.

        Args:
          planned: JSON values; "id" says which run it is.
          resumed_from: the step of the checkpoint that it goes on from; None: it begins anew.

        Raises:
          ValueError: if the folder holds a run of another id.
        """
        earlier = self.manifest()
        if earlier is not None and earlier["id"] != planned["id"]:
            raise ValueError(f"{self.folder} holds run {earlier['id']}, not {planned['id']}: choose another folder.")
        starts = [*(earlier["starts"] if earlier else []), {"time": now(), "resumed_from": resumed_from}]
        manifest = {**planned, "status": "running", "starts": starts, "environment": environment()}
        write_json(self.manifest_path, manifest)
        return manifest

    def finish(self, manifest: Mapping[str, Any], result: Mapping[str, Any]) -> Json:
        """Writes the manifest with its results and status "complete"."""
        complete = {**manifest, "status": "complete", "stop": now(), "result": dict(result)}
        write_json(self.manifest_path, complete)
        return complete


def write_table(rows: Iterable[Mapping[str, Any]], folder: Path, name: str = "table") -> tuple[Path, Path]:
    """Writes rows of equal keys as CSV and as Parquet; the same rows give the same bytes.

    Raises:
      ValueError: if there are no rows or their keys differ.
    """
    import pyarrow
    import pyarrow.parquet

    rows = [dict(row) for row in rows]
    if not rows:
        raise ValueError("rows=[]: a table needs at least one complete run.")
    columns = list(rows[0])
    for row in rows:
        if list(row) != columns:
            raise ValueError(f"rows: {sorted(set(row) ^ set(columns))} are not columns of every row.")
    comma_separated, parquet = folder / f"{name}.csv", folder / f"{name}.parquet"

    def write_csv(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    replace_file(comma_separated, write_csv)
    table = pyarrow.Table.from_pylist(rows)
    replace_file(parquet, lambda path: pyarrow.parquet.write_table(table, path))
    return comma_separated, parquet
