"""The threshold that gives a wanted mean patch size on a corpus, and what patches a corpus is cut into.

Bytes are raw document bytes; positions count BOS and EOS as well. A mean is a ratio of sums: all bytes over all
patches, those of BOS included.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, UInt32
from numpy.typing import NDArray

from bltjax.config import PatcherConfig
from bltjax.patching.entropy import entropy_scores
from bltjax.patching.rules import check_stream, finite_entropies, stream_chunks, stream_firsts, stream_starts

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

# A bin of the histogram is a float32 without its last 12 bits: 2^-11 of the value, and half a step of float16, so
# that values stored as float16 are told apart exactly and a threshold can lie between two neighbours.
_DROPPED_BITS = 12
_BINS = 1 << 32 - _DROPPED_BITS


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A calibrated patcher.

    Attributes:
      config: the patcher, its threshold set.
      wanted: bytes per patch asked for.
      mean_patch_bytes: bytes per patch reached on the corpus.
      patches: of the corpus under this patcher.
    """

    config: PatcherConfig
    wanted: float
    mean_patch_bytes: float
    patches: int

    @property
    def threshold(self) -> float:
        """In nats."""
        assert self.config.threshold is not None
        return self.config.threshold


def _ordered(scores: NDArray[np.float32]) -> UInt32[np.ndarray, "scores"]:
    """Integers in the order of the scores."""
    bits = (scores + np.float32(0)).view(np.uint32)  # adding 0 makes -0 the 0 that it compares equal to
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _edge(place: int) -> float:
    """The float32 that the scores of bins `place` and above, and of no others, exceed."""
    ordered = np.uint32(place << _DROPPED_BITS)
    bits = ordered & np.uint32((1 << 31) - 1) if ordered >> 31 else ~ordered
    return float(np.uint32(bits).view(np.float32))


def document_groups(
    document_starts: Integer[np.ndarray, "boundaries"], positions: int = 1 << 24
) -> Iterator[tuple[int, int]]:
    """Documents first .. last - 1 of a stream, in groups of about so many positions: what is worked on at once.

    Args:
      document_starts: where each document of the stream begins and, last, its length.
    """
    first, count = 0, len(document_starts) - 1
    while first < count:
        end = int(document_starts[first]) + positions
        last = max(first + 1, int(np.searchsorted(document_starts, end, "right")) - 1)
        yield first, last
        first = last


def _histogram(
    config: PatcherConfig, document_starts: Integer[np.ndarray, "boundaries"], entropies: Any
) -> tuple[int, NDArray[np.int64]]:
    """Forced starts, and for every bin the positions whose score lies above its edge and not above the next."""
    counts, forced_starts = np.zeros(_BINS, np.int64), 0
    threshold_add = config.threshold_add if config.variant == "add" else None
    for one, other in document_groups(document_starts):
        origin = int(document_starts[one])
        firsts = stream_firsts(document_starts[one : other + 1] - origin)
        for first, begin, end in stream_chunks(len(firsts)):
            documents = np.append(firsts[first:end], False)[None]
            scores, forced = entropy_scores(
                finite_entropies(entropies, origin + first, origin + end)[None],
                config.variant,
                threshold_add,
                documents,
            )
            scores, forced = (values[0, begin - first : end - first] for values in (scores, forced))
            forced_starts += int(np.count_nonzero(forced))
            free = scores[~forced & np.isfinite(scores)]
            counts += np.bincount((_ordered(free) - np.uint32(1)) >> _DROPPED_BITS, minlength=_BINS)
    return forced_starts, counts


def calibrate(
    config: PatcherConfig,
    document_starts: Integer[np.ndarray, "boundaries"],
    entropies: Any,
    tolerance: float = 0.05,
) -> Calibration:
    """The threshold at which a corpus has `config.mean_patch_bytes` bytes per patch (BLT paper section 4.3).

    One pass over the entropies makes a histogram of what the threshold is compared with: the entropy, or for
    "monotonic" its rise; for "add" the entropy where the rise exceeds `threshold_add`. The forced starts of each
    document are counted as they are. With a `max_patch_length` some twenty further passes bisect, as the pieces of
    long patches are in no histogram. Between two neighbouring values that give the same patches the threshold lies
    in the middle, so that entropies computed anew in float32 fall on the same side as those stored in float16.

    Args:
      config: an entropy patcher; a threshold that it has is replaced.
      document_starts: where each document of the stream begins and, last, its length.
      entropies: nats, one a position of the stream; may be memory-mapped.
      tolerance: share of the wanted size by which the reached one may miss it, as entropies that are equal cannot
        be told apart by any threshold.

    Raises:
      ValueError: for another rule, a size beyond what thresholds reach (one patch per byte and one per document
        are the ends), or that none comes near enough to.
    """
    if config.rule != "entropy":
        raise ValueError(f"patcher.rule={config.rule!r}: only the entropy rule has a threshold to calibrate.")
    stream_firsts(document_starts[:2])  # refuses boundaries that do not begin at 0
    check_stream("entropies", entropies, int(document_starts[-1]))
    total_bytes = int(document_starts[-1]) - 2 * (len(document_starts) - 1)
    if total_bytes < 1:
        raise ValueError("document_starts: the stream holds no bytes, so there is nothing to calibrate on.")
    forced, counts = _histogram(config, document_starts, entropies)
    # Thresholds within one gap between occupied bins give the same patches: one candidate, its middle, for each gap.
    occupied = np.flatnonzero(counts)
    if not occupied.size:
        raise ValueError(
            "entropies: every start of this corpus is forced; its documents are too short to calibrate on."
        )
    middles = (occupied[:-1] + 1 + occupied[1:] + 1) // 2
    candidates = np.concatenate([occupied[:1], middles, occupied[-1:] + 1])
    above = np.append(np.cumsum(counts[occupied][::-1])[::-1], 0)

    @functools.cache
    def patches_at(i: int) -> int:
        if config.max_patch_length is None:
            return forced + int(above[i])
        at = dataclasses.replace(config, threshold=_edge(int(candidates[i])))
        return int(np.count_nonzero(stream_starts(at, document_starts, entropies=entropies)))

    wanted = config.mean_patch_bytes
    last = len(candidates) - 1
    smallest, largest = total_bytes / patches_at(0), total_bytes / patches_at(last)
    if not smallest < wanted < largest:
        raise ValueError(
            f"patcher.mean_patch_bytes={wanted}: on this corpus a threshold can give more than {smallest:.3f} bytes "
            f"per patch (a start wherever the rule allows one) and less than {largest:.3f} (none but the forced ones); "
            "ask for a size between."
        )
    low, high = 0, last  # the mean patch is too short at `low`, long enough at `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total_bytes / patches_at(middle) < wanted else (low, middle)
    reached = {i: total_bytes / patches_at(i) for i in (low, high)}
    best = min(reached, key=lambda i: abs(reached[i] - wanted))
    if abs(reached[best] - wanted) > tolerance * wanted or best in (0, last):
        raise ValueError(
            f"patcher.mean_patch_bytes={wanted}: the nearest sizes that a threshold gives on this corpus are "
            f"{reached[low]:.3f} and {reached[high]:.3f} bytes per patch, as many entropies are equal; ask for one of "
            "those, or use a better entropy model."
        )
    threshold = _edge(int(candidates[best]))
    return Calibration(dataclasses.replace(config, threshold=threshold), wanted, reached[best], patches_at(best))


