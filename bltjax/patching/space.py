"""Patches that start after spaces and punctuation (BLT paper section 2.2)."""

from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Int

from bltjax import vocabulary
from bltjax.patching.patches import delayed, document_firsts


def _is_space_like(ids: Any) -> Any:
    """Not a digit, an ASCII letter or a UTF-8 continuation byte; special ids are space-like."""
    xp = ids.__array_namespace__()
    within = xp.zeros(ids.shape, dtype=bool)
    for first, last in ((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A), (0x80, 0xBF)):
        within |= (ids >= first + vocabulary.OFFSET) & (ids <= last + vocabulary.OFFSET)
    return ~within


def space_starts(ids: Int[Array | np.ndarray, "batch bytes"]) -> Bool[Array | np.ndarray, "batch bytes+1"]:
    """Patch starts after space-like bytes; position N, the last, is the unseen byte after the row.

    A byte is space-like if it is neither a digit, an ASCII letter nor a UTF-8 continuation byte. A patch starts
    after the first byte of every run of them, after every special id, and at a document's positions 0 and 1.
    Numpy ids give a numpy array.
    """
    xp = ids.__array_namespace__()
    firsts = document_firsts(ids)
    space = _is_space_like(ids)
    after = (space & ~delayed(space, 1, True)) | (ids < vocabulary.OFFSET)
    after = xp.concatenate([xp.ones((*ids.shape[:-1], 1), dtype=bool), after], axis=-1)
    return after | firsts | delayed(firsts, 1, False)
