"""A byte-level BPE for the token baseline: lossless on any bytes, trained on the training split alone.

Text is cut into words by the expression of GPT-2 and each word into tokens by BPE over the 256 byte symbols, both by
the `tokenizers` library, with nothing normalised and no space put in front. Bytes that are not valid UTF-8 have no
words: each of them is the token of that byte. So valid text gets exactly the tokens that the library gives it, the
saved file is one that other programs read, and every document comes back byte for byte.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32, Integer
from tokenizers import decoders, models, pre_tokenizers, trainers

from bltjax.data.corpus import Documents
from bltjax.data.kept import replacing

_INVALID = re.compile("([\udc80-\udcff]+)")  # how Python decodes bytes that are not UTF-8 (surrogateescape)
_SEAM = re.compile("[!-~](?=[ \n])")  # no word goes beyond such a place, and none looks beyond it
_PIECE = 1 << 20  # characters handed over at once: bounds memory, and lets the library work on pieces side by side


def _byte_symbols() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself where it can be seen."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = [chr(byte) for byte in range(256)]
    for i, byte in enumerate(sorted(set(range(256)) - set(visible))):
        symbols[byte] = chr(256 + i)
    return symbols


_SYMBOLS = _byte_symbols()


def _words(data: bytes) -> Iterator[str | bytes]:
    """A document as stretches of text (str) and of bytes that are not valid UTF-8 (bytes), in order."""
    for i, stretch in enumerate(_INVALID.split(data.decode("utf-8", "surrogateescape"))):
        if i % 2:
            yield stretch.encode("utf-8", "surrogateescape")
            continue
        start = 0
        while len(stretch) - start > _PIECE and (seam := _SEAM.search(stretch, start + _PIECE)):
            yield stretch[start : seam.end()]
            start = seam.end()
        if start < len(stretch):
            yield stretch[start:]


class Tokenizer:
    """A trained byte-level BPE.

    Ids are those of the vocabulary, 0 .. vocabulary_size - 1; a model's ids are 4 higher, after the special ids.

    Attributes:
      vocabulary_size: tokens, the 256 single bytes among them; special ids are not counted.
      token_bytes: int64 [vocabulary_size], bytes that each token stands for.
      fingerprint: 16 hexadecimal digits that stand for the vocabulary and the merges.
    """

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        """
        Raises:
          ValueError: for a tokenizer that is not a byte-level BPE as `train` makes it.
        """
        description = json.loads(library.to_str())
        _check_kind(description)
        self._library = library
        vocabulary: dict[str, int] = description["model"]["vocab"]
        self.vocabulary_size = len(vocabulary)
        byte_of = {symbol: byte for byte, symbol in enumerate(_SYMBOLS)}
        self._table: list[bytes] = [b""] * len(vocabulary)
        for token, i in vocabulary.items():
            if not token or not set(token) <= byte_of.keys() or not 0 <= i < len(vocabulary) or self._table[i]:
                raise ValueError(f"token {token!r} with id {i} is not one of a byte-level vocabulary numbered from 0.")
            self._table[i] = bytes(byte_of[symbol] for symbol in token)
        missing = [byte for byte, symbol in enumerate(_SYMBOLS) if symbol not in vocabulary]
        if missing:
            raise ValueError(
                f"byte {missing[0]:#04x} has no token, nor have {len(missing) - 1} others: bytes get lost."
            )
        self._byte_ids = np.array([vocabulary[symbol] for symbol in _SYMBOLS], np.int32)
        self.token_bytes = np.array([len(b) for b in self._table], np.int64)
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in description["model"]["merges"]]
        canonical = json.dumps([vocabulary, merges], sort_keys=True, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads a `tokenizer.json`.

        Raises:
          FileNotFoundError: where there is none.
          ValueError: for a file that is no tokenizer, or one of another kind.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is not there: train a tokenizer first.")
        try:
            library = tokenizers.Tokenizer.from_file(os.fspath(path))
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"{path} is not a tokenizer that can be read ({error}): train it anew.") from error
        return cls(library)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `tokenizer.json`, whole or not at all."""
        with replacing(Path(path)) as file:
            file.write(self._library.to_str(pretty=True).encode())

    def encode(self, data: bytes) -> Int32[np.ndarray, "tokens"]:
        """The tokens of one document."""
        return next(iter(self.encode_documents([data])))

    def decode(self, ids: Sequence[int] | Integer[np.ndarray, "tokens"]) -> bytes:
        """The bytes that tokens stand for."""
        return b"".join(self._table[i] for i in ids)

    def encode_documents(self, documents: Iterable[Any]) -> Iterator[Int32[np.ndarray, "tokens"]]:
        """The tokens of each document (bytes, or uint8 arrays), alone, in order."""
        waiting: list[list[str | bytes]] = []
        size = 0
        for document in documents:
            waiting.append(list(_words(bytes(document))))
            size += len(document)
            if size >= 4 * _PIECE:
                yield from self._encode_words(waiting)
                waiting, size = [], 0
        yield from self._encode_words(waiting)

    def _encode_words(self, documents: Sequence[Sequence[str | bytes]]) -> Iterator[Int32[np.ndarray, "tokens"]]:
        texts = [words for document in documents for words in document if isinstance(words, str)]
        encoded = iter(self._library.encode_batch_fast(texts, add_special_tokens=False))
        for document in documents:
            parts = [
                np.array(next(encoded).ids, np.int32)
                if isinstance(words, str)
                else self._byte_ids[np.frombuffer(words, np.uint8)]
                for words in document
            ]
            yield np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def check_lossless(self, documents: Documents) -> None:
        """Encodes and decodes every document.

        Raises:
          ValueError: for the first that does not come back byte for byte, naming it and the place.
        """
        for i, ids in enumerate(self.encode_documents(documents)):
            data, back = documents[i].tobytes(), self.decode(ids)
            if data != back:
                same = next((n for n, (a, b) in enumerate(zip(data, back, strict=False)) if a != b), None)
                place = min(len(data), len(back)) if same is None else same
                raise ValueError(
                    f"document {documents.names[i]!r} of {len(data)} bytes comes back as {len(back)} bytes, other from "
                    f"byte {place} on: this tokenizer is not lossless; train a byte-level one."
                )


