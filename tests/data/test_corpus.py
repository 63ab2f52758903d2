import json
from pathlib import Path

import numpy as np
import pytest

from bltjax.data.corpus import Corpus, Documents
from bltjax.data.sources import Document
from bltjax.data.write import prepare

DOCUMENTS = [Document(f"file {n}\n", f"document {n} ".encode() * (n + 1)) for n in range(60)]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return prepare(DOCUMENTS, tmp_path / "corpus", heldout_percent=20)


def test_documents_are_what_was_written(corpus: Corpus):
    read = {}
    for split in ("train", "heldout"):
        documents = corpus.documents(split)
        assert documents.lengths.tolist() == [len(document) for document in documents]
        assert documents.total_bytes == sum(len(document) for document in documents)
        read |= {name: document.tobytes() for name, document in zip(documents.names, documents, strict=True)}
    assert read == {document.name: document.data for document in DOCUMENTS}


def test_a_document_in_memory_has_the_digest_it_has_on_disk(corpus: Corpus):
    stored = corpus.documents("heldout")
    memory = Documents.of([document.tobytes() for document in stored])
    np.testing.assert_array_equal(memory.digests, stored.digests)
    np.testing.assert_array_equal(memory.choose(500), stored.choose(500))


def test_documents_end():
    documents = Documents.of([b"ab", b"c"])
    assert documents[-1].tobytes() == b"c"
    assert len(list(documents)) == len(documents) == 2
    with pytest.raises(IndexError):
        documents[2]
    with pytest.raises(IndexError):
        documents[-3]
    with pytest.raises(ValueError, match=r"documents\[1\] is empty"):
        Documents.of([b"a", b""])


@pytest.mark.parametrize("budget", [10, 100, 1000, 5000])
def test_a_budget_of_bytes_is_kept_and_used(budget: int):
    rng = np.random.default_rng(budget)
    documents = Documents.of([rng.bytes(n) for n in range(10, 200)])
    chosen = documents.choose(budget)
    left = budget - documents.lengths[chosen].sum()
    assert left >= 0
    others = np.delete(documents.lengths, chosen)
    assert others.min() > left, "another document would still have fitted"
    assert (np.diff(chosen) > 0).all()


def test_the_choice_within_a_budget_does_not_depend_on_the_order_of_documents():
    data = [bytes([n]) * (n + 1) for n in range(50)]
    forwards, backwards = Documents.of(data), Documents.of(data[::-1])
    assert {forwards[i].tobytes() for i in forwards.choose(200)} == {
        backwards[i].tobytes() for i in backwards.choose(200)
    }


def test_a_budget_below_every_document_is_refused():
    with pytest.raises(ValueError, match="max_bytes=2: the shortest of 2 documents has 3 bytes"):
        Documents.of([b"abc", b"defg"]).choose(2)
    assert Documents.of([b"abc", b"defg"]).choose(None).tolist() == [0, 1]


def test_a_folder_without_a_corpus(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no corpus"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1'])
def test_a_manifest_that_is_none(corpus: Corpus, text: str):
    (corpus.folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="is not the manifest of a corpus"):
        Corpus.open(corpus.folder)


def test_a_manifest_of_another_format(corpus: Corpus):
    (corpus.folder / "manifest.json").write_text(json.dumps({**corpus.manifest, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        Corpus.open(corpus.folder)


def test_a_file_cut_short_or_lost_is_named_at_opening(corpus: Corpus):
    path = corpus.folder / "train.bytes"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train\.bytes has \d+ bytes, the manifest says \d+"):
        Corpus.open(corpus.folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"train\.bytes is missing"):
        Corpus.open(corpus.folder)


def test_a_changed_byte_is_found_by_verification(corpus: Corpus):
    corpus.verify()
    path = corpus.folder / "heldout.bytes"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"heldout\.bytes has SHA-256"):
        Corpus.open(corpus.folder).verify()


def test_an_unknown_split_is_refused(corpus: Corpus):
    with pytest.raises(Exception, match="validation"):
        corpus.documents("validation")  # pyright: ignore[reportArgumentType]
