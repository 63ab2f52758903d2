"""Documents to a corpus on disk: split by their hash, exact duplicates removed, all of it or nothing written."""

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bltjax.data.corpus import FORMAT, SPLITS, Corpus, fingerprint
from bltjax.data.sources import Document

__all__ = ["Corpus", "prepare"]

_PARTS = 10_000  # a document's hash puts it into one of so many parts; a hundredth of a percent each


def split_rule(heldout_percent: float) -> dict[str, Any]:
    """How documents are split, as a manifest has it.

    Raises:
      ValueError: for a share other than 0 and 0.01 .. 50.
    """
    if not (heldout_percent == 0 or 100 / _PARTS <= heldout_percent <= 50):
        raise ValueError(f"heldout_percent={heldout_percent}: must be 0, or lie in 0.01 .. 50.")
    parts = round(heldout_percent * _PARTS / 100)
    return {
        "heldout_percent": parts / (_PARTS / 100),
        "split": f"first 8 bytes of the SHA-256 of a document, big-endian, mod {_PARTS}; below {parts}: held out",
        "duplicates": "of the bytes of an earlier document: left out",
    }


def is_heldout(digest: bytes, heldout_percent: float) -> bool:
    """Whether the document with this SHA-256 is held out."""
    return int.from_bytes(digest[:8], "big") % _PARTS < round(heldout_percent * _PARTS / 100)


@dataclasses.dataclass
class Counts:
    """What was read, and what of it is left out; the keys are those of a manifest."""

    documents: int = 0
    bytes: int = 0
    empty: int = 0
    duplicates: int = 0
    duplicate_bytes: int = 0

    def keep(self, document: Document, repeated: bool) -> bool:
        """Counts a document; whether it is stored.

        Args:
          repeated: whether its bytes have come before.
        """
        size = len(document.data)
        self.documents += 1
        self.bytes += size
        if not size:
            self.empty += 1
        elif repeated:
            self.duplicates += 1
            self.duplicate_bytes += size
        return bool(size) and not repeated

    def add(self, other: "Counts") -> None:
        """Adds what was read elsewhere."""
        for name, count in dataclasses.asdict(other).items():
            setattr(self, name, getattr(self, name) + count)


def prepare(
    documents: Iterable[Document],
    folder: str | os.PathLike[str],
    heldout_percent: float = 2.0,
    overwrite: bool = False,
) -> Corpus:
    """Writes a corpus: `folder` appears when it is complete, and an error or a kill leaves nothing in its place.

    A document is held out where the first 8 bytes of its SHA-256 (big-endian) modulo 10,000 are below 100 times
    `heldout_percent`: the split depends on a document's bytes alone, not on its name, its place or its neighbours.
    A document whose bytes have come before is left out, and so is one without bytes; the manifest counts both. The
    same documents give the same folder, byte for byte.

    Args:
      documents: in the order in which they are to be stored, such as `sources.read(...)`.
      folder: where to write; must not exist yet, or be empty.
      heldout_percent: share of documents held out, in steps of 0.01; 0: none are.
      overwrite: replace a corpus that stands there.

    Raises:
      FileExistsError: where `folder` is in use, unless it holds a corpus and `overwrite` is given.
      ValueError: for a `heldout_percent` outside 0 .. 50, no bytes at all, or a split without documents.
    """
    folder = Path(folder)
    rule = split_rule(heldout_percent)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "manifest.json").is_file():
            raise FileExistsError(f"{folder} exists and holds something else than a corpus: name another folder.")
        if not overwrite:
            raise FileExistsError(f"{folder} holds a corpus already: open it, name another folder, or overwrite it.")
    with _partial_folder(folder, overwrite) as partial:
        counts = Counts()
        with contextlib.ExitStack() as stack:
            writers = {split: stack.enter_context(_SplitWriter(partial, split)) for split in SPLITS}
            seen: set[bytes] = set()
            for document in documents:
                digest = hashlib.sha256(document.data).digest()
                if counts.keep(document, digest in seen):
                    seen.add(digest)
                    held = is_heldout(digest, heldout_percent)
                    writers["heldout" if held else "train"].add(document, digest)
            if not seen:
                raise ValueError(
                    f"the corpus has no bytes: {counts.documents} documents were read, all of them empty."
                    if counts.documents
                    else "the corpus has no documents: name other files or folders."
                )
            for split in SPLITS if heldout_percent else ("train",):
                if not writers[split].lengths:
                    raise ValueError(
                        f"the {split} split is empty: none of {len(seen)} distinct documents ({counts.bytes} bytes "
                        f"read) fell into it at heldout_percent={heldout_percent:g}. Give more documents, cut long "
                        "ones into pieces (piece_bytes), or change heldout_percent (0: nothing held out)."
                    )
            splits = {split: writer.finish() for split, writer in writers.items()}
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint(rule, splits),
            "rule": rule,
            "read": dataclasses.asdict(counts),
            "origin": getattr(documents, "origin", {}),
            "splits": splits,
        }
        with open(partial / "manifest.json", "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=2)
            _settle(file)
    return Corpus.open(folder)


class _SplitWriter:
    """Writes the four files of a split as its documents come."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.lengths: list[int] = []
        self.digests = bytearray()

    def __enter__(self) -> "_SplitWriter":
        self.data = open(self.folder / f"{self.split}.bytes", "wb")
        self.names = open(self.folder / f"{self.split}.names.jsonl", "w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.data.close()
        self.names.close()

    def add(self, document: Document, digest: bytes) -> None:
        self.data.write(document.data)
        # ASCII with escapes: a file name may hold bytes that no encoding writes.
        self.names.write(json.dumps(document.name) + "\n")
        self.lengths.append(len(document.data))
        self.digests += digest

    def finish(self) -> dict[str, Any]:
        """Completes the files; what the manifest says of the split."""
        offsets = np.zeros(len(self.lengths) + 1, np.int64)
        np.cumsum(self.lengths, out=offsets[1:])
        for name, array in (
            ("offsets", offsets),
            ("digests", np.frombuffer(bytes(self.digests), np.uint8).reshape(-1, 32)),
        ):
            with open(self.folder / f"{self.split}.{name}.npy", "wb") as file:
                np.save(file, array)
                _settle(file)
        _settle(self.data)
        _settle(self.names)
        files = {}
        for name in ("bytes", "offsets.npy", "digests.npy", "names.jsonl"):
            path = self.folder / f"{self.split}.{name}"
            with open(path, "rb") as file:
                files[path.name] = {
                    "bytes": path.stat().st_size,
                    "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
                }
        return {
            "documents": len(self.lengths),
            "bytes": int(offsets[-1]),
            "shortest_bytes": min(self.lengths, default=0),
            "longest_bytes": max(self.lengths, default=0),
            "files": files,
        }


def _settle(file: Any) -> None:
    """Onto the disk, so that a rename never makes visible what a power cut could still take away."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _partial_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when all went well, and goes when anything went wrong."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.partial-"
    for left in folder.parent.glob(f"{glob.escape(prefix)}*"):
        _remove_abandoned(left)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        # Held while this process lives: that is how the next one tells a killed process's folder from a busy one's.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        partial.chmod(0o755)
        yield partial
        os.fsync(descriptor)
        if overwrite and folder.is_dir():
            old = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
            os.replace(folder, old)
            os.replace(partial, folder)
            shutil.rmtree(old)
        else:
            # Refused by the system where another process has put a corpus there meanwhile.
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # where it has not become the folder
        os.close(descriptor)


def _remove_abandoned(partial: Path) -> None:
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(partial)
    finally:
        os.close(descriptor)
