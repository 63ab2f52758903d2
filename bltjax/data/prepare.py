"""A corpus in shards: slices of input to a folder of format 2, in parallel, resumable, always the same bytes.

    plan        the input files are divided into slices (see `slices`); -> work/plan.json
    pass 1      each slice is read; -> work/digests-S.bin, the SHA-256 of each of its documents, by bucket
    duplicates  for each bucket of hashes, over all slices: every document whose bytes a document of an earlier slice,
                or an earlier one of its own, has; -> work/duplicates-B.bin, by slice
    pass 2      each slice is read again; its documents that are neither empty nor duplicates go to the shards of the
                split that their hash says; a shard that would exceed `shard_bytes` is closed and the next one begun.
                -> train-S-N.*, heldout-S-N.* (see `shards`), and last work/slice-S.json, which describes them
    finish      -> manifest.json; work/ is removed

Each step but the first and last is a set of tasks, each a pure function of the plan, of files that are complete, and
of its number. It leaves its result in one file, written whole or not at all, after everything that the file stands
for; where that file lies there already, the task is done. So it does not matter who runs a task, in which order, how
often, or what was killed in between: a process pool here, a Beam pipeline on many machines (`beam`), another go after
a power cut; the folder comes out the same, byte for byte, and without a manifest it is not a corpus. Memory: a task
holds one slice or one bucket, the finish one entry for each shard.

The plan keeps the sizes and times of the input files, so a preparation that goes on with other input is refused.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bltjax.data import formats, shards, sources
from bltjax.data.corpus import SHARDED, SPLITS
from bltjax.data.formats import Document, Part
from bltjax.data.slices import Given, make_plan
from bltjax.data.store import Store
from bltjax.data.write import Counts, is_heldout, split_rule

_DIGEST = np.dtype([("sha256", "u1", (32,)), ("document", "<i8")])


class Job:
    """A preparation: its plan and where it writes. Can be pickled.

    Attributes:
      store: the folder of the corpus.
      plan: JSON values; equal plans give equal folders.
    """

    def __init__(self, store: Store, plan: dict[str, Any]) -> None:
        self.store, self.plan = store, plan

    @classmethod
    def open(cls, store: Store) -> "Job":
        """A preparation that was begun."""
        return cls(store, json.loads(store.read("work/plan.json")))

    @property
    def slices(self) -> range:
        """Numbers of the slices."""
        return range(len(self.plan["slices"]))

    @property
    def buckets(self) -> range:
        """Numbers of the buckets of hashes."""
        return range(self.plan["buckets"])

    def documents(self, number: int) -> Iterator[Document]:
        """The documents of a slice."""
        found: Iterable[Document] = (
            document for part in self.plan["slices"][number]["parts"] for document in formats.read(Part(*part))
        )
        piece_bytes = self.plan["piece_bytes"]
        yield from found if piece_bytes is None else sources.pieces(found, piece_bytes)

    def hash_slice(self, number: int) -> None:
        """Pass 1 of a slice."""
        name = f"work/digests-{number:05d}.bin"
        if self.store.size(name) is not None:
            return
        digests, everything, count = bytearray(), hashlib.sha256(), 0
        kept = []
        for count, document in enumerate(self.documents(number), 1):
            digest = hashlib.sha256(document.data).digest()
            everything.update(digest)
            if document.data:
                digests += digest
                kept.append(count - 1)
        records = np.zeros(len(kept), _DIGEST)
        records["sha256"] = np.frombuffer(bytes(digests), np.uint8).reshape(-1, 32)
        records["document"] = kept
        heads = records["sha256"][:, :4].astype(np.int64) @ (256 ** np.arange(3, -1, -1))
        buckets = heads * len(self.buckets) >> 32
        bounds = np.searchsorted(np.sort(buckets), np.arange(len(self.buckets) + 1)).astype("<i8")
        ordered = records[np.argsort(buckets, kind="stable")]
        self.store.write(name, bounds.tobytes() + everything.digest() + ordered.tobytes())

    def find_duplicates(self, bucket: int) -> None:
        """Which documents of all slices, of those whose hash lies in a bucket, repeat an earlier one."""
        name = f"work/duplicates-{bucket:05d}.bin"
        if self.store.size(name) is not None:
            return
        found, owners = [np.zeros(0, _DIGEST)], [np.zeros(0, np.int64)]
        first_record = 8 * (len(self.buckets) + 1) + 32
        for number in self.slices:
            digests = f"work/digests-{number:05d}.bin"
            begin, end = np.frombuffer(self.store.read(digests, 8 * bucket, 8 * bucket + 16), "<i8")
            places = (first_record + int(bound) * _DIGEST.itemsize for bound in (begin, end))
            found.append(np.frombuffer(self.store.read(digests, *places), _DIGEST))
            owners.append(np.full(len(found[-1]), number))
        records, owner = np.concatenate(found), np.concatenate(owners)
        words = np.ascontiguousarray(records["sha256"]).view(">u8").reshape(-1, 4)
        # Stable, and slices come in order: of equal hashes the earliest document is first, and stays.
        order = np.lexsort(words.T[::-1])
        repeated = order[1:][(words[order[1:]] == words[order[:-1]]).all(axis=1)]
        repeated = np.sort(repeated)
        bounds = np.searchsorted(owner[repeated], np.arange(len(self.slices) + 1)).astype("<i8")
        self.store.write(name, bounds.tobytes() + records["document"][repeated].tobytes())

    def _duplicates_of(self, number: int) -> set[int]:
        found: set[int] = set()
        for bucket in self.buckets:
            name = f"work/duplicates-{bucket:05d}.bin"
            begin, end = np.frombuffer(self.store.read(name, 8 * number, 8 * number + 16), "<i8")
            places = (8 * (len(self.slices) + 1 + int(bound)) for bound in (begin, end))
            found.update(np.frombuffer(self.store.read(name, *places), "<i8").tolist())
        return found

    def write_slice(self, number: int) -> None:
        """Pass 2 of a slice.

        Raises:
          ValueError: where its input is not what pass 1 read.
        """
        if self.store.size(f"work/slice-{number:05d}.json") is not None:
            return
        duplicates, everything = self._duplicates_of(number), hashlib.sha256()
        counts = Counts()
        with tempfile.TemporaryDirectory(dir=self.store.scratch) as scratch:
            writers = {split: _Writer(self, split, number, Path(scratch)) for split in SPLITS}
            for place, document in enumerate(self.documents(number)):
                digest = hashlib.sha256(document.data).digest()
                everything.update(digest)
                if counts.keep(document, place in duplicates):
                    held = is_heldout(digest, self.plan["heldout_percent"])
                    writers["heldout" if held else "train"].add(document)
            header = 8 * (len(self.buckets) + 1)
            if everything.digest() != self.store.read(f"work/digests-{number:05d}.bin", header, header + 32):
                files = ", ".join(part[0] for part in self.plan["slices"][number]["parts"][:3])
                raise ValueError(f"{files}: changed while the corpus was prepared; remove {self.store.folder}/work.")
            written = {split: writer.finish() for split, writer in writers.items()}
        about = {"source": self.plan["slices"][number]["source"], "read": dataclasses.asdict(counts), "shards": written}
        self.store.write(f"work/slice-{number:05d}.json", json.dumps(about).encode())

    def finish(self) -> dict[str, Any]:
        """Writes the manifest of a corpus whose tasks are all done, and removes what they left; the manifest.

        Raises:
          ValueError: for no bytes at all, or a split without documents.
        """
        read = Counts()
        by_source = {
            name: {**about, **{split: {"documents": 0, "bytes": 0} for split in SPLITS}}
            for name, about in self.plan["sources"].items()
        }
        splits: dict[str, dict[str, Any]] = {split: {"documents": 0, "bytes": 0, "shards": []} for split in SPLITS}
        for number in self.slices:
            about = json.loads(self.store.read(f"work/slice-{number:05d}.json"))
            read.add(Counts(**about["read"]))
            for split, written in about["shards"].items():
                into, of_source = splits[split], by_source[about["source"]][split]
                for shard in written:
                    places = {"first_document": into["documents"], "first_byte": into["bytes"]}
                    into["shards"].append({**shard, **places, "source": about["source"]})
                    for total in (into, of_source):
                        total["documents"] += shard["documents"]
                        total["bytes"] += shard["bytes"]
        if not any(split["documents"] for split in splits.values()):
            raise ValueError(f"the corpus has no bytes: {read.documents} documents were read, all of them empty.")
        for name in SPLITS if self.plan["heldout_percent"] else ("train",):
            if not splits[name]["documents"]:
                raise ValueError(
                    f"the {name} split is empty: no document fell into it at heldout_percent="
                    f"{self.plan['heldout_percent']:g}. Give more documents, cut long ones into pieces (piece_bytes), "
                    f"or change heldout_percent (0: nothing held out); and remove {self.store.folder}/work."
                )
        for split in splits.values():
            listed = split["shards"]
            split["shortest_bytes"] = min((shard["shortest_bytes"] for shard in listed), default=0)
            split["longest_bytes"] = max((shard["longest_bytes"] for shard in listed), default=0)
            # Where format 1 has them, so that whoever checks files need not know of shards.
            split["files"] = {name: file for shard in listed for name, file in shard.pop("files").items()}
        rule = split_rule(self.plan["heldout_percent"])
        contents = [[name, file["sha256"]] for split in splits.values() for name, file in split["files"].items()
                    if not name.endswith(".names.jsonl")]  # fmt: skip
        canonical = json.dumps([SHARDED, rule, contents], sort_keys=True, separators=(",", ":"))
        manifest = {
            "format": SHARDED,
            "fingerprint": hashlib.sha256(canonical.encode()).hexdigest()[:16],
            "rule": rule,
            "read": dataclasses.asdict(read),
            "origin": self.plan["origin"],
            "plan": _hash_of(self.plan),
            "sources": by_source,
            "splits": splits,
        }
        self.store.write("manifest.json", json.dumps(manifest, indent=2).encode())
        self.store.remove("work")
        return manifest


class _Writer:
    """Collects the documents of a slice that belong to a split, and writes a shard whenever there are enough."""

    def __init__(self, job: Job, split: str, number: int, scratch: Path) -> None:
        self._job, self._prefix, self._scratch = job, f"{split}-{number:05d}", scratch
        self._held: list[tuple[str, bytes]] = []
        self._bytes = 0
        self._written: list[dict[str, Any]] = []

    def add(self, document: Document) -> None:
        if self._held and self._bytes + len(document.data) > self._job.plan["shard_bytes"]:
            self._flush()
        self._held.append((document.name, document.data))
        self._bytes += len(document.data)

    def _flush(self) -> None:
        about = shards.write(self._scratch, f"{self._prefix}-{len(self._written):03d}", self._held)
        for name in about["files"]:
            self._job.store.take(self._scratch / name, name)
        self._written.append(about)
        self._held, self._bytes = [], 0

    def finish(self) -> list[dict[str, Any]]:
        """Writes what is left; what the manifest says of the shards."""
        if self._held:
            self._flush()
        return self._written


def _hash_of(plan: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]


def begin(store: Store, plan: dict[str, Any], overwrite: bool = False) -> Job | None:
    """The preparation of a plan, begun or gone on with; None where its corpus is complete.

    Raises:
      FileExistsError: where the folder holds something else, or another corpus and `overwrite` is not given.
      ValueError: where a preparation with another plan was begun there.
    """
    names = store.names()
    if "manifest.json" in names and store.size("work/clearing") is None:
        if store.manifest().get("plan") == _hash_of(plan):
            store.remove("work")
            return None
        if not overwrite:
            raise FileExistsError(
                f"{store.folder} holds a corpus already: open it, name another folder, or overwrite it."
            )
        store.write("work/clearing", b"")
    if store.size("work/clearing") is not None:
        for name in names:
            if name != "work":
                store.remove(name)
        store.remove("work")
    elif names and "work" not in names:
        raise FileExistsError(f"{store.folder} exists and holds something else than a corpus: name another folder.")
    plan = json.loads(json.dumps(plan))
    stored = json.loads(store.read("work/plan.json")) if store.size("work/plan.json") is not None else plan
    if stored != plan:
        different = ", ".join(key for key in plan if plan[key] != stored.get(key))
        raise ValueError(
            f"{store.folder}/work: another preparation was begun here, which differs in {different}. Go on with the "
            "same arguments and unchanged input, or remove that folder to begin anew."
        )
    store.write("work/plan.json", json.dumps(plan).encode())
    return Job(store, plan)


STAGES = ((Job.hash_slice, "slices"), (Job.find_duplicates, "buckets"), (Job.write_slice, "slices"))


def _work(job: Job, stage: int, number: int) -> None:
    STAGES[stage][0](job, number)


def prepare_shards(
    given: Sequence[Given],
    folder: str | os.PathLike[str],
    workers: int = 1,
    overwrite: bool = False,
    show: Callable[[str, int, int], None] | None = None,
    **plan: Any,
) -> dict[str, Any]:
    """Prepares a corpus on this machine; run again after a kill, it goes on; when all is done, it does nothing.

    Args:
      given: the input.
      folder: a path, or a URL that fsspec knows.
      workers: processes.
      overwrite: replace another corpus that stands there.
      show: is told the stage, and how many of its tasks are done, of how many.
      **plan: what `make_plan` takes.

    Returns:
      The manifest.

    Raises:
      As `make_plan`, `begin` and the tasks do; ChildProcessError where a worker was killed.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1.")
    store = Store(folder)
    job = begin(store, make_plan(given, **plan), overwrite)
    if job is None:
        return store.manifest()
    # Not forked: this process may have threads, of JAX among others.
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pool = None
        if workers > 1:
            pool = concurrent.futures.ProcessPoolExecutor(workers, context)
            stack.callback(pool.shutdown, cancel_futures=True)
        for stage, (method, kind) in enumerate(STAGES):
            numbers = getattr(job, kind)
            if pool is None:
                tasks: Iterable[Any] = (_work(job, stage, number) for number in numbers)
            else:
                futures = [pool.submit(_work, job, stage, number) for number in numbers]
                tasks = (future.result() for future in concurrent.futures.as_completed(futures))
            try:
                for done, _ in enumerate(tasks, 1):
                    if show is not None:
                        show(method.__name__, done, len(numbers))
            except concurrent.futures.BrokenExecutor as error:
                raise ChildProcessError(
                    f"a worker of {workers} was killed, perhaps for want of memory ({error}): run this again, with "
                    "fewer workers or smaller shard_bytes; what is done stays done."
                ) from error
    return job.finish()
