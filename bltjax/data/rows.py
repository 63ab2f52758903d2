"""Where training rows and evaluation windows begin and end, and in which order rows are drawn.

A row with inputs at positions s .. s + n - 1 of a stream has its targets at s + 1 .. s + n, and the next row begins
at s + n. So every position of the stream but the very first is a target exactly once, and no byte is dropped.
"""

import array
import dataclasses

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt64


@dataclasses.dataclass(frozen=True, eq=False)
class RowIndex:
    """Where each row of a split begins.

    Attributes:
      starts: int64 [rows + 1], position in the byte stream of each row's first input; last, that of the final target.
      units: int64 [rows + 1], the same in the family's own stream: bytes, or tokens.
      used: int64 [rows], slots that hold at least one input of the row.
      bytes: positions of the byte stream that a row has room for.
      slots: patches (BLT), tokens or bytes that a row has room for.
    """

    starts: Int64[np.ndarray, "boundaries"]
    units: Int64[np.ndarray, "boundaries"]
    used: Int64[np.ndarray, "rows"]
    bytes: int
    slots: int

    def __len__(self) -> int:
        return len(self.used)

    def fill(self) -> tuple[float, float]:
        """How full the rows are: the share of their byte positions and of their slots that is used."""
        rows = max(len(self), 1)
        return (
            float(self.starts[-1] - self.starts[0]) / (rows * self.bytes),
            float(self.used.sum()) / (rows * self.slots),
        )


def byte_rows(length: int, row_bytes: int) -> RowIndex:
    """Rows of `row_bytes` bytes each, the last one shorter.

    Args:
      length: of the byte stream, in positions.
      row_bytes: N, inputs of a row.
    """
    last = max(length - 1, 0)
    starts = np.append(np.arange(0, last, row_bytes, dtype=np.int64), np.int64(last))
    return RowIndex(starts=starts, units=starts, used=np.diff(starts), bytes=row_bytes, slots=row_bytes)


def blt_rows(stream_starts: Bool[np.ndarray, "positions"], row_bytes: int, slots: int) -> RowIndex:
    """Rows of at most `row_bytes` bytes and at most `slots` patches, whichever comes first.

    The first two positions of a row begin patches, as they do in every row that a model sees; the others where the
    stream says so. A row that is shorter than `row_bytes` is padded, and the padding lies in the patch of the position
    after its inputs: that one counts among the patches of the row too.

    Args:
      stream_starts: where the patches of the byte stream begin.
      row_bytes: N, inputs of a row, at least 2.
      slots: P, patches of a row, at least 2.
    """
    _check_room(row_bytes, slots)
    last = max(len(stream_starts) - 1, 0)
    starts, used, start = array.array("q"), array.array("q"), 0
    while start < last:
        row = min(row_bytes, last - start)
        inside = np.flatnonzero(stream_starts[start + 2 : start + row + 1])
        # Starts 0 and 1 of the row are given, so `slots - 2` more fit: where is the one that does not?
        if len(inside) > slots - 2:
            over = int(inside[slots - 2]) + 2
            # A whole row has its patches at 0 .. N - 1; one that is cut has one more position, the first padded one.
            if over <= (row - 1 if row == row_bytes else row):
                row = over - 1
        starts.append(start)
        used.append(min(row, 2) + int(np.searchsorted(inside, row - 2)))
        start += row
    starts.append(last)
    found = np.array(starts, np.int64)
    return RowIndex(starts=found, units=found, used=np.array(used, np.int64), bytes=row_bytes, slots=slots)


def token_rows(positions: Int64[np.ndarray, "boundaries"], row_bytes: int, slots: int) -> RowIndex:
    """Rows of at most `slots` tokens that stand for at most `row_bytes` positions of the byte stream.

    Args:
      positions: where in the byte stream each token of the token stream (BOS and EOS among them) begins; last, its
        length.
      row_bytes: N.
      slots: inputs of a row.

    Raises:
      ValueError: for a token longer than `row_bytes`.
    """
    _check_room(row_bytes, slots)
    last = max(len(positions) - 2, 0)
    units, unit = array.array("q"), 0
    while unit < last:
        units.append(unit)
        near = positions[unit : unit + slots + 2]
        # The first token that no longer fits into a row beginning here.
        size = min(int(np.searchsorted(near, near[0] + row_bytes, "right")) - 1, slots, last - unit)
        if not size:
            raise ValueError(
                f"rows.bytes={row_bytes}: a token has {near[1] - near[0]} bytes; rows must have room for it."
            )
        unit += size
    units.append(last)
    found = np.array(units, np.int64)
    starts = positions[found] if len(positions) > 1 else found
    return RowIndex(starts=starts, units=found, used=np.diff(found), bytes=row_bytes, slots=slots)


def _check_room(row_bytes: int, slots: int) -> None:
    for name, value in (("rows.bytes", row_bytes), ("rows.slots", slots)):
        if value < 2:
            raise ValueError(f"{name}={value}: must be at least 2, or a row could not take the next byte.")


