"""One door to all the rules: a patcher's configuration applied to rows of a batch, or to a whole stream on the host."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer
from numpy.typing import NDArray

from bltjax import vocabulary
from bltjax.config import PatcherConfig
from bltjax.patching import bpe
from bltjax.patching.bpe import bpe_starts
from bltjax.patching.entropy import entropy_starts
from bltjax.patching.patches import delayed, document_firsts
from bltjax.patching.space import space_starts
from bltjax.patching.strided import limit_patch_length, since_start

# Whether patches(x[:n]) is the first part of patches(x) for the text x: what generation needs.
PREFIX_CONSISTENT = {"entropy": True, "space": True, "strided": True, "byte": True, "bpe": bpe.PREFIX_CONSISTENT}

_CHUNK = 1 << 22  # positions of a stream worked on at once: bounds the memory of whole-corpus passes
LOOK_BACK = 3  # positions before a chunk that its decisions read


def entropy_threshold(config: PatcherConfig) -> float:
    """The threshold of an entropy patcher, in nats.

    Raises:
      ValueError: where it is still to be calibrated, or is not a number.
    """
    if config.threshold is None:
        raise ValueError(
            "patcher.threshold=None: not yet calibrated; use bltjax.patching.calibrate, or give a threshold in nats."
        )
    if math.isnan(config.threshold):
        raise ValueError("patcher.threshold=nan: give a number of nats.")
    return config.threshold


def _add_threshold(config: PatcherConfig) -> float | None:
    return config.threshold_add if config.variant == "add" else None


def starts_of(
    config: PatcherConfig,
    ids: Int[Array | np.ndarray, "batch bytes"],
    entropies: Float[Array | np.ndarray, "batch bytes"] | None = None,
) -> Bool[Array | np.ndarray, "batch bytes+1"]:
    """Patch starts of rows of ids under any rule; position N, the last, is the unseen byte after the row.

    Each document of a row is patched alone: a row begins one, and so does every position after an EOS. Works inside
    a compiled program; numpy arrays give a numpy array.

    Args:
      config: the rule and its settings.
      ids: byte ids.
      entropies: nats, from `next_byte_entropy`; for the entropy rule.

    Raises:
      ValueError: where the entropy rule lacks entropies or a threshold.
    """
    starts = _whole_starts(config, ids, entropies, None)
    for length in longest_patches(config):
        starts = limit_patch_length(starts, length)
    return starts


def next_starts(
    config: PatcherConfig,
    ids: Int[Array, "batch bytes"],
    entropies: Float[Array, "batch bytes"] | None,
    since: Int[Array, "batch"],
    threshold: Float[Array, ""] | None = None,
) -> tuple[Bool[Array, "batch new"], Int[Array, "batch new"]]:
    """Whether a patch starts after each of the newest bytes of rows that grow: `starts_of`, a part at a time.

    Args:
      config: the rule and its settings.
      ids: byte ids; first the LOOK_BACK ids before the new ones, EOS where these are before the row.
      entropies: nats, of the same ids; what stands for ids before the row is not read.
      since: the second result for the last byte of the part before; 0 for the first part of a row.
      threshold: takes the place of that of the configuration, so that it may differ in one compiled program.

    Returns:
      Whether position t + 1 starts a patch, for each new byte t; and how far t + 1 lies from where the rule, before
      patches are cut for their length, started one.
    """
    starts = _whole_starts(config, ids, entropies, threshold)[:, LOOK_BACK + 1 :]
    distance: Any = since_start(starts, since + 1)
    left = distance
    for length in longest_patches(config):
        left = left % length
    return left == 0, distance


def longest_patches(config: PatcherConfig) -> list[int]:
    """To which lengths in bytes the patches of a rule are cut, one after the other; none: a patch may be any length."""
    own = {"byte": 1, "strided": config.size}.get(config.rule)
    return [length for length in (own, config.max_patch_length) if length is not None]


def _whole_starts(config: PatcherConfig, ids: Any, entropies: Any, threshold: Any) -> Any:
    """Starts before patches are cut for their length."""
    if config.rule == "entropy":
        if entropies is None:
            raise ValueError("entropies=None: the entropy rule needs the next-byte entropies of the ids, in nats.")
        threshold = entropy_threshold(config) if threshold is None else threshold
        return entropy_starts(entropies, threshold, config.variant, _add_threshold(config), document_firsts(ids))
    if config.rule == "space":
        return space_starts(ids)
    if config.rule == "bpe":
        return bpe_starts(ids)
    firsts = document_firsts(ids)
    return firsts | delayed(firsts, 1, False)


def stream_firsts(document_starts: Integer[np.ndarray, "boundaries"]) -> Bool[np.ndarray, "positions"]:
    """Positions of a stream where a document begins.

    Args:
      document_starts: where each document begins and, last, the length of the stream.

    Raises:
      ValueError: where they do not begin at 0 or do not increase.
    """
    if not len(document_starts) or document_starts[0] != 0 or np.any(np.diff(document_starts) <= 0):
        raise ValueError("document_starts must begin at 0, increase, and end with the length of the stream.")
    firsts = np.zeros(int(document_starts[-1]), bool)
    firsts[document_starts[:-1]] = True
    return firsts


def check_stream(name: str, values: Any, length: int) -> Any:
    """The values, which must be one a position of the stream.

    Raises:
      ValueError: where they are missing or of another length.
    """
    if values is None or len(values) != length:
        found = "None" if values is None else f"{len(values)} values"
        raise ValueError(f"{name}: {found} given, this rule needs one for each of the stream's {length} positions.")
    return values


def finite_entropies(entropies: Any, first: int, last: int) -> NDArray[np.float32]:
    """Entropies [first, last) of a stream as float32.

    Raises:
      ValueError: for one that is not a finite number.
    """
    part = np.asarray(entropies[first:last], np.float32)
    if not np.isfinite(part).all():
        place = first + int(np.flatnonzero(~np.isfinite(part))[0])
        raise ValueError(f"entropies[{place}]={entropies[place]}: not a finite number of nats; score the corpus anew.")
    return part


def stream_chunks(length: int) -> Iterator[tuple[int, int, int]]:
    """Pieces [begin, end) of a stream, each with the position from which its decisions read: (first, begin, end)."""
    for begin in range(0, length, _CHUNK):
        yield max(begin - LOOK_BACK, 0), begin, min(begin + _CHUNK, length)


def stream_starts(
    config: PatcherConfig,
    document_starts: Integer[np.ndarray, "boundaries"],
    *,
    ids: Any = None,
    entropies: Any = None,
) -> Bool[np.ndarray, "positions"]:
    """Patch starts of a whole stream of documents, each patched alone; on the host, in numpy, in bounded memory.

    The same starts as `starts_of` gives for each document as a row, without the unseen position.

    Args:
      config: the rule and its settings.
      document_starts: where each document begins and, last, S, the length of the stream.
      ids: [S] byte ids, BOS and EOS of each document included; needed by the rules space and bpe.
      entropies: [S] nats; needed by the entropy rule. A memory-mapped array is read piece by piece.

    Raises:
      ValueError: where what the rule needs is missing or of another length, an entropy is not finite, or there is
        not one delimiter for the bpe rule.
    """
    firsts = stream_firsts(document_starts)
    length = len(firsts)
    if config.rule == "entropy":
        check_stream("entropies", entropies, length)
    elif config.rule in ("space", "bpe"):
        check_stream("ids", ids, length)
    out = np.empty(length, bool)
    delimiters = 0
    for first, begin, end in stream_chunks(length):
        documents = np.append(firsts[first:end], False)[None]
        if config.rule == "entropy":
            scores = finite_entropies(entropies, first, end)[None]
            threshold = entropy_threshold(config)
            starts = entropy_starts(scores, threshold, config.variant, _add_threshold(config), documents)
        elif config.rule == "space":
            starts = space_starts(np.asarray(ids[first:end])[None])
        elif config.rule == "bpe":
            part = np.asarray(ids[first:end])
            delimiters += np.count_nonzero(part == vocabulary.DELIMITER)
            starts = bpe_starts(part[None])
        else:
            starts = documents | delayed(documents, 1, False)
        out[begin:end] = starts[0, begin - first : end - first]
    if config.rule == "bpe" and length and not delimiters:
        raise ValueError("ids have no BPE delimiter (id 3): the bpe rule needs a stream with delimiters inserted.")
    for limit in longest_patches(config):
        _limit_in_place(out, limit)
    return out


def _limit_in_place(starts: NDArray[np.bool_], max_patch_length: int) -> None:
    size = max(_CHUNK, max_patch_length + 1)  # more than a patch, so that every piece gets beyond its own first start
    begin = 0
    while begin < len(starts):
        part = limit_patch_length(starts[begin : begin + size][None], max_patch_length)[0]
        starts[begin : begin + size] = part
        if begin + size >= len(starts):
            break
        begin += int(np.flatnonzero(part)[-1])
