"""A corpus on disk: two splits of documents, memory-mapped, and the manifest that says what they are.

    manifest.json          sizes, SHA-256 of every file, split rule, what was left out, fingerprint
    train.bytes            the documents' bytes, one after the other
    train.offsets.npy      int64 [documents + 1], where each one begins and, last, where the split ends
    train.digests.npy      uint8 [documents, 32], SHA-256 of each document
    train.names.jsonl      the name of each document, a JSON string a line
    heldout.*              the same for the held-out split

What is derived from a split lies beside it: its entropies (`stream`), its tokens (`rows`).
"""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8

FORMAT = 1  # of the folder; raised when an older program could no longer read it
SPLITS = ("train", "heldout")

Split = Literal["train", "heldout"]


class Documents:
    """The documents of a split: raw bytes, in stored order.

    `len(documents)`, `documents[i]` (uint8, a view) and iteration; `Documents.of` makes them in memory.

    Attributes:
      data: uint8, the bytes of all documents one after the other.
      offsets: int64 [documents + 1], where each begins, and where the last one ends.
      folder: of the corpus they belong to; None in memory.
      split: which one of it; None in memory.
    """

    def __init__(
        self,
        data: UInt8[np.ndarray, "bytes"],
        offsets: Int64[np.ndarray, "boundaries"],
        folder: Path | None = None,
        split: Split | None = None,
    ) -> None:
        self.data = data
        self.offsets = offsets
        self.folder = folder
        self.split: Split | None = split

    @classmethod
    def of(cls, documents: Sequence[bytes]) -> "Documents":
        """Documents in memory, from their bytes.

        Raises:
          ValueError: for an empty document, which a corpus never holds.
        """
        for i, document in enumerate(documents):
            if not document:
                raise ValueError(f"documents[{i}] is empty: a document has at least one byte.")
        offsets = np.zeros(len(documents) + 1, np.int64)
        np.cumsum([len(document) for document in documents], out=offsets[1:])
        return cls(np.frombuffer(b"".join(documents), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int | np.integer) -> UInt8[np.ndarray, "bytes"]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}.")
        i %= len(self)
        return self.data[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "bytes"]]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> Int64[np.ndarray, "documents"]:
        """Bytes of each document."""
        return np.diff(self.offsets)

    @property
    def total_bytes(self) -> int:
        return int(self.offsets[-1])

    @functools.cached_property
    def names(self) -> list[str]:
        """What each document was called where it came from; numbers in memory."""
        if self.folder is None:
            return [str(i) for i in range(len(self))]
        return [json.loads(line) for line in (self.folder / f"{self.split}.names.jsonl").read_bytes().splitlines()]

    @functools.cached_property
    def digests(self) -> UInt8[np.ndarray, "documents 32"]:
        """SHA-256 of each document."""
        if self.folder is None:
            digests = b"".join(hashlib.sha256(document.tobytes()).digest() for document in self)
            return np.frombuffer(digests, np.uint8).reshape(len(self), 32)
        return np.load(self.folder / f"{self.split}.digests.npy")

    def choose(self, max_bytes: int | None) -> Int64[np.ndarray, "chosen"]:
        """Numbers, ascending, of documents that have at most `max_bytes` bytes together; None: all of them.

        Documents are taken whole, in the order of their SHA-256, each that still fits: so the choice depends on the
        documents and the budget alone, and the budget is never exceeded. A document longer than it is never chosen.

        Raises:
          ValueError: where not one document fits.
        """
        if max_bytes is None:
            return np.arange(len(self))
        lengths = self.lengths
        chosen, left = [], max_bytes
        for i in np.lexsort(self.digests.T[::-1]):
            if lengths[i] <= left:
                chosen.append(i)
                left -= int(lengths[i])
        if not chosen:
            shortest = f"the shortest of {len(self)} documents has {lengths.min() if len(self) else 0} bytes"
            raise ValueError(f"max_bytes={max_bytes}: {shortest}; allow at least that.")
        return np.sort(np.array(chosen, np.int64))


class Corpus:
    """A prepared corpus, opened for reading. `prepare` in `write` makes one.

    Attributes:
      folder: where it lies.
      manifest: what `manifest.json` says.
      fingerprint: 16 hexadecimal digits that stand for the contents of both splits and the rule that split them.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.fingerprint: str = manifest["fingerprint"]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Corpus":
        """Opens a folder that `prepare` wrote.

        Raises:
          FileNotFoundError: where there is no corpus.
          ValueError: for a manifest of another format, or files whose sizes are not those of the manifest.
        """
        folder = Path(folder)
        path = folder / "manifest.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no corpus (no manifest.json): prepare one there first.")
        try:
            manifest = json.loads(path.read_bytes())
            version = manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the manifest of a corpus ({error!r}): prepare the corpus anew.") from error
        if version != FORMAT:
            raise ValueError(f"{path} has format {version!r}, this program reads {FORMAT}: prepare the corpus anew.")
        for split in manifest["splits"].values():
            for name, file in split["files"].items():
                size = (folder / name).stat().st_size if (folder / name).is_file() else None
                if size != file["bytes"]:
                    found = "is missing" if size is None else f"has {size} bytes"
                    raise ValueError(
                        f"{folder / name} {found}, the manifest says {file['bytes']}: copy or prepare the corpus anew."
                    )
        return cls(folder, manifest)

    def documents(self, split: Split) -> Documents:
        """The documents of a split, memory-mapped.

        Raises:
          ValueError: for a name other than "train" and "heldout".
        """
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: choose one of {', '.join(map(repr, SPLITS))}.")
        offsets = np.load(self.folder / f"{split}.offsets.npy")
        path = self.folder / f"{split}.bytes"
        # A file without bytes cannot be mapped.
        data = np.memmap(path, np.uint8, "r") if offsets[-1] else np.zeros(0, np.uint8)
        return Documents(data, offsets, self.folder, split)

    def verify(self) -> None:
        """Reads every file and compares its SHA-256 with the manifest.

        Raises:
          ValueError: for the first file that differs.
        """
        for split in self.manifest["splits"].values():
            for name, file in split["files"].items():
                with open(self.folder / name, "rb") as stored:
                    found = hashlib.file_digest(stored, "sha256").hexdigest()
                if found != file["sha256"]:
                    raise ValueError(
                        f"{self.folder / name} has SHA-256 {found}, the manifest says {file['sha256']}: "
                        "copy or prepare the corpus anew."
                    )


def fingerprint(rule: dict[str, Any], splits: dict[str, Any]) -> str:
    """16 hexadecimal digits of the SHA-256 of a corpus: its split rule, its bytes and where its documents begin."""
    contents = {
        name: [split["files"][f"{name}.{part}"]["sha256"] for part in ("bytes", "offsets.npy")]
        for name, split in splits.items()
    }
    canonical = json.dumps([FORMAT, rule, contents], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A file opened for writing that takes the place of `path` when it is complete."""
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