def stretches(length: int, row_bytes: int) -> range:
    """Where stretches of `row_bytes` positions begin in a stream; one that would be shorter is left out, but the first.

    Args:
      length: of the stream, in positions.
    """
    return range(0, max(-(-length // row_bytes) - 1, 1) * row_bytes, row_bytes)


def default_slots(counts: Int64[np.ndarray, "stretches"]) -> int:
    """Slots for rows of so many bytes: few are cut short by slots, few slots stay empty.

    The number for which the share of bytes used times the share of slots used is largest; rounded up to a multiple of
    8 from 64 on.

    Args:
      counts: how many patches or tokens lie in each stretch of a row's bytes, as `stretches` cuts the stream.
    """
    counts = np.sort(counts)
    # A stretch of c patches makes max(1, c / P) rows. With R rows in all, the share of bytes used is stretches / R and
    # that of slots is patches / (R P): their product is largest where R^2 P is smallest.
    choices = np.unique(np.quantile(counts, np.linspace(0.2, 1, 33)).astype(np.int64).clip(1))
    cost = [float(np.maximum(1, counts / slots).sum()) ** 2 * slots for slots in choices]
    best = int(choices[np.argmin(cost)])
    # The two starts that every row is given, and the position after a cut row, need room as well.
    best = max(best + 2, 2)
    return best if best < 64 else -(-best // 8) * 8


def mix(words: UInt64[np.ndarray, "words"]) -> UInt64[np.ndarray, "words"]:
    """Scrambles 64-bit words, each one to one (the finaliser of SplitMix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class RowOrder:
    """The order in which rows are drawn: row k is a pure function of (seed, epoch, k), for any k.

    The byte stream is divided into a fixed grid of cells. Each epoch has its own permutation of the cells, and rows
    come in the order of the cell that they begin in. So families whose rows are cut differently still read the same
    texts in the same order. The permutation is that of a hash, which no release of numpy changes.
    """

    def __init__(self, index: RowIndex, grid: int, seed: int) -> None:
        """
        Args:
          index: the rows.
          grid: positions of the byte stream in a cell.
          seed: any integer.
        """
        self.rows = len(index)
        self._starts, self._grid = index.starts[:-1], grid
        self._seed = np.array([seed % 2**64], np.uint64)
        self._orders: dict[int, np.ndarray] = {}

    def epoch(self, epoch: int) -> Integer[np.ndarray, "rows"]:
        """All rows of an epoch, in order."""
        order = self._orders.get(epoch)
        if order is None:
            salt = mix(mix(self._seed + np.uint64(0x9E3779B97F4A7C15)) + np.uint64(epoch))
            # Stable: the rows of a cell stay in the order of the text.
            cells = (self._starts // self._grid).astype(np.uint64)
            order = np.argsort(mix(mix(cells + np.uint64(1)) ^ salt), kind="stable")
            if self.rows < 1 << 31:
                order = order.astype(np.int32)
            # Batches at the end of an epoch need two of them; older ones are not asked for again.
            self._orders = {**{e: o for e, o in self._orders.items() if abs(e - epoch) == 1}, epoch: order}
        return order

    def row(self, k: int) -> int:
        """The number in the index of the k-th row to be drawn; k goes on into the next epoch.

        Raises:
          IndexError: for a negative k, or where there are no rows.
        """
        if k < 0 or not self.rows:
            raise IndexError(f"row {k} of an order over {self.rows} rows.")
        return int(self.epoch(k // self.rows)[k % self.rows])


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Evaluation windows, in positions of a family's own stream.

    Attributes:
      begin: int64 [windows], first input.
      end: int64 [windows], the last target; the inputs end just before it.
      after: int64 [windows], targets behind this position are scored, those up to it are context.
      documents: int64 [windows], the document that each lies in.
    """

    begin: Int64[np.ndarray, "windows"]
    end: Int64[np.ndarray, "windows"]
    after: Int64[np.ndarray, "windows"]
    documents: Int64[np.ndarray, "windows"]

    def __len__(self) -> int:
        return len(self.begin)


def windows(
    positions: Int64[np.ndarray, "boundaries"], context_bytes: int, stride_bytes: int
) -> Int64[np.ndarray, "windows 3"]:
    """Windows over one document: begin, end and after of each, in units of the document.

    The first window takes `context_bytes` positions, each later one ends `stride_bytes` further on and sees at most
    `context_bytes` positions before its end. Positions are those of the byte stream for every family: an end that
    falls inside a token moves back to the token's beginning. Every unit but the first (BOS) is scored exactly once.

    Args:
      positions: where in the document's byte stream each byte or token begins; last, the length of that stream.

    Raises:
      ValueError: for a stride that is not in 1 .. context_bytes, or shorter than a token.
    """
    if not 1 <= stride_bytes <= context_bytes:
        raise ValueError(f"stride_bytes={stride_bytes}: must lie in 1 .. context_bytes, {context_bytes}.")
    last = len(positions) - 2
    out, after, reach = [], 0, context_bytes
    while after < last:
        end = min(int(np.searchsorted(positions, positions[after] + reach, "right")) - 1, last)
        if end == after:
            size = positions[after + 1] - positions[after]
            raise ValueError(
                f"stride_bytes={stride_bytes}: a token of {size} bytes does not fit; take a longer stride."
            )
        begin = int(np.searchsorted(positions, positions[end] - context_bytes))
        out.append((begin, end, after))
        after, reach = end, stride_bytes
    return np.array(out, np.int64).reshape(-1, 3)
