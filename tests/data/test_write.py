import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bltjax.data import sources
from bltjax.data.corpus import Corpus
from bltjax.data.sources import Document
from bltjax.data.write import prepare

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = [Document(str(n), b"%d bottles" % n) for n in range(300)]


def contents(corpus: Corpus, split: str) -> set[bytes]:
    return {document.tobytes() for document in corpus.documents(split)}


def test_every_document_is_in_exactly_one_split(tmp_path: Path):
    corpus = prepare(DOCUMENTS, tmp_path / "corpus", heldout_percent=10)
    train, heldout = contents(corpus, "train"), contents(corpus, "heldout")
    assert not train & heldout
    assert train | heldout == {document.data for document in DOCUMENTS}
    assert 10 < len(heldout) < 60


def test_the_split_depends_on_a_documents_bytes_alone(tmp_path: Path):
    other = [Document("renamed", document.data) for document in reversed(DOCUMENTS)] + [Document("more", b"more")]
    whole = prepare(DOCUMENTS, tmp_path / "whole", heldout_percent=10)
    changed = prepare(other, tmp_path / "changed", heldout_percent=10)
    assert contents(changed, "heldout") - {b"more"} == contents(whole, "heldout")
    larger = prepare(DOCUMENTS, tmp_path / "larger", heldout_percent=20)
    assert contents(whole, "heldout") < contents(larger, "heldout"), "a larger share holds out more, not others"


def test_the_same_documents_give_the_same_folder(tmp_path: Path):
    folders = [prepare(DOCUMENTS, tmp_path / name, heldout_percent=10).folder for name in ("one", "two")]
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert files[0] == files[1]


def test_the_fingerprint_stands_for_contents_and_rule(tmp_path: Path):
    renamed = [Document("renamed", document.data) for document in DOCUMENTS]
    # The same bytes in the same order, but divided otherwise: 100 and 11 instead of 10 and 011.
    shifted = [Document("", b"10"), Document("", b"011")], [Document("", b"100"), Document("", b"11")]
    prints = [
        prepare(documents, tmp_path / str(n), heldout_percent=percent).fingerprint
        for n, (documents, percent) in enumerate(
            [(DOCUMENTS, 10), (renamed, 10), (DOCUMENTS, 11), (DOCUMENTS[1:], 10), (shifted[0], 0), (shifted[1], 0)]
        )
    ]
    assert prints[0] == prints[1]
    assert len(set(prints[1:])) == 5


def test_duplicates_and_empty_documents_are_left_out_and_counted(tmp_path: Path):
    documents = [*DOCUMENTS, Document("empty", b""), *DOCUMENTS[:7], Document("empty too", b"")]
    corpus = prepare(documents, tmp_path / "corpus", heldout_percent=10)
    assert corpus.manifest["read"] == {
        "documents": 309,
        "bytes": sum(len(document.data) for document in documents),
        "empty": 2,
        "duplicates": 7,
        "duplicate_bytes": sum(len(document.data) for document in DOCUMENTS[:7]),
    }
    stored = sum(split["bytes"] for split in corpus.manifest["splits"].values())
    assert stored == corpus.manifest["read"]["bytes"] - corpus.manifest["read"]["duplicate_bytes"]


def test_where_documents_came_from_is_in_the_manifest(tmp_path: Path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(b"\x00\xff")
    corpus = prepare(sources.read([str(tmp_path / "text")]), tmp_path / "corpus", heldout_percent=0)
    assert corpus.manifest["origin"] == {"paths": [str(tmp_path / "text")], "files": 1, "left_out": {}}
    assert contents(corpus, "train") == {b"\x00\xff"}
    assert len(corpus.documents("heldout")) == 0


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "the corpus has no documents"),
        ([Document("a", b""), Document("b", b"")], "the corpus has no bytes: 2 documents were read"),
        ([Document("a", b"only one")], r"the (train|heldout) split is empty: none of 1 distinct documents \(8 bytes"),
    ],
)
def test_a_corpus_of_too_little_is_refused_and_nothing_is_left(tmp_path: Path, documents: list, message: str):
    with pytest.raises(ValueError, match=message):
        prepare(documents, tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("percent", [-1.0, 0.001, 50.5, float("nan")])
def test_a_share_out_of_range_is_refused(tmp_path: Path, percent: float):
    with pytest.raises(ValueError, match="heldout_percent="):
        prepare(DOCUMENTS, tmp_path / "corpus", heldout_percent=percent)


def test_an_error_while_reading_leaves_nothing(tmp_path: Path):
    def broken() -> Iterator[Document]:
        yield from DOCUMENTS
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        prepare(broken(), tmp_path / "deep" / "corpus")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_killed_process_leaves_no_corpus_and_the_next_one_clears_up(tmp_path: Path):
    killed = """
        import os, signal, sys
        from bltjax.data.sources import Document
        from bltjax.data.write import prepare

        def documents():
            for n in range(1000):
                yield Document(str(n), b"%d" % n)
            os.kill(os.getpid(), signal.SIGKILL)

        prepare(documents(), sys.argv[1])
    """
    code = "\n".join(line.removeprefix("        ") for line in killed.splitlines())
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "corpus")], cwd=ROOT, timeout=120)
    assert done.returncode == -9
    assert not (tmp_path / "corpus").exists()
    assert len(list(tmp_path.iterdir())) == 1, "what the killed process had begun"
    prepare(DOCUMENTS, tmp_path / "corpus")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_two_at_once_do_not_disturb_each_other(tmp_path: Path):
    def slow() -> Iterator[Document]:
        yield from DOCUMENTS
        prepare(DOCUMENTS[:200], tmp_path / "corpus", heldout_percent=10)

    # The second one, begun and finished within the first, must neither clear away nor be overwritten by it.
    with pytest.raises(OSError, match="corpus"):
        prepare(slow(), tmp_path / "corpus", heldout_percent=10)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert Corpus.open(tmp_path / "corpus").manifest["read"]["documents"] == 200


def test_what_stands_there_is_not_lost(tmp_path: Path):
    corpus = prepare(DOCUMENTS, tmp_path / "corpus", heldout_percent=10)
    with pytest.raises(FileExistsError, match="holds a corpus already"):
        prepare(DOCUMENTS[1:], corpus.folder, heldout_percent=10)
    with pytest.raises(ValueError, match="no documents"):
        prepare([], corpus.folder, overwrite=True)
    assert Corpus.open(corpus.folder).fingerprint == corpus.fingerprint
    assert prepare(DOCUMENTS[1:], corpus.folder, 10, overwrite=True).fingerprint != corpus.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(FileExistsError, match="holds something else"):
        prepare(DOCUMENTS, tmp_path / "thesis", 10, overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"):
        prepare(DOCUMENTS, tmp_path / "thesis" / "chapter.tex", 10)


def test_an_empty_folder_may_be_used(tmp_path: Path):
    (tmp_path / "corpus").mkdir()
    assert len(prepare(DOCUMENTS, tmp_path / "corpus", 10).documents("train")) > 200
