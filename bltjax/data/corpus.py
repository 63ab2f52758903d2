"""A corpus on disk: two splits of documents, memory-mapped, and the manifest that says what they are.

Format 1, for what one machine writes in one go (`write`):

    manifest.json          sizes, SHA-256 of every file, split rule, what was left out, fingerprint
    train.bytes            the documents' bytes, one after the other
    train.offsets.npy      int64 [documents + 1], where each one begins and, last, where the split ends
    train.digests.npy      uint8 [documents, 32], SHA-256 of each document
    train.names.jsonl      the name of each document, a JSON string a line
    heldout.*              the same for the held-out split

Format 2, for what is written in parallel (`prepare`): the same manifest, in which each split lists its shards with
where their documents and bytes begin, their source and its licence; and the files of the shards (`shards`).

What is derived from a split lies beside it: its entropies (`stream`), its tokens (`rows`).
"""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from bltjax.data.kept import kept
from bltjax.data.shards import Shard

FORMAT, SHARDED = 1, 2  # of the folder
SPLITS = ("train", "heldout")

Split = Literal["train", "heldout"]


class Whole:
    """All documents in one array: in memory, or a split of format 1. A piece of `Documents`, as `Shard` is."""

    def __init__(
        self, data: UInt8[np.ndarray, "bytes"], offsets: Int64[np.ndarray, "boundaries"], path: Path | None = None
    ) -> None:
        self.data, self.offsets, self.path = data, offsets, path
        self.count, self.size = len(offsets) - 1, int(offsets[-1])

    def read(self, start: int, stop: int) -> UInt8[np.ndarray, "bytes"]:
        return self.data[start:stop]

    @functools.cached_property
    def digests(self) -> UInt8[np.ndarray, "documents 32"]:
        if self.path is not None:
            return np.load(self.path.with_suffix(".digests.npy"), mmap_mode="r")
        bounds = itertools.pairwise(self.offsets)
        digests = b"".join(hashlib.sha256(self.data[begin:end].tobytes()).digest() for begin, end in bounds)
        return np.frombuffer(digests, np.uint8).reshape(-1, 32)

    @functools.cached_property
    def names(self) -> list[str]:
        if self.path is None:
            return [str(i) for i in range(len(self.offsets) - 1)]
        return [json.loads(line) for line in self.path.with_suffix(".names.jsonl").read_bytes().splitlines()]


