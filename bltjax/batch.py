"""The Batch pytree: what the data hands to training and evaluation, for every family of models."""

import chex
import jax
import numpy as np
from jaxtyping import Bool, Integer

Array = np.ndarray | jax.Array


@chex.dataclass(frozen=True)
class Batch:
    """Rows of inputs and what they should predict.

    Attributes:
      ids: input ids; 0 (BOE) where a row is padded. int16 for bytes, int32 for tokens.
      targets: the id that follows each input; -1 where nothing is scored (padding, context of an evaluation window).
      target_bytes: uint16, raw document bytes that a scored target stands for: 1 for a byte, its length for a token,
        0 for BOS, EOS and wherever targets is -1. Their sum is the number of bytes that the batch scores.
      starts: for BLT, True where a patch begins; one position more than ids, the last being the unseen next byte.
        Positions 0 and 1 always begin a patch, positions after the first padded one never do. None for flat families.
    """

    ids: Integer[Array, "batch row"]
    targets: Integer[Array, "batch row"]
    target_bytes: Integer[Array, "batch row"]
    starts: Bool[Array, "batch row+1"] | None = None
