"""Several sources of rows as one, each with its share of the bytes: row k is still a pure function of (seed, k).

Rows are drawn in rounds of `ROUND`. Each round has the same number of rows of each source, spread evenly over it with
a jitter that is a hash of (seed, round); the rows of one source come in that source's own order, epoch after epoch.
So a source's share is exact after every round, a small source is repeated while a large one is still in its first
epoch, and the place of row k within its source is arithmetic: rounds before it, and rows of that source before it in
its own round.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64, Shaped

from bltjax.data.corpus import Documents
from bltjax.data.rows import RowIndex, RowOrder, mix
from bltjax.data.views import BLTSource, Row, Source, StreamSource

ROUND = 4096  # rows: the shares of sources are met to a part in so many


class MixtureOrder(RowOrder):
    """The order in which rows of several sources are drawn; rows are numbered through all sources."""

    def __init__(self, orders: Sequence[RowOrder], counts: Int64[np.ndarray, "sources"], seed: int) -> None:
        """
        Args:
          orders: that of each source.
          counts: rows of each source in a round; they sum to `ROUND`.
          seed: any integer.
        """
        self.rows = sum(order.rows for order in orders)
        self._orders_of, self._counts = orders, counts
        self._firsts = np.cumsum([0, *(order.rows for order in orders)])
        self._salt = np.array([seed % 2**64], np.uint64)
        self._rounds: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def _round(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Which source each row of a round is of, and how many rows of that source come before it in the round."""
        found = self._rounds.get(number)
        if found is None:
            salt = mix(mix(self._salt + np.uint64(0xD1B54A32D192ED03)) + np.uint64(number))
            jitter = (mix(mix(np.arange(1, ROUND + 1, dtype=np.uint64)) ^ salt) >> np.uint64(11)) * 2.0**-53
            source = np.repeat(np.arange(len(self._counts)), self._counts)
            place = np.concatenate([np.arange(count) for count in self._counts])
            # Each row of a source somewhere in its own part of the round: shares hold in any stretch of rows.
            order = np.argsort((place + jitter) / self._counts[source], kind="stable")
            found = source[order], place[order]
            # Batches at the end of a round need two of them; older ones are not asked for again.
            self._rounds = {**{r: f for r, f in self._rounds.items() if abs(r - number) == 1}, number: found}
        return found

    def row(self, k: int) -> int:
        """The number of the k-th row to be drawn.

        Raises:
          IndexError: for a negative k.
        """
        if k < 0:
            raise IndexError(f"row {k} of a mixture.")
        source, place = (int(values[k % ROUND]) for values in self._round(k // ROUND))
        own = (k // ROUND) * int(self._counts[source]) + place
        return int(self._firsts[source]) + self._orders_of[source].row(own)


class Mixture(Source):
    """Sources of one shape, drawn by weights. It has no stream of its own: each of its sources is scored apart.

    Attributes:
      sources: what is mixed.
      shares: of the bytes that are drawn, for each source; they sum to 1.
      counts: int64 [sources], rows of each in a round of `ROUND`.
    """

    def __init__(self, sources: Sequence[StreamSource], weights: Sequence[float]) -> None:
        """
        Args:
          sources: of one kind, with rows of one shape: several corpora, or the sources of one.
          weights: of the bytes drawn from each, in any unit.

        Raises:
          ValueError: for weights that are not one positive number a source, sources of several kinds or shapes, a
            source without rows, or one whose share is less than a row in a round.
        """
        if len(sources) != len(weights) or not len(sources):
            raise ValueError(f"weights={list(weights)}: give one for each of the {len(sources)} sources.")
        if not all(np.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"weights={list(weights)}: must be positive; leave out a source that is not wanted.")
        first = sources[0]
        for i, source in enumerate(sources):
            if type(source) is not type(first) or source.config != first.config or source.length != first.length:
                raise ValueError(
                    f"sources[{i}] is a {type(source).__name__} of {source.config}, sources[0] a "
                    f"{type(first).__name__} of {first.config}: make all with the same rows, slots among them."
                )
            if not len(source.rows):
                raise ValueError(f"sources[{i}] has no rows: {source.documents.total_bytes} bytes; leave it out.")
        super().__init__(Documents([piece for source in sources for piece in source.documents.pieces]), first.config)
        self.sources = tuple(sources)
        self.shares = np.array(weights, float) / sum(weights)
        # Rows of one source may hold fewer bytes than those of another.
        exact = self.shares / [source.mean_row_bytes for source in sources]
        exact *= ROUND / exact.sum()
        self.counts = np.floor(exact).astype(np.int64)
        # What is left over goes to those that are furthest below their share.
        self.counts[np.argsort(self.counts - exact, kind="stable")[: ROUND - int(self.counts.sum())]] += 1
        if not self.counts.all():
            i = int(np.argmin(exact))
            raise ValueError(f"weights[{i}]={weights[i]}: less than one row in {ROUND}; give it more or leave it out.")
        self._firsts = np.cumsum([0, *(len(source.rows) for source in sources)])
        self.rows = self._all_rows()

    def _all_rows(self) -> RowIndex:
        """All rows one source after the other; what lies between two sources is in none."""
        parts = [source.rows for source in self.sources]
        begins = np.cumsum([0, *(source.stream.length for source in self.sources)])
        ends = np.cumsum([0, *(int(part.units[-1]) + 1 for part in parts)])
        last = len(parts) - 1
        return RowIndex(
            starts=np.concatenate([p.starts[: None if i == last else -1] + begins[i] for i, p in enumerate(parts)]),
            units=np.concatenate([p.units[: None if i == last else -1] + ends[i] for i, p in enumerate(parts)]),
            used=np.concatenate([part.used for part in parts]),
            bytes=parts[0].bytes,
            slots=parts[0].slots,
        )

    @property
    def length(self) -> int:
        return self.sources[0].length

    @property
    def slots(self) -> int:
        return self.sources[0].slots

    @property
    def mean_row_bytes(self) -> float:
        """Raw bytes of a row as they are drawn, on average."""
        return float(self.counts @ [source.mean_row_bytes for source in self.sources]) / ROUND

    def order(self, seed: int) -> MixtureOrder:
        """The order in which training draws rows."""
        return MixtureOrder([source.order(seed) for source in self.sources], self.counts, seed)

    def row(self, number: int) -> Row:
        source = int(np.searchsorted(self._firsts, number, "right")) - 1
        return self.sources[source].row(number - int(self._firsts[source]))

    def parts(self) -> dict[str, Iterable[Shaped[np.ndarray, "..."]]]:
        found = {**super().parts(), "weights": [self.counts]}
        patches = [source.stream_starts for source in self.sources if isinstance(source, BLTSource)]
        return {**found, "patches": patches} if patches else found