@dataclasses.dataclass(frozen=True)
class PatchStatistics:
    """What patches a stream of documents is cut into.

    Attributes:
      documents: number of documents.
      bytes: raw bytes.
      positions: bytes, and BOS and EOS of each document.
      patches: number of patches.
      length_counts: number of patches of each length in positions that occurs, shortest first.
      document_quantiles: bytes per patch of single documents, each counted once, at `QUANTILES`.
    """

    documents: int
    bytes: int
    positions: int
    patches: int
    length_counts: dict[int, int]
    document_quantiles: tuple[float, ...]

    @property
    def mean_patch_bytes(self) -> float:
        """Raw bytes per patch."""
        return self.bytes / self.patches if self.patches else math.nan

    @property
    def mean_patch_length(self) -> float:
        """Positions per patch: what a row of N positions must be divided by to know how many patches it holds."""
        return self.positions / self.patches if self.patches else math.nan

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "PatchStatistics":
        values = json.loads(text)
        values["length_counts"] = {int(length): count for length, count in values["length_counts"].items()}
        values["document_quantiles"] = tuple(values["document_quantiles"])
        return cls(**values)


def document_patch_counts(
    starts: Bool[np.ndarray, "positions"], document_starts: Integer[np.ndarray, "boundaries"]
) -> Integer[np.ndarray, "documents"]:
    """Number of patches of each document of a stream."""
    return np.diff(np.searchsorted(np.flatnonzero(starts), document_starts))


def patch_statistics(
    starts: Bool[np.ndarray, "positions"], document_starts: Integer[np.ndarray, "boundaries"]
) -> PatchStatistics:
    """Statistics of the patches of a stream; arguments as `stream_starts` returns and takes them."""
    lengths = np.diff(np.append(np.flatnonzero(starts), len(starts)))
    values, counts = np.unique(lengths, return_counts=True)
    documents = len(document_starts) - 1
    quantiles: tuple[float, ...] = ()
    if documents:
        document_bytes = np.diff(document_starts) - 2
        sizes = document_bytes / document_patch_counts(starts, document_starts)
        quantiles = tuple(np.quantile(sizes, QUANTILES).tolist())
    return PatchStatistics(
        documents=documents,
        bytes=len(starts) - 2 * documents,
        positions=len(starts),
        patches=len(lengths),
        length_counts=dict(zip(values.tolist(), counts.tolist(), strict=True)),
        document_quantiles=quantiles,
    )


def check_starts(
    config: PatcherConfig,
    starts: Bool[np.ndarray, "positions"],
    document_starts: Integer[np.ndarray, "boundaries"],
    row_bytes: int | None = None,
) -> None:
    """Refuses a threshold whose patches are no patches: one per byte, or one per document or row.

    Args:
      config: the patcher that made the starts; every rule but entropy passes.
      starts: of a stream, from `stream_starts`.
      document_starts: as given to it.
      row_bytes: positions of a training row; None: only a threshold that nothing exceeds is too high.

    Raises:
      ValueError: naming the threshold.
    """
    if config.rule != "entropy" or not len(starts):
        return
    advice = "or leave the threshold out to have it calibrated to patcher.mean_patch_bytes."
    limit = config.max_patch_length
    if starts.all() and limit != 1:
        raise ValueError(f"patcher.threshold={config.threshold}: gives one patch per byte; raise it, {advice}")
    lengths = np.diff(document_starts)
    forced = np.minimum(lengths, 2 if config.variant == "global" else 3)
    rest = lengths - forced + 1  # of the last forced patch, which runs to the document's end
    least = int((forced - 1 + (1 if limit is None else -(-rest // limit))).sum())
    by_entropy = int(np.count_nonzero(starts)) - least
    if by_entropy < (1 if row_bytes is None else len(starts) / row_bytes):
        unit = "document" if row_bytes is None else f"row of {row_bytes} bytes"
        raise ValueError(
            f"patcher.threshold={config.threshold}: gives one patch per {unit} ({by_entropy} positions of "
            f"{len(starts)} exceed it); lower it, {advice}"
        )
