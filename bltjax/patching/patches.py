"""Patches: the one contract between the rules that cut bytes into patches and the models that read them."""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, Int32

from bltjax import vocabulary

if TYPE_CHECKING:  # type checkers know the fields of a standard dataclass, not those of a chex one
    from dataclasses import dataclass
else:
    from chex import dataclass


def _is_concrete(array: Any) -> bool:
    return not isinstance(array, Tracer)


@dataclass(frozen=True)
class Patches:
    """Which patch each byte lies in, and which patch it may read. A pytree; N bytes, P patch slots a row.

    Attributes:
      encoder_ids: int32 [batch, N], the patch that byte t lies in: the number of starts at or before t, less 1.
      decoder_ids: int32 [batch, N], the newest patch that is complete before byte t + 1, which byte t predicts:
        `encoder_ids(t + 1) - 1`. So the last byte of a patch reads its own patch, every other byte the one before.
        Never more than the largest encoder id of the row.
      valid: bool [batch, P], whether any of the N bytes lies in the patch.

    A row with more than P patches cannot raise inside a compiled program; its ids are left as they are, beyond
    P - 1, and the models turn every logit of such a row into NaN.
    """

    encoder_ids: Int32[Array, "batch bytes"]
    decoder_ids: Int32[Array, "batch bytes"]
    valid: Bool[Array, "batch patches"]

    @classmethod
    def from_starts(cls, starts: Bool[Array | np.ndarray, "batch positions"], num_patches: int) -> "Patches":
        """Patches from the positions where they start (BLT paper section 2).

        Args:
          starts: position t starts a patch, for the N bytes of the row and, last, the unseen byte after them.
            Positions 0 and 1 must be starts: the first patch is one byte long, as nothing precedes byte 1's patch.
          num_patches: P, patch slots a row; static.

        Raises:
          ValueError: where `starts` is known (not traced) and a row lacks the start at 0 or 1, or has more than P
            patches among its N bytes.
        """
        if starts.ndim != 2 or starts.shape[1] < 2:
            raise ValueError(f"starts has shape {starts.shape}: pass [batch, N + 1] with N of at least 1 byte.")
        if num_patches < 1:
            raise ValueError(f"num_patches={num_patches}: must be at least 1.")
        if _is_concrete(starts):
            _check_starts(np.asarray(starts), num_patches)
        ids = jnp.cumsum(jnp.asarray(starts, jnp.int32), axis=1, dtype=jnp.int32) - 1
        return cls(
            encoder_ids=ids[:, :-1],
            decoder_ids=ids[:, 1:] - 1,
            valid=jnp.arange(num_patches, dtype=jnp.int32) <= ids[:, -2:-1],
        )

    @classmethod
    def from_lengths(cls, lengths: Int[Array | np.ndarray, "batch patches"], num_bytes: int) -> "Patches":
        """Patches from their lengths in bytes; P is the number of columns.

        Args:
          lengths: of the patches of each row, in order. They sum to N + 1, as they cover the N bytes of the row and
            the unseen byte after them; shorter rows are padded on the right with 0 or -1.
          num_bytes: N; static.

        Raises:
          ValueError: where `lengths` is known (not traced) and a row's first length is not 1, its sum is not N + 1,
            or a length follows padding.
        """
        if lengths.ndim != 2 or lengths.shape[1] < 1:
            raise ValueError(f"lengths has shape {lengths.shape}: pass [batch, P] with P of at least 1 patch.")
        if num_bytes < 1:
            raise ValueError(f"num_bytes={num_bytes}: must be at least 1.")
        if _is_concrete(lengths):
            _check_lengths(np.asarray(lengths), num_bytes)
        real = jnp.maximum(jnp.asarray(lengths, jnp.int32), 0)
        first = jnp.cumsum(real, axis=1, dtype=jnp.int32) - real
        rows = jnp.arange(lengths.shape[0])[:, None]
        # An index beyond the row is dropped: that is where padding columns put their mark.
        marks = jnp.where(real > 0, first, num_bytes + 1)
        starts = jnp.zeros((lengths.shape[0], num_bytes + 1), bool).at[rows, marks].set(True, mode="drop")
        return cls.from_starts(starts, lengths.shape[1])


def _check_starts(starts: np.ndarray, num_patches: int) -> None:
    for position in (0, 1):
        missing = np.flatnonzero(~starts[:, position].astype(bool))
        if missing.size:
            raise ValueError(
                f"starts[{missing[0]}, {position}] is False: a row's first patch is its first byte alone, "
                "so positions 0 and 1 are always starts."
            )
    counts = np.count_nonzero(starts[:, :-1], axis=1)
    if counts.max(initial=0) > num_patches:
        row = int(counts.argmax())
        raise ValueError(
            f"row {row} has {counts[row]} patches, num_patches={num_patches}: "
            "raise num_patches, shorten the row, or patch with a higher threshold."
        )


def _check_lengths(lengths: np.ndarray, num_bytes: int) -> None:
    real = lengths > 0
    for row in np.flatnonzero(lengths[:, 0] != 1):
        raise ValueError(f"lengths[{row}, 0]={lengths[row, 0]}: a row's first patch is its first byte alone.")
    for row in np.flatnonzero((real[:, 1:] & ~real[:, :-1]).any(axis=1)):
        raise ValueError(f"lengths[{row}] has a patch after padding: pad with 0 or -1 on the right only.")
    sums = np.where(real, lengths, 0).sum(axis=1)
    for row in np.flatnonzero(sums != num_bytes + 1):
        raise ValueError(
            f"lengths[{row}] sums to {sums[row]}, num_bytes={num_bytes}: lengths cover the row's bytes and the "
            f"unseen byte after them, so they sum to {num_bytes + 1}."
        )


def delayed(values: Any, distance: int, fill: Any) -> Any:
    """Entry t is the value `distance` places before t on the last axis, or `fill`; a numpy array stays one."""
    xp = values.__array_namespace__()
    front = xp.full((*values.shape[:-1], distance), fill, dtype=values.dtype)
    return xp.concatenate([front, values], axis=-1)[..., : values.shape[-1]]


def document_firsts(ids: Int[Array | np.ndarray, "*batch bytes"]) -> Bool[Array | np.ndarray, "*batch bytes+1"]:
    """Positions where a document begins: the first, and every position after an EOS, the unseen one included."""
    xp = ids.__array_namespace__()
    return xp.concatenate([xp.ones((*ids.shape[:-1], 1), dtype=bool), ids == vocabulary.EOS], axis=-1)


def byte_documents(ids: Int[Array | np.ndarray, "batch bytes"]) -> Int32[Array, "batch bytes"]:
    """Document number of each byte: the EOS strictly before it. An EOS belongs to the document that it ends."""
    is_eos = jnp.asarray(ids == vocabulary.EOS, jnp.int32)
    return jnp.cumsum(is_eos, axis=1, dtype=jnp.int32) - is_eos


def patch_documents(ids: Int[Array | np.ndarray, "batch bytes"], patches: Patches) -> Int32[Array, "batch patches"]:
    """Document number of each patch: the patches with an EOS among their bytes strictly before it."""
    batch, num_patches = patches.valid.shape
    rows = jnp.arange(batch)[:, None]
    is_eos = jnp.asarray(ids == vocabulary.EOS, jnp.int32)
    ends = jnp.zeros((batch, num_patches), jnp.int32).at[rows, patches.encoder_ids].max(is_eos, mode="drop")
    return jnp.cumsum(ends, axis=1, dtype=jnp.int32) - ends
