"""A split as one family of models reads it: its stream, its training rows, its evaluation windows, a row built."""

import abc
import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from bltjax import vocabulary
from bltjax.config import RowsConfig
from bltjax.data.corpus import Documents
from bltjax.data.rows import (
    RowIndex,
    RowOrder,
    Windows,
    blt_rows,
    byte_rows,
    default_slots,
    stretches,
    token_rows,
    windows,
)
from bltjax.data.stream import ByteStream, TokenStream
from bltjax.data.tokenizer import Tokenizer

_CHUNK = 1 << 20  # documents that are looked at at once

Row = dict[str, Shaped[np.ndarray, "..."]]  # the fields of a Batch, for one row


class Source(abc.ABC):
    """What a model trains on: rows of one shape, and the order in which they are drawn.

    Attributes:
      documents: what the rows are made of.
      config: the shape of rows; `slots` is a number for BLT and tokens, measured where it was None.
      length: inputs of a row, padding included: the L of a Batch.
      slots: patches (BLT), tokens or bytes of a row.
      rows: where the rows begin.
    """

    def __init__(self, documents: Documents, config: RowsConfig) -> None:
        self.documents = documents
        self.config = config

    @property
    def length(self) -> int:
        return self.config.bytes

    @property
    def slots(self) -> int:
        return self.config.bytes if self.config.slots is None else self.config.slots

    @functools.cached_property
    @abc.abstractmethod
    def rows(self) -> RowIndex:
        """Where the training rows begin."""

    @property
    def mean_row_bytes(self) -> float:
        """Raw bytes that a training row has for targets, on average."""
        return self.documents.total_bytes / max(len(self.rows), 1)

    def order(self, seed: int) -> RowOrder:
        """The order in which training draws rows."""
        return RowOrder(self.rows, self.config.bytes, seed)

    @abc.abstractmethod
    def row(self, number: int) -> Row:
        """A training row, by its number in `rows`."""

    def parts(self) -> dict[str, Iterable[Shaped[np.ndarray, "..."]]]:
        """All that rows are made of, by name, each as arrays one after the other: what a run's data is known by."""
        return {"documents": (piece.digests for piece in self.documents.pieces), "rows": [self.rows.units]}


class StreamSource(Source):
    """A split as one family of models reads it: one stream, of which any stretch is a row; it can be scored too.

    Attributes:
      stream: of the documents' bytes.
    """

    dtype: type[np.signedinteger[Any]] = np.int16

    def __init__(self, documents: Documents, config: RowsConfig) -> None:
        super().__init__(documents, config)
        self.stream = ByteStream(documents)

    def row(self, number: int) -> Row:
        begin, end = (int(unit) for unit in self.rows.units[number : number + 2])
        return self.build(begin, end, begin, self.length)

    @abc.abstractmethod
    def build(self, begin: int, end: int, after: int, length: int) -> Row:
        """A row from positions of the family's own stream.

        Args:
          begin: the first input; `end - 1` is the last.
          end: the last target.
          after: targets behind this position are scored.
          length: inputs of the row, padding included.
        """

    @abc.abstractmethod
    def document_positions(self, document: int) -> tuple[int, Int64[np.ndarray, "boundaries"]]:
        """Where a document begins in the family's own stream, and where its units begin in the document's bytes."""

    def windows(self, context_bytes: int, stride_bytes: int, chosen: Int64[np.ndarray, "documents"]) -> Windows:
        """Evaluation windows over documents, as `rows.windows` cuts each."""
        found = [np.zeros((0, 4), np.int64)]
        for document in chosen:
            begin, positions = self.document_positions(int(document))
            cut = begin + windows(positions, context_bytes, stride_bytes)
            found.append(np.insert(cut, 3, document, axis=1))
        begin, end, after, documents = np.concatenate(found).T
        return Windows(begin=begin, end=end, after=after, documents=documents)

    @abc.abstractmethod
    def window_shape(self, found: Windows, context_bytes: int) -> tuple[int, int]:
        """Length and slots of evaluation rows that hold every one of these windows whole."""


def padded(values: Shaped[np.ndarray, "inputs"], length: int, filler: int, dtype: Any) -> Shaped[np.ndarray, "row"]:
    """The values of a row, completed to its length."""
    if len(values) == length:  # as most rows are
        return values.astype(dtype)
    out = np.full(length, filler, dtype)
    out[: len(values)] = values
    return out


class ByteSource(StreamSource):
    """Rows of bytes, for the flat byte Transformer and the entropy model."""

    @functools.cached_property
    def rows(self) -> RowIndex:
        return byte_rows(self.stream.length, self.config.bytes)

    @property
    def slots(self) -> int:
        return self.config.bytes

    def build(self, begin: int, end: int, after: int, length: int) -> Row:
        ids = self.stream.ids(begin, end + 1)
        targets = ids[1:].copy()
        targets[: after - begin] = -1
        return {
            "ids": padded(ids[:-1], length, vocabulary.BOE, self.dtype),
            "targets": padded(targets, length, -1, self.dtype),
            "target_bytes": padded(targets >= vocabulary.OFFSET, length, 0, np.uint16),
        }

    def document_positions(self, document: int) -> tuple[int, Int64[np.ndarray, "boundaries"]]:
        begin, end = self.stream.document_starts[document : document + 2]
        return int(begin), np.arange(end - begin + 1)

    def window_shape(self, found: Windows, context_bytes: int) -> tuple[int, int]:
        return context_bytes, context_bytes


