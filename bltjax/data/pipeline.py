"""Batches: training draws rows of a source in order, evaluation takes windows over documents.

Training batches are a pure function of the step number, so a run resumes from that number alone, on any number of
processes. Grain prepares them in threads ahead of their use.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, overload

import grain
import numpy as np
from jaxtyping import Int64

from bltjax.batch import Batch
from bltjax.config import RowsConfig
from bltjax.data.rows import Windows
from bltjax.data.views import BLTSource, ByteSource, Row, Source, StreamSource, TokenSource

__all__ = [
    "BLTSource",
    "ByteSource",
    "HeldoutBatches",
    "Source",
    "StreamSource",
    "TokenSource",
    "heldout_batches",
    "train_batches",
]

_AHEAD = 8  # batches that are prepared before they are asked for


def _stack(rows: Sequence[Row]) -> Batch:
    fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Batch(**fields)


def train_batches(
    source: Source, config: RowsConfig, first_step: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Training batches from `first_step` on, without end.

    Step s has the rows s * batch .. s * batch + batch - 1 of the order, whatever came before and however many
    processes share them; each process gets its part of them, in the order of processes.

    Args:
      config: as the source has it; `batch` and `seed` are taken from here.

    Raises:
      ValueError: for rows of another shape than the source's, a batch that does not divide among the processes, or a
        split that has less than one row or one batch.
    """
    if config.bytes != source.config.bytes or config.slots not in (None, source.config.slots):
        raise ValueError(
            f"rows.bytes={config.bytes}, rows.slots={config.slots}: the source was made with "
            f"{source.config.bytes} and {source.config.slots}; pass source.config."
        )
    if first_step < 0:
        raise ValueError(f"first_step={first_step}: must not be negative.")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}: must lie in 0 .. process_count - 1, {process_count - 1}.")
    if config.batch % process_count:
        raise ValueError(f"rows.batch={config.batch}: must be a multiple of the {process_count} processes.")
    split = f"{source.documents.total_bytes} bytes in {len(source.documents)} documents"
    if source.documents.total_bytes + 2 * len(source.documents) - 1 < config.bytes:
        raise ValueError(f"the corpus has {split}, less than one row of rows.bytes={config.bytes}: shorten the rows.")
    if len(source.rows) < config.batch:
        raise ValueError(
            f"the corpus has {split}: {len(source.rows)} rows of rows.bytes={config.bytes}, less than one batch of "
            f"rows.batch={config.batch}; take a smaller batch, shorter rows or more text."
        )
    order = source.order(config.seed)
    share = config.batch // process_count

    def batch(step: int) -> Batch:
        first = int(step) * config.batch + process_index * share
        return _stack([source.row(order.row(k)) for k in range(first, first + share)])

    steps = grain.MapDataset.range(first_step, sys.maxsize).map(batch)
    # One thread: rows are built by many small calls, in which two threads only wait for each other's lock (measured:
    # twice the bytes per second with one as with two). It works while the devices do.
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)))


class HeldoutBatches(Sequence[Batch]):
    """Evaluation batches, all of one shape, each built when it is asked for: `heldout_batches` makes them.

    Attributes:
      length: inputs of a row.
      slots: patches that a row needs at most (BLT); tokens or bytes that it has.
      bytes: raw bytes that are scored, each exactly once.
      documents: int64, numbers of the documents that are scored.
      row_documents: int64 [batches, rows], the document that each row of each batch belongs to; -1 for padding rows.
      description: what is scored and how, as JSON values for a manifest.
    """

    def __init__(
        self,
        source: StreamSource,
        found: Windows,
        shape: tuple[int, int],
        row_documents: Int64[np.ndarray, "batches rows"],
        part: slice,
        description: dict[str, Any],
    ) -> None:
        self._source, self._windows, self._part = source, found, part
        self.length, self.slots = shape
        self.row_documents = row_documents[:, part]
        self.documents = np.unique(found.documents)
        self.bytes = int(source.documents.lengths[self.documents].sum())
        self._rows = row_documents.shape[1]
        self.description = description

    def verify(self) -> None:
        """Compares every document that this process's rows lie in with its SHA-256, before anything is scored.

        Raises:
          ValueError: for the first that differs.
        """
        for document in np.unique(self.row_documents[self.row_documents >= 0]):
            self._source.documents[document]  # reading is comparing

    def __len__(self) -> int:
        return len(self.row_documents)

    @overload
    def __getitem__(self, i: int) -> Batch: ...

    @overload
    def __getitem__(self, i: slice) -> list[Batch]: ...

    def __getitem__(self, i: int | slice) -> Batch | list[Batch]:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        if not -len(self) <= i < len(self):
            raise IndexError(f"batch {i} of {len(self)}.")
        first = (i % len(self)) * self._rows
        return _stack([self._row(window) for window in range(first, first + self._rows)[self._part]])

    def _row(self, window: int) -> Row:
        if window < len(self._windows):
            begin, end, after = (
                int(values[window]) for values in (self._windows.begin, self._windows.end, self._windows.after)
            )
            return self._source.build(begin, end, after, self.length)
        empty = {name: np.zeros_like(value) for name, value in self._row(0).items()}
        empty["targets"][:] = -1
        if "starts" in empty:
            empty["starts"][:2] = True
        return empty


def heldout_batches(
    source: StreamSource,
    context_bytes: int,
    stride_bytes: int,
    batch: int,
    max_bytes: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> HeldoutBatches:
    """Batches that score every byte of every document exactly once, each document alone.

    The first window of a document has `context_bytes` positions, each later one ends `stride_bytes` further on, scores
    what is new, and sees at most `context_bytes` positions before its end. Positions are those of the byte stream for
    every family. Rows are as long, and have as many patches, as the windows need: nothing is cut. The last batch is
    filled up with rows that score nothing.

    Args:
      source: the held-out split (any split will do).
      batch: rows of a batch, over all processes; each process gets its part of them.
      max_bytes: scores only documents that have so many bytes together, chosen by `Documents.choose`; None: all.

    Raises:
      ValueError: for a split without documents, none that fits `max_bytes`, a stride outside 1 .. context_bytes or
        shorter than a token, or a batch that does not divide among the processes.
      TypeError: for a mixture, whose sources are scored one by one.
    """
    if not isinstance(source, StreamSource):
        raise TypeError(f"source: is a {type(source).__name__}, which is no StreamSource; score each of its sources.")
    if batch < 1 or batch % process_count:
        raise ValueError(f"batch={batch}: must be a positive multiple of the {process_count} processes.")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}: must lie in 0 .. process_count - 1, {process_count - 1}.")
    if not len(source.documents):
        raise ValueError("there are no held-out documents: prepare the corpus with heldout_percent above 0.")
    found = source.windows(context_bytes, stride_bytes, source.documents.choose(max_bytes))
    row_documents = np.full(-(-len(found) // batch) * batch, -1, np.int64)
    row_documents[: len(found)] = found.documents
    share = batch // process_count
    batches = HeldoutBatches(
        source,
        found,
        source.window_shape(found, context_bytes),
        row_documents.reshape(-1, batch),
        slice(process_index * share, (process_index + 1) * share),
        {"context_bytes": context_bytes, "stride_bytes": stride_bytes, "max_bytes": max_bytes, "windows": len(found)},
    )
    batches.description |= {
        "documents": len(batches.documents),
        "all_documents": len(source.documents),
        "bytes": batches.bytes,
        "all_bytes": source.documents.total_bytes,
    }
    return batches
