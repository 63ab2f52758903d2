"""The id streams of a split, any stretch of them at once, and the entropies that are stored beside it.

For each document in stored order the byte stream has BOS, the document's bytes (id = byte + 4) and EOS: its length
plus 2 positions. Everything that cuts rows or windows counts in these positions, whatever the family of models.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float16, Int16, Int32, Int64

from bltjax import vocabulary
from bltjax.data.corpus import Corpus, Documents, Split
from bltjax.data.kept import replacing
from bltjax.data.tokenizer import Tokenizer

_CHUNK = 1 << 20  # elements of an array as long as a corpus that are worked on at once


class ByteStream:
    """The ids of documents one after the other, without an array as long as the split.

    Attributes:
      documents: what it is the stream of.
      length: S, positions: bytes plus 2 a document.
      document_starts: int64 [documents + 1], position of each document's BOS and, last, S.
    """

    def __init__(self, documents: Documents) -> None:
        def parts() -> Iterator[Int64[np.ndarray, "part"]]:
            for first in range(0, len(documents) + 1, _CHUNK):
                offsets = documents.offsets[first : first + _CHUNK]
                yield offsets + 2 * np.arange(first, first + len(offsets))

        self.documents = documents
        self.document_starts = documents.keep("positions", np.int64, len(documents) + 1, parts)
        self.length = int(self.document_starts[-1])

    def ids(self, start: int | np.integer = 0, stop: int | np.integer | None = None) -> Int16[np.ndarray, "positions"]:
        """The ids at positions start .. stop - 1.

        Raises:
          IndexError: for positions that the stream does not have.
        """
        start, stop = int(start), self.length if stop is None else int(stop)
        if not 0 <= start <= stop <= self.length:
            raise IndexError(f"positions {start}:{stop} of a stream of {self.length}.")
        if start == stop:
            return np.empty(0, np.int16)
        first, last = np.searchsorted(self.document_starts, (start, stop - 1), "right") - 1
        # Between the specials of these documents lie bytes that are neighbours in the file as well.
        begins = self.document_starts[first : last + 1]
        specials = np.concatenate([begins, self.document_starts[first + 1 : last + 2] - 1])
        kinds = np.repeat(np.array([vocabulary.BOS, vocabulary.EOS], np.int16), len(begins))
        inside = (specials >= start) & (specials < stop)
        specials, kinds = specials[inside] - start, kinds[inside]
        ids = np.empty(stop - start, np.int16)
        is_byte = np.ones(stop - start, bool)
        is_byte[specials] = False
        ids[specials] = kinds
        # The EOS of a document is its last position, so the only special of it that can lie before another is its BOS.
        at = start - int(2 * first + (start > begins[0]))
        ids[is_byte] = self.documents.read(at, at + stop - start - len(specials))
        ids[is_byte] += vocabulary.OFFSET
        return ids


class TokenStream:
    """The stream of a token model: for each document BOS, its tokens (id = token + 4) and EOS.

    Each document is encoded alone. The tokens of a split on disk are kept beside it, by the tokenizer's fingerprint
    (where its folder may be written), so only the first use pays for encoding.

    Attributes:
      documents: what it is the stream of.
      ids: int32 [tokens], the whole stream.
      positions: int64 [tokens + 1], where in the byte stream each token begins and, last, the byte stream's length.
      document_starts: int64 [documents + 1], index of each document's BOS and, last, the number of tokens.
    """

    def __init__(self, documents: Documents, tokenizer: Tokenizer) -> None:
        """
        Raises:
          ValueError: where the tokens do not cover the documents' bytes: kept tokens that are damaged, or a tokenizer
            that is not lossless.
        """
        self.documents = documents
        name = f"tokens-{tokenizer.fingerprint}"
        path = documents.file_of(name)
        self.ids = documents.keep(name, np.int32, None, lambda: _token_ids(documents, tokenizer))
        sizes = np.concatenate([np.ones(vocabulary.OFFSET, np.int64), tokenizer.token_bytes])
        chunks = range(0, len(self.ids), _CHUNK)

        def positions() -> Iterator[Int64[np.ndarray, "part"]]:
            total = np.zeros(1, np.int64)
            yield total
            for first in chunks:
                found = total[-1] + np.cumsum(sizes[self.ids[first : first + _CHUNK]])
                yield found
                total = found

        self.positions = documents.keep(f"{name}.positions", np.int64, len(self.ids) + 1, positions)
        begins = (first + np.flatnonzero(self.ids[first : first + _CHUNK] == vocabulary.BOS) for first in chunks)
        self.document_starts = np.concatenate([np.zeros(0, np.int64), *begins, [len(self.ids)]])
        expected = ByteStream(documents).document_starts
        if not np.array_equal(self.positions[self.document_starts], expected):
            raise ValueError(
                f"the tokens stand for {self.positions[-1]} positions, the documents have {expected[-1]}: "
                + (f"delete {path}, which is damaged." if path else "the tokenizer is not lossless.")
            )


def _token_ids(documents: Documents, tokenizer: Tokenizer) -> Iterator[Int32[np.ndarray, "tokens"]]:
    bos, eos = np.array([vocabulary.BOS], np.int32), np.array([vocabulary.EOS], np.int32)
    for tokens in tokenizer.encode_documents(documents):
        yield np.concatenate([bos, tokens + np.int32(vocabulary.OFFSET), eos])


def write_entropies(
    corpus: Corpus,
    split: Split,
    entropies: Float16[np.ndarray, "positions"] | Iterable[Float16[np.ndarray, "part"]],
    fingerprint: dict[str, Any],
) -> None:
    """Stores the entropies of a split beside it, in the place of any others.

    Args:
      entropies: nats, for each position of the split's id stream: how uncertain the id after it is. One array, or
        its parts one after the other.
      fingerprint: JSON values that say which model made them (hashes of its params and its config); the corpus's own
        fingerprint is added under "corpus".

    Raises:
      ValueError: for another number of entropies than the stream has positions, or one that is negative or not finite.
    """
    length = ByteStream(corpus.documents(split)).length
    about = corpus.folder / f"{split}.entropies.json"
    found, written = hashlib.sha256(), 0
    with replacing(corpus.folder / f"{split}.entropies.f16") as file:
        for part in [entropies] if isinstance(entropies, np.ndarray) else entropies:
            wrong = np.flatnonzero(~(np.isfinite(part) & (part >= 0)))
            if wrong.size:
                place = written + wrong[0]
                raise ValueError(f"entropies[{place}]={part[wrong[0]]}: entropies are finite and not negative.")
            raw = np.ascontiguousarray(part).tobytes()
            found.update(raw)
            file.write(raw)
            written += len(part)
        if written != length:
            raise ValueError(f"entropies has {written} positions: the {split} stream has {length}.")
        # Without its description a file of entropies counts as absent, so a kill in between leaves none, not a wrong
        # pair.
        about.unlink(missing_ok=True)
    description = {
        "positions": length,
        "sha256": found.hexdigest(),
        "fingerprint": {**fingerprint, "corpus": corpus.fingerprint},
    }
    with replacing(about) as file:
        file.write(json.dumps(description, indent=2).encode())


def read_entropies(
    corpus: Corpus, split: Split, fingerprint: dict[str, Any], source: str | None = None
) -> Float16[np.ndarray, "positions"]:
    """The stored entropies of a split in nats, memory-mapped, if the model with this fingerprint made them.

    Args:
      fingerprint: as given to `write_entropies`.
      source: gives those of the documents of this source only, as `Corpus.documents` does.

    Raises:
      FileNotFoundError: where none are stored.
      ValueError: where those that are stored are of another model or corpus, naming what differs, or are damaged.
    """
    path, about = (corpus.folder / f"{split}.entropies.{suffix}" for suffix in ("f16", "json"))
    if not (path.is_file() and about.is_file()):
        raise FileNotFoundError(f"{path} is not there: score the {split} split with the entropy model first.")
    description = json.loads(about.read_bytes())
    stored, wanted = description["fingerprint"], {**fingerprint, "corpus": corpus.fingerprint}
    different = [key for key in sorted({*stored, *wanted}) if stored.get(key) != wanted.get(key)]
    if different:
        pairs = "; ".join(f"{key}: stored {stored.get(key)!r}, wanted {wanted.get(key)!r}" for key in different)
        raise ValueError(
            f"{path} holds the entropies of another model or corpus ({pairs}). Score the {split} split anew with this "
            "entropy model, or use the model that they were made with."
        )
    if path.stat().st_size != 2 * description["positions"]:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, {2 * description['positions']} were written: "
            f"score the {split} split anew."
        )
    found = np.memmap(path, np.float16, "r")
    if source is None:
        return found
    # The documents of a source lie together.
    shards = [shard for shard in corpus.manifest["splits"][split]["shards"] if shard["source"] == source]
    begin = shards[0]["first_byte"] + 2 * shards[0]["first_document"] if shards else 0
    return found[begin : begin + sum(shard["bytes"] + 2 * shard["documents"] for shard in shards)]