class BLTSource(ByteSource):
    """Rows of bytes with the starts of their patches.

    `config.slots` None is replaced by `rows.default_slots` of this split.
    """

    def __init__(self, documents: Documents, stream_starts: Bool[np.ndarray, "positions"], config: RowsConfig) -> None:
        """
        Args:
          stream_starts: where the patches of the split's byte stream begin, each document patched alone.

        Raises:
          ValueError: for starts of another length than the stream, or a document whose BOS, or the byte after it,
            does not begin a patch.
        """
        super().__init__(documents, config)
        if len(stream_starts) != self.stream.length:
            raise ValueError(
                f"stream_starts has {len(stream_starts)} positions, the documents' stream has {self.stream.length}: "
                "patch this split with this corpus."
            )
        for first in range(0, len(documents), _CHUNK):
            begins = self.stream.document_starts[first : min(first + _CHUNK, len(documents))]
            for wrong in np.flatnonzero(~(stream_starts[begins] & stream_starts[begins + 1])):
                raise ValueError(
                    f"stream_starts: document {first + wrong} does not begin with two starts; patch each one alone."
                )
        self.stream_starts = stream_starts
        if config.slots is None:
            cells = stretches(self.stream.length, config.bytes)
            counts = (np.count_nonzero(stream_starts[cell : cell + config.bytes]) for cell in cells)
            found = default_slots(np.fromiter(counts, np.int64, len(cells)))
            self.config = dataclasses.replace(config, slots=found)

    @property
    def slots(self) -> int:
        assert self.config.slots is not None
        return self.config.slots

    @functools.cached_property
    def rows(self) -> RowIndex:
        return blt_rows(self.stream_starts, self.config.bytes, self.slots)

    def build(self, begin: int, end: int, after: int, length: int) -> Row:
        starts = padded(self.stream_starts[begin : end + 1], length + 1, 0, bool)
        starts[:2] = True
        return {**super().build(begin, end, after, length), "starts": starts}

    def parts(self) -> dict[str, Iterable[Shaped[np.ndarray, "..."]]]:
        return {**super().parts(), "patches": [self.stream_starts]}

    def window_shape(self, found: Windows, context_bytes: int) -> tuple[int, int]:
        most = 0
        for begin, end in zip(found.begin, found.end, strict=True):
            # A window shorter than its row is padded, and the first padded position may begin a patch too.
            last = end + 1 if end - begin < context_bytes else end
            most = max(most, int(np.count_nonzero(self.stream_starts[begin + 2 : last])))
        return context_bytes, most + 2


class TokenSource(StreamSource):
    """Rows of BPE tokens. `config.slots` None is replaced by `rows.default_slots` of this split."""

    dtype = np.int32

    def __init__(self, documents: Documents, tokenizer: Tokenizer, config: RowsConfig) -> None:
        super().__init__(documents, config)
        self.tokenizer = tokenizer
        self.tokens = TokenStream(documents, tokenizer)
        longest = int(tokenizer.token_bytes.max())
        if longest > np.iinfo(np.uint16).max:
            raise ValueError(f"the tokenizer's longest token has {longest} bytes: train one with tokens below 65,536.")
        special = np.zeros(vocabulary.OFFSET, np.uint16)
        self._bytes_of_id = np.concatenate([special, tokenizer.token_bytes.astype(np.uint16)])
        if config.slots is None:
            cells = stretches(self.stream.length, config.bytes)
            found = default_slots(np.diff(np.searchsorted(self.tokens.positions[:-1], [*cells, cells.stop])))
            self.config = dataclasses.replace(config, slots=found)

    @property
    def length(self) -> int:
        return self.slots

    @functools.cached_property
    def rows(self) -> RowIndex:
        return token_rows(self.tokens.positions, self.config.bytes, self.slots)

    def build(self, begin: int, end: int, after: int, length: int) -> Row:
        ids = self.tokens.ids[begin : end + 1]
        targets = ids[1:].copy()
        counts = self._bytes_of_id[targets]
        targets[: after - begin] = -1
        counts[: after - begin] = 0
        return {
            "ids": padded(ids[:-1], length, vocabulary.BOE, self.dtype),
            "targets": padded(targets, length, -1, self.dtype),
            "target_bytes": padded(counts, length, 0, np.uint16),
        }

    def document_positions(self, document: int) -> tuple[int, Int64[np.ndarray, "boundaries"]]:
        begin, end = (int(start) for start in self.tokens.document_starts[document : document + 2])
        return begin, self.tokens.positions[begin : end + 1] - self.tokens.positions[begin]

    def window_shape(self, found: Windows, context_bytes: int) -> tuple[int, int]:
        longest = max(int((found.end - found.begin).max(initial=0)), 1)
        return longest, longest
