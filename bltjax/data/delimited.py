"""A split as bytes with a delimiter after each BPE token: the tokens are the patches (BLT paper section 2.4).

Where a token ends depends on the bytes after it, so a model that was handed the patches would be told of these. Here it
has to predict each delimiter before it knows of it; what that costs is counted with the bytes (`bltjax.loss`).
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Int64

from bltjax import vocabulary
from bltjax.config import RowsConfig
from bltjax.data.corpus import Documents
from bltjax.data.rows import RowIndex, Windows
from bltjax.data.tokenizer import Tokenizer
from bltjax.data.views import Row, StreamSource, TokenSource, padded
from bltjax.patching import bpe_starts

_ROOM = 2  # the start that every row's second byte is given, and the position after a row that is padded


class DelimitedSource(StreamSource):
    """Rows of whole tokens of a BPE, spelt in bytes, each with a delimiter after it, and the starts of their patches.

    Rows begin and end where those of a `TokenSource` do, and have no more bytes than those of the other families; the
    delimiters come on top. `config.slots` None is replaced by what the tokens of this split need.

    Attributes:
      tokens: what the rows spell.
    """

    def __init__(self, documents: Documents, tokenizer: Tokenizer, config: RowsConfig) -> None:
        super().__init__(documents, config)
        slots = None if config.slots is None else config.slots - _ROOM
        self._as_tokens = TokenSource(documents, tokenizer, dataclasses.replace(config, slots=slots))
        self.tokens = self._as_tokens.tokens
        self.config = dataclasses.replace(config, slots=self._as_tokens.slots + _ROOM)
        spelt = [np.frombuffer(tokenizer.decode([i]), np.uint8) for i in range(tokenizer.vocabulary_size)]
        delimiter = [vocabulary.DELIMITER]
        special = [np.array([i]) for i in range(vocabulary.OFFSET)]
        tokens = [np.append(token + np.int16(vocabulary.OFFSET), delimiter) for token in spelt]
        self._spelt = [ids.astype(self.dtype) for ids in (*special, *tokens)]

    @property
    def length(self) -> int:
        return self.config.bytes + self._as_tokens.slots

    @functools.cached_property
    def rows(self) -> RowIndex:
        return dataclasses.replace(self._as_tokens.rows, slots=self.slots)

    def build(self, begin: int, end: int, after: int, length: int) -> Row:
        pieces = [self._spelt[i] for i in self.tokens.ids[begin : end + 1]]
        # The last target is where the next row begins: the first byte of a token, whose others are that row's.
        ids = np.concatenate([*pieces[:-1], pieces[-1][:1]])
        known = sum(map(len, pieces[: after - begin]))
        inputs, targets = ids[:-1], ids[1:].copy()
        targets[:known] = -1
        found: Any = bpe_starts(inputs[None])[0]
        starts = padded(found, length + 1, 0, bool)
        starts[:2] = True
        return {
            "ids": padded(inputs, length, vocabulary.BOE, self.dtype),
            "targets": padded(targets, length, -1, self.dtype),
            "target_bytes": padded(targets >= vocabulary.OFFSET, length, 0, np.uint16),
            "starts": starts,
        }

    def document_positions(self, document: int) -> tuple[int, Int64[np.ndarray, "boundaries"]]:
        return self._as_tokens.document_positions(document)

    def window_shape(self, found: Windows, context_bytes: int) -> tuple[int, int]:
        most, _ = self._as_tokens.window_shape(found, context_bytes)
        return context_bytes + most, most + _ROOM
