"""Patches of a fixed length (BLT paper section 2.1), and the longest length that any rule may give."""

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from bltjax.patching.patches import delayed, document_firsts


def since_start(
    starts: Bool[Array | np.ndarray, "batch positions"], before: Int[Array, "batch"] | int = 0
) -> Int[Array | np.ndarray, "batch positions"]:
    """Bytes between each position and the newest start at or before it; 0 at a start.

    Args:
      starts: numpy starts give a numpy array.
      before: as many bytes lie between the newest start before these positions and the first of them.
    """
    xp = starts.__array_namespace__()
    positions = xp.arange(starts.shape[1], dtype=xp.int32)
    marks = xp.where(starts, positions, xp.reshape(xp.asarray(-before, dtype=xp.int32), (-1, 1)))
    return positions - (np.maximum.accumulate(marks, axis=1) if xp is np else jax.lax.cummax(marks, axis=1))


def limit_patch_length(
    starts: Bool[Array | np.ndarray, "batch positions"], max_patch_length: int
) -> Bool[Array | np.ndarray, "batch positions"]:
    """Cuts every patch longer than `max_patch_length` bytes into pieces of that length and a remainder.

    Position 0 must be a start. Numpy starts give a numpy array.

    Raises:
      ValueError: for a length below 1.
    """
    if max_patch_length < 1:
        raise ValueError(f"max_patch_length={max_patch_length}: must be at least 1 byte.")
    return since_start(starts) % max_patch_length == 0


def strided_starts(ids: Int[Array | np.ndarray, "batch bytes"], size: int) -> Bool[Array | np.ndarray, "batch bytes+1"]:
    """Patch starts every `size` bytes; position N, the last, is the unseen byte after the row.

    A document's first id, BOS, is a patch of its own; positions 1, 1 + size, 1 + 2 size, ... start the others.
    Numpy ids give a numpy array.

    Raises:
      ValueError: for a size below 1.
    """
    if size < 1:
        raise ValueError(f"size={size}: must be at least 1 byte.")
    firsts = document_firsts(ids)
    return limit_patch_length(firsts | delayed(firsts, 1, False), size)


def byte_starts(ids: Int[Array | np.ndarray, "batch bytes"]) -> Bool[Array | np.ndarray, "batch bytes+1"]:
    """Patch starts at every position: a patch a byte. Numpy ids give a numpy array."""
    xp = ids.__array_namespace__()
    return xp.ones((ids.shape[0], ids.shape[1] + 1), dtype=bool)
