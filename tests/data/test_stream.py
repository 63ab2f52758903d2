import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltjax import vocabulary
from bltjax.data.corpus import Corpus, Documents
from bltjax.data.sources import Document
from bltjax.data.stream import ByteStream, TokenStream, read_entropies, write_entropies
from bltjax.data.tokenizer import Tokenizer
from bltjax.data.write import prepare

WHO = {"params": "aa11", "config": "bb22"}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return prepare([Document(str(n), b"%d %d" % (n, n)) for n in range(40)], tmp_path / "corpus", heldout_percent=30)


@given(st.lists(st.binary(min_size=1, max_size=7), min_size=1, max_size=8), st.data())
def test_any_stretch_of_the_stream_is_that_of_the_encoded_documents(documents: list[bytes], data: st.DataObject):
    stream = ByteStream(Documents.of(documents))
    whole = np.concatenate([vocabulary.encode(document, eos=True) for document in documents])
    assert stream.length == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    np.testing.assert_array_equal(stream.ids(start, stop), whole[start:stop])
    assert (whole[stream.document_starts[:-1]] == vocabulary.BOS).all()
    assert (whole[stream.document_starts[1:] - 1] == vocabulary.EOS).all()


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 6), (4, 3), (6, 6)])
def test_positions_beyond_the_stream_are_refused(start: int, stop: int):
    with pytest.raises(IndexError):
        ByteStream(Documents.of([b"abc"])).ids(start, stop)


def test_the_token_stream_stands_for_the_same_bytes(texts: Documents, bpe: Tokenizer):
    stream = TokenStream(texts, bpe)
    for i, document in enumerate(texts):
        begin, end = stream.document_starts[i : i + 2]
        ids = stream.ids[begin:end]
        assert (ids[0], ids[-1]) == (vocabulary.BOS, vocabulary.EOS)
        assert (ids[1:-1] >= vocabulary.OFFSET).all()
        assert bpe.decode(ids[1:-1] - vocabulary.OFFSET) == document.tobytes()
    np.testing.assert_array_equal(stream.positions[stream.document_starts], ByteStream(texts).document_starts)
    assert (np.diff(stream.positions) >= 1).all()


def test_tokens_are_kept_beside_the_corpus_and_read_back(
    corpus: Corpus, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    first = TokenStream(corpus.documents("train"), bpe)
    monkeypatch.setattr(Tokenizer, "encode_documents", lambda *_: pytest.fail("encoded twice"))
    second = TokenStream(corpus.documents("train"), bpe)
    np.testing.assert_array_equal(first.ids, second.ids)
    Corpus.open(corpus.folder).verify()


def test_damaged_kept_tokens_are_refused(corpus: Corpus, bpe: Tokenizer):
    ids = np.array(TokenStream(corpus.documents("train"), bpe).ids)
    path = corpus.folder / f"train.tokens-{bpe.fingerprint}.npy"
    np.save(path, np.delete(ids, 3))
    with pytest.raises(ValueError, match=r"delete .*train\.tokens"):
        TokenStream(corpus.documents("train"), bpe)


def entropies_of(corpus: Corpus, split: str) -> np.ndarray:
    length = ByteStream(corpus.documents(split)).length  # pyright: ignore[reportArgumentType]
    return np.random.default_rng(1).random(length).astype(np.float16)


def test_entropies_come_back(corpus: Corpus):
    entropies = entropies_of(corpus, "train")
    write_entropies(corpus, "train", entropies, WHO)
    np.testing.assert_array_equal(read_entropies(corpus, "train", WHO), entropies)
    newer = entropies[::-1].copy()
    write_entropies(corpus, "train", newer, {**WHO, "params": "other"})
    np.testing.assert_array_equal(read_entropies(corpus, "train", {**WHO, "params": "other"}), newer)
    with pytest.raises(FileNotFoundError, match="score the heldout split"):
        read_entropies(corpus, "heldout", WHO)


def test_entropies_of_another_model_are_refused_by_name(corpus: Corpus):
    write_entropies(corpus, "train", entropies_of(corpus, "train"), WHO)
    with pytest.raises(ValueError, match="params: stored 'aa11', wanted 'cc33'") as refused:
        read_entropies(corpus, "train", {**WHO, "params": "cc33"})
    assert "config" not in str(refused.value)
    assert "Score the train split anew" in str(refused.value)
    with pytest.raises(ValueError, match="config: stored 'bb22', wanted None"):
        read_entropies(corpus, "train", {"params": "aa11"})


def test_entropies_of_another_corpus_are_refused_by_name(corpus: Corpus):
    entropies = entropies_of(corpus, "train")
    write_entropies(corpus, "train", entropies, WHO)
    corpus.fingerprint = "0123"
    with pytest.raises(ValueError, match=r"corpus: stored '[0-9a-f]{16}', wanted '0123'"):
        read_entropies(corpus, "train", WHO)


def test_entropies_that_cannot_be_right_are_not_written(corpus: Corpus):
    entropies = entropies_of(corpus, "train")
    with pytest.raises(ValueError, match=rf"has {len(entropies) - 1} positions: the train stream has {len(entropies)}"):
        write_entropies(corpus, "train", entropies[1:], WHO)
    for wrong in (np.nan, np.inf, -1):
        entropies[7] = wrong
        with pytest.raises(ValueError, match=r"entropies\[7\]="):
            write_entropies(corpus, "train", entropies, WHO)
    assert not list(corpus.folder.glob("*entropies*"))


def test_entropies_cut_short_are_refused(corpus: Corpus):
    write_entropies(corpus, "train", entropies_of(corpus, "train"), WHO)
    path = corpus.folder / "train.entropies.f16"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"bytes, \d+ were written"):
        read_entropies(corpus, "train", WHO)


def test_entropies_whose_writing_was_cut_off_are_absent(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    write_entropies(corpus, "train", entropies_of(corpus, "train"), WHO)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # After the new entropies have taken the place of the old ones, before anything describes them.
    monkeypatch.setattr(json, "dumps", killed)
    with pytest.raises(KeyboardInterrupt):
        write_entropies(corpus, "train", entropies_of(corpus, "train") * np.float16(0.5), WHO)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        read_entropies(corpus, "train", WHO)
