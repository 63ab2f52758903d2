"""One shard: some documents of one split and one source, in three files that are written once and never changed.

    train-00012-000.array_record   one record a document, its bytes as they are; ArrayRecord, group_size:1, uncompressed
    train-00012-000.index.npy      a row a document: its size in bytes and its SHA-256
    train-00012-000.names.jsonl    the name of each document, a JSON string a line

Who writes: `prepare`, one shard at a time, each from its own slice of the input; the name says which. Who reads: any
ArrayRecord reader (Grain's `ArrayRecordDataSource` among them), record by record; and `Shard`, which is what training
reads through. A row of training takes a few thousand bytes from anywhere in a document, and a record reader gives
documents whole. But records that are not compressed lie in the file as they are, where the sizes before them say:

    the file is blocks of 65,536 bytes, the first 24 of each a block header that interrupts whatever it falls into;
    what lies between those: 40 bytes of signature, then for each record a header of 40 bytes, two bytes (compression:
    none; size of the next number), the record's size as a varint, and the record.

So the sizes in the index place every byte of every document, the file is memory-mapped, and reading costs what copying
does. `write` reads back every shard that it has written, so a library that would write them otherwise is found out
before anything depends on it.

Position: documents of a shard are numbered in stored order, and byte b of the shard is the b-th byte of its documents
one after the other. `corpus.Documents` strings shards together: it finds the shard of a position by bisection.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

INDEX = np.dtype([("bytes", "<i8"), ("sha256", "u1", (32,))])
SUFFIXES = (".array_record", ".index.npy", ".names.jsonl")
_OPTIONS = "group_size:1,uncompressed"
_BLOCK, _BLOCK_HEADER, _HEADER = 65_536, 24, 40
_PAYLOAD = _BLOCK - _BLOCK_HEADER


class Shard:
    """The documents of a shard, memory-mapped: a piece of `corpus.Documents`.

    Attributes:
      path: of its ArrayRecord file.
      count: documents.
      size: bytes of all of them.
    """

    def __init__(self, folder: Path, name: str, about: tuple[int, int] | None = None) -> None:
        """
        Args:
          about: documents and bytes, as the manifest has them; None: what the index says.
        """
        self.path = folder / f"{name}.array_record"
        self._folder, self._name = folder, name
        self._state = _state(self.path)
        sizes = self._index["bytes"] if about is None else ()
        self.count, self.size = (len(sizes), int(np.sum(sizes))) if about is None else about
        self._placed: tuple[np.ndarray, np.ndarray, int] | None = None

    @property
    def _index(self) -> np.ndarray:
        path = self._folder / f"{self._name}.index.npy"
        return _mapped(path, _state(path))

    def found(self) -> tuple[Int64[np.ndarray, "boundaries"], Int64[np.ndarray, "documents"]]:
        """Where each document begins among the shard's bytes, and last their number; and where its record begins."""
        sizes = self._index["bytes"].astype(np.int64)
        offsets = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        return offsets, record_begins(sizes)

    @property
    def offsets(self) -> Int64[np.ndarray, "boundaries"]:
        """Where each document begins among the shard's bytes and, last, their number."""
        offsets, _, base = self._places()
        return offsets - base

    def place(
        self, offsets: Int64[np.ndarray, "boundaries"], begins: Int64[np.ndarray, "documents"], base: int
    ) -> None:
        """Gives `found` as parts of longer arrays, so that the shard holds none of its own.

        Args:
          offsets: counted from another byte than the shard's first.
          base: that of the shard's first byte.
        """
        self._placed = offsets, begins, base

    def _places(self) -> tuple[np.ndarray, np.ndarray, int]:
        if self._placed is None:
            self._placed = (*self.found(), 0)
        return self._placed

    @property
    def digests(self) -> UInt8[np.ndarray, "documents 32"]:
        """SHA-256 of each document."""
        return self._index["sha256"]

    @functools.cached_property
    def names(self) -> list[str]:
        """What each document was called where it came from."""
        lines = (self._folder / f"{self._name}.names.jsonl").read_bytes().splitlines()
        return [json.loads(line) for line in lines]

    def read(self, start: int, stop: int) -> UInt8[np.ndarray, "bytes"]:
        """The bytes at positions start .. stop - 1 of the shard; a view where they lie together."""
        if start == stop:
            return np.zeros(0, np.uint8)
        offsets, begins, base = self._places()
        document = int(np.searchsorted(offsets, start + base, "right")) - 1
        parts, stored = [], _mapped(self.path, self._state)
        while start < stop:
            begin, end = int(offsets[document]) - base, min(int(offsets[document + 1]) - base, stop)
            at = int(begins[document]) + start - begin
            last = at + end - start
            while at < last:
                block = at // _PAYLOAD
                upto = min(last, (block + 1) * _PAYLOAD)
                shift = (block + 1) * _BLOCK_HEADER
                parts.append(stored[at + shift : upto + shift])
                at = upto
            start, document = end, document + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=512)
def _mapped(path: Path, state: tuple[int, int, int]) -> np.ndarray:
    """A file in memory, mapped. So many at most are kept, since each takes a file descriptor of the process."""
    mapped = np.load(path, mmap_mode="r") if path.suffix == ".npy" else np.memmap(path, np.uint8, "r")
    return np.asarray(mapped)  # slicing a memmap costs several times as much as slicing an array


def record_begins(sizes: Int64[np.ndarray, "documents"]) -> Int64[np.ndarray, "documents"]:
    """Where each record of an ArrayRecord file begins, counted without block headers, from the records' sizes."""
    varint = np.ones(len(sizes), np.int64)
    for bits in range(7, 63, 7):
        varint += sizes >= 1 << bits
    ends = np.cumsum(_HEADER + 2 + varint + sizes) + _HEADER
    return ends - sizes


def write(folder: Path, name: str, documents: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
    """Writes the files of a shard; the same documents give the same bytes.

    Args:
      folder: local; files of that name are replaced.
      documents: name and bytes of each; none is empty.

    Returns:
      What a manifest says of the shard: documents, bytes, shortest and longest, and size and SHA-256 of each file.

    Raises:
      RuntimeError: where the installed `array_record` lays records out in another way than this program reads them.
    """
    # Imported here: only writing needs the library.
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    paths = {suffix: folder / f"{name}{suffix}" for suffix in SUFFIXES}
    writer = array_record_module.ArrayRecordWriter(str(paths[".array_record"]), _OPTIONS)
    for _, data in documents:
        writer.write(data)
    writer.close()
    index = np.zeros(len(documents), INDEX)
    index["bytes"] = [len(data) for _, data in documents]
    digests = b"".join(hashlib.sha256(data).digest() for _, data in documents)
    index["sha256"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
    np.save(paths[".index.npy"], index)
    # ASCII with escapes: a file name may hold bytes that no encoding writes.
    paths[".names.jsonl"].write_text("".join(json.dumps(document) + "\n" for document, _ in documents), "utf-8")
    written = Shard(folder, name)
    total = int(written.offsets[-1])
    if written.path.stat().st_size < total or written.read(0, total).tobytes() != b"".join(d for _, d in documents):
        raise RuntimeError(
            f"{written.path}: this release of array_record lays records out in another way than bltjax reads them; "
            "install the release that pyproject.toml names."
        )
    sizes = index["bytes"]
    return {
        "name": name,
        "documents": len(documents),
        "bytes": total,
        "shortest_bytes": int(sizes.min()),
        "longest_bytes": int(sizes.max()),
        "files": {path.name: about_file(path) for path in paths.values()},
    }


def about_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as manifests have them."""
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