def train(documents: Documents, vocabulary_size: int, path: str | os.PathLike[str]) -> Tokenizer:
    """Trains a byte-level BPE and saves it; the same documents give the same file.

    Args:
      documents: the training split; bytes that are not valid UTF-8 are tokens of their own and count for no merge.
      vocabulary_size: tokens wanted, the 256 single bytes among them. A token model's vocabulary is 4 larger.
      path: of the `tokenizer.json` to write.

    Raises:
      ValueError: for a size below 257, or one that the documents are too few for: each merge must occur twice.
    """
    if vocabulary_size <= 256:
        raise ValueError(f"vocabulary_size={vocabulary_size}: 256 single bytes and at least one merge are needed.")
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        initial_alphabet=_SYMBOLS,
        special_tokens=[],
        show_progress=False,
    )
    texts = (words for document in documents for words in _words(document.tobytes()) if isinstance(words, str))
    library.train_from_iterator(texts, trainer)
    found = library.get_vocab_size()
    if found != vocabulary_size:
        raise ValueError(
            f"vocabulary_size={vocabulary_size}: {documents.total_bytes} bytes of documents are enough for {found} "
            f"tokens only. Ask for at most {found}, or train on more text."
        )
    tokenizer = Tokenizer(library)
    tokenizer.save(path)
    return tokenizer


def _check_kind(description: dict[str, Any]) -> None:
    """Refuses a tokenizer that could change or lose bytes."""
    model, splitter = description["model"], description["pre_tokenizer"] or {}
    problems = {
        f"its model is {model.get('type')}, not BPE": model.get("type") != "BPE",
        "it normalises text": description["normalizer"] is not None,
        "it has added tokens": bool(description["added_tokens"]),
        "it drops merges at random": bool(model.get("dropout")),
        "it is not byte-level": splitter.get("type") != "ByteLevel",
        "it puts a space in front of a text": bool(splitter.get("add_prefix_space")),
        "it marks parts of words": bool(model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")),
    }
    wrong = [problem for problem, is_so in problems.items() if is_so]
    if wrong:
        raise ValueError(f"this tokenizer can't be used: {'; '.join(wrong)}. Train one with bltjax.data.tokenizer.")
