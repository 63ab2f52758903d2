"""Patches that are the tokens of a BPE tokenizer, marked by delimiters in the text (BLT paper section 2.4).

The one rule that is not incremental: where a tokenizer cuts depends on the bytes that follow, so the delimited form
of a text's beginning is not the beginning of the text's delimited form. Generation refuses it.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from bltjax import vocabulary
from bltjax.patching.patches import delayed, document_firsts

PREFIX_CONSISTENT = False


def encode_delimited(tokens: Iterable[bytes], bos: bool = True, eos: bool = False) -> Int32[np.ndarray, "ids"]:
    """Ids of a text already cut into tokens: a delimiter after the bytes of each, BOS and EOS where wanted."""
    pieces = [[vocabulary.BOS]] if bos else []
    for token in tokens:
        pieces += [vocabulary.encode(token, bos=False), [vocabulary.DELIMITER]]
    if eos:
        pieces.append([vocabulary.EOS])
    return np.concatenate([np.zeros(0, np.int32), *pieces]).astype(np.int32)


def bpe_starts(ids: Int[Array | np.ndarray, "batch bytes"]) -> Bool[Array | np.ndarray, "batch bytes+1"]:
    """Patch starts after every delimiter; position N, the last, is the unseen byte after the row.

    A delimiter is the last id of its patch. A document's positions 0 and 1 are starts too. Numpy ids give a numpy
    array.
    """
    firsts = document_firsts(ids)
    xp = ids.__array_namespace__()
    after = xp.concatenate([xp.zeros((*ids.shape[:-1], 1), dtype=bool), ids == vocabulary.DELIMITER], axis=-1)
    return after | firsts | delayed(firsts, 1, False)