class Documents:
    """The documents of a split: raw bytes, in stored order.

    `len(documents)`, `documents[i]` (uint8, a view where it can be) and iteration; `Documents.of` makes them in memory.
    Documents on disk are compared with their SHA-256 when they are first read, so that a file which was changed, or
    went bad, never reaches a model unnoticed.

    Attributes:
      pieces: the whole, or the shards, that they lie in, in order.
      folder: of the corpus they are a whole split of; None in memory, and for the documents of one source.
      split: which one of it; None likewise.
    """

    def __init__(
        self,
        pieces: Sequence[Whole | Shard],
        folder: Path | None = None,
        split: Split | None = None,
        place: Path | None = None,
    ) -> None:
        """
        Args:
          place: how the names of the files begin that keep arrays as long as these documents; None: none are kept.
        """
        self.pieces = pieces
        self.folder = folder
        self.split: Split | None = split
        self._place = place
        counts = [piece.count for piece in pieces]
        self._firsts = np.cumsum([0, *counts])  # document that each piece begins with
        self._begins = np.cumsum([0, *(piece.size for piece in pieces)])  # byte likewise
        self._sound = np.repeat([piece.path is None for piece in pieces], np.array(counts, np.int64))
        shards = [piece for piece in pieces if isinstance(piece, Shard)]
        if place is not None and shards:
            begins = self.keep("records", np.int64, len(self), lambda: (shard.found()[1] for shard in shards))
            for i, shard in enumerate(shards):
                first, last = (int(document) for document in self._firsts[i : i + 2])
                shard.place(self.offsets[first : last + 1], begins[first:last], int(self._begins[i]))

    @functools.cached_property
    def offsets(self) -> Int64[np.ndarray, "boundaries"]:
        """Where each document begins among the bytes of all of them and, last, their number."""
        if len(self.pieces) == 1 and isinstance(self.pieces[0], Whole):
            return self.pieces[0].offsets

        def parts() -> Iterator[Int64[np.ndarray, "part"]]:
            for piece, begin in zip(self.pieces, self._begins, strict=False):
                yield (piece.found()[0] if isinstance(piece, Shard) else piece.offsets)[:-1] + begin
            yield self._begins[-1:]

        return self.keep("offsets", np.int64, len(self) + 1, parts)

    def keep(
        self, name: str, dtype: Any, count: int | None, parts: Callable[[], Iterable[np.ndarray]]
    ) -> Shaped[np.ndarray, "elements"]:
        """An array as long as these documents, memory-mapped from beside them where it is large: see `kept.kept`.

        Args:
          name: tells it from the others of these documents.
        """
        return kept(self.file_of(name), dtype, count, parts)

    def file_of(self, name: str) -> Path | None:
        """Where `keep` keeps the array of that name; None where it can't."""
        return None if self._place is None else self._place.with_name(f"{self._place.name}.{name}.npy")

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
        return cls([Whole(np.frombuffer(b"".join(documents), np.uint8), offsets)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, i: int | np.integer) -> UInt8[np.ndarray, "bytes"]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}.")
        i %= len(self)
        return self.read(int(self.offsets[i]), int(self.offsets[i + 1]))

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "bytes"]]:
        return (self[i] for i in range(len(self)))

    def read(self, start: int, stop: int) -> UInt8[np.ndarray, "bytes"]:
        """The bytes at start .. stop - 1 of all documents one after the other; a view where they lie together.

        Raises:
          ValueError: for a document whose bytes are no longer those that were prepared.
        """
        if start < stop:
            first, last = np.searchsorted(self.offsets, (start, stop - 1), "right") - 1
            if not self._sound[first : last + 1].all():
                self._compare(int(first), int(last))
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> UInt8[np.ndarray, "bytes"]:
        if len(self.pieces) == 1:
            return self.pieces[0].read(start, stop)
        parts, place = [np.zeros(0, np.uint8)], int(np.searchsorted(self._begins, start, "right")) - 1
        while start < stop:
            begin, end = int(self._begins[place]), min(int(self._begins[place + 1]), stop)
            parts.append(self.pieces[place].read(start - begin, end - begin))
            start, place = end, place + 1
        return parts[-1] if len(parts) <= 2 else np.concatenate(parts)

    def _compare(self, first: int, last: int) -> None:
        for i in first + np.flatnonzero(~self._sound[first : last + 1]):
            place = int(np.searchsorted(self._firsts, i, "right")) - 1
            piece, own = self.pieces[place], int(i - self._firsts[place])
            data = self._read(int(self.offsets[i]), int(self.offsets[i + 1]))
            found = hashlib.sha256(data).digest()  # pyright: ignore[reportArgumentType]
            if found != piece.digests[own].tobytes():
                raise ValueError(
                    f"{piece.path}: document {own} ({piece.names[own]!r}) has SHA-256 {found.hex()}, "
                    f"{piece.digests[own].tobytes().hex()} was prepared. The file or its index was changed or is "
                    "damaged: copy it again from where it was prepared, or prepare the corpus anew."
                )
            self._sound[i] = True

    @property
    def lengths(self) -> Int64[np.ndarray, "documents"]:
        """Bytes of each document."""
        return np.diff(self.offsets)

    @property
    def total_bytes(self) -> int:
        return int(self._begins[-1])

    @functools.cached_property
    def names(self) -> list[str]:
        """What each document was called where it came from; numbers in memory."""
        return [name for piece in self.pieces for name in piece.names]

    @functools.cached_property
    def digests(self) -> UInt8[np.ndarray, "documents 32"]:
        """SHA-256 of each document."""
        return np.concatenate([np.zeros((0, 32), np.uint8), *(piece.digests for piece in self.pieces)])

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
    """A prepared corpus, opened for reading. `write.prepare` and `prepare.prepare_shards` make one.

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
        """Opens a local folder that holds a corpus.

        Raises:
          FileNotFoundError: where there is no corpus, or one that is not complete.
          ValueError: for a manifest of another format, or files whose sizes are not those of the manifest.
        """
        if "://" in os.fspath(folder):
            raise ValueError(f"{folder}: a corpus is read from a local folder; copy it there, or mount the bucket.")
        folder = Path(folder)
        path = folder / "manifest.json"
        if (folder / "work").is_dir() and not path.is_file():
            raise FileNotFoundError(f"{folder}: its preparation was not finished; run it again, and it goes on.")
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no corpus (no manifest.json): prepare one there first.")
        try:
            manifest = json.loads(path.read_bytes())
            version = manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the manifest of a corpus ({error!r}): prepare the corpus anew.") from error
        if version not in (FORMAT, SHARDED):
            raise ValueError(
                f"{path} has format {version!r}, this program reads {FORMAT} and {SHARDED}: prepare the corpus anew."
            )
        for split in manifest["splits"].values():
            for name, file in split["files"].items():
                size = (folder / name).stat().st_size if (folder / name).is_file() else None
                if size != file["bytes"]:
                    found = "is missing" if size is None else f"has {size} bytes"
                    raise ValueError(
                        f"{folder / name} {found}, the manifest says {file['bytes']}: copy or prepare the corpus anew."
                    )
        return cls(folder, manifest)

    def documents(self, split: Split, source: str | None = None) -> Documents:
        """The documents of a split, memory-mapped; with `source`, only those of that one, which lie together.

        Raises:
          ValueError: for a name other than "train" and "heldout", or a source that the manifest does not name.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: choose one of {', '.join(map(repr, SPLITS))}.")
        if source is not None and source not in self.manifest.get("sources", {}):
            known = ", ".join(map(repr, self.manifest.get("sources", {}))) or "none: it was written in one piece"
            raise ValueError(f"source={source!r}: the sources of {self.folder} are {known}.")
        if self.manifest["format"] == FORMAT:
            path = self.folder / f"{split}.bytes"
            offsets = np.asarray(np.load(path.with_suffix(".offsets.npy"), mmap_mode="r"))
            # A file without bytes cannot be mapped. As an array: slicing a memmap costs several times as much.
            data = np.asarray(np.memmap(path, np.uint8, "r")) if offsets[-1] else np.zeros(0, np.uint8)
            return Documents([Whole(data, offsets, path)], self.folder, split, self.folder / split)
        shards = self.manifest["splits"][split]["shards"]
        pieces = [
            Shard(self.folder, shard["name"], (shard["documents"], shard["bytes"]))
            for shard in shards
            if source in (None, shard["source"])
        ]
        if source is None:
            return Documents(pieces, self.folder, split, self.folder / split)
        # By a hash, since a source may have any name.
        return Documents(pieces, place=self.folder / f"{split}.{hashlib.sha256(source.encode()).hexdigest()[:16]}")

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
