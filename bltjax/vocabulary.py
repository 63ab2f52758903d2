"""Byte ids: four special ids first, then the 256 byte values shifted by four. Any bytes at all round trip."""

import numpy as np
from jaxtyping import Int32
from numpy.typing import ArrayLike

BOE = 0  # padding; also stands before the start of a row in the n-gram hashes
BOS = 1  # first id of a document
EOS = 2  # last id of a document
DELIMITER = 3  # between the tokens of a BPE-delimited text
OFFSET = 4  # byte b has id b + OFFSET
SIZE = 260  # number of ids


def encode(text: str | bytes, bos: bool = True, eos: bool = False) -> Int32[np.ndarray, "ids"]:
    """Ids of a text: one a byte, with BOS before and EOS after it where wanted.

    A `str` is taken as UTF-8; `bytes` are taken as they are, valid UTF-8 or not.

    Raises:
      ValueError: for a `str` that has no UTF-8 form (a lone surrogate).
    """
    if isinstance(text, str):
        try:
            text = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text has no UTF-8 form: {error.reason} at character {error.start}. Pass the bytes themselves instead."
            ) from error
    raw = np.frombuffer(text, np.uint8)
    ids = np.empty(len(raw) + bos + eos, np.int32)
    ids[bos : bos + len(raw)] = raw
    ids[bos : bos + len(raw)] += OFFSET
    if bos:
        ids[0] = BOS
    if eos:
        ids[-1] = EOS
    return ids


def decode(ids: ArrayLike) -> bytes:
    """The raw bytes that a row of ids stands for; special ids stand for none.

    Raises:
      ValueError: for ids that are not one row of integers, or that lie outside 0 .. 259.
    """
    row = np.asarray(ids)
    if row.ndim != 1 or not (np.issubdtype(row.dtype, np.integer) or row.size == 0):
        raise ValueError(f"ids has shape {row.shape} and type {row.dtype}: pass one row of integers.")
    wrong = np.flatnonzero((row < 0) | (row >= SIZE))
    if wrong.size:
        raise ValueError(f"ids[{wrong[0]}]={row[wrong[0]]}: byte ids lie in 0 .. {SIZE - 1}.")
    return (row[row >= OFFSET] - OFFSET).astype(np.uint8).tobytes()
