import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from bltjax.data import tokenizer
from bltjax.data.corpus import Documents
from bltjax.data.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent.parent


@given(data=st.binary(max_size=60) | st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_come_back(bpe: Tokenizer, data: bytes):
    ids = bpe.encode(data)
    assert bpe.decode(ids) == data
    assert int(bpe.token_bytes[ids].sum()) == len(data)


@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t'dewrtu"), max_size=40))
def test_valid_text_has_the_tokens_that_the_library_gives_it(bpe: Tokenizer, text: str):
    assert bpe.encode(text.encode()).tolist() == bpe._library.encode(text).ids


def test_text_around_a_bad_byte_keeps_its_tokens(bpe: Tokenizer):
    left, right = b"    return width", b" * height\n"
    ids = [bpe.encode(part).tolist() for part in (left, b"\xff\x80", right)]
    assert bpe.encode(left + b"\xff\x80" + right).tolist() == [*ids[0], *ids[1], *ids[2]]
    assert len(ids[1]) == 2


@given(text=st.text(st.sampled_from("ab1 .\n\t'sé\u2003\x1c\x85"), max_size=80))
def test_long_texts_are_handed_over_in_pieces_without_a_trace(bpe: Tokenizer, text: str):
    data = text.encode()
    whole = bpe.encode(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "_PIECE", 3)
        pieces = list(tokenizer._words(data))
        np.testing.assert_array_equal(bpe.encode(data), whole)
    assert "".join(str(piece) for piece in pieces) == text
    assert len(pieces) > 1 or len(text) < 8 or not tokenizer._SEAM.search(text, 3)


def test_documents_are_encoded_each_alone_and_in_order(bpe: Tokenizer, texts: Documents, monkeypatch):
    monkeypatch.setattr(tokenizer, "_PIECE", 20)
    for document, ids in zip(texts, bpe.encode_documents(texts), strict=True):
        np.testing.assert_array_equal(ids, bpe.encode(document.tobytes()))
        assert ids.dtype == np.int32


TRAINING = """
import sys
import numpy as np
from bltjax.data import tokenizer
from bltjax.data.corpus import Documents

rng = np.random.default_rng(0)
words = [bytes(rng.integers(97, 103, rng.integers(2, 6), dtype=np.uint8)) for _ in range(200)]
documents = Documents.of([b" ".join(rng.choice(words, 50).tolist()) for _ in range(40)])
tokenizer.train(documents, 500, sys.argv[1])
"""


def test_training_gives_the_same_file_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here, elsewhere = tmp_path / "here.json", tmp_path / "elsewhere.json"
    monkeypatch.setattr(sys, "argv", ["", str(here)])
    exec(TRAINING, {})
    subprocess.run([sys.executable, "-c", TRAINING, str(elsewhere)], cwd=ROOT, check=True, timeout=120)
    assert here.read_bytes() == elsewhere.read_bytes()


def test_a_saved_tokenizer_is_the_same_one(tmp_path: Path, bpe: Tokenizer):
    bpe.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == bpe.fingerprint
    assert loaded.vocabulary_size == bpe.vocabulary_size == 280
    np.testing.assert_array_equal(loaded.token_bytes, bpe.token_bytes)


def test_another_vocabulary_has_another_fingerprint(tmp_path: Path, texts: Documents, bpe: Tokenizer):
    assert tokenizer.train(texts, 279, tmp_path / "tokenizer.json").fingerprint != bpe.fingerprint


def test_every_byte_has_a_token_of_its_own(bpe: Tokenizer):
    single = [bpe._table[i] for i in range(bpe.vocabulary_size) if bpe.token_bytes[i] == 1]
    assert sorted(single) == [bytes([byte]) for byte in range(256)]
    assert (bpe.token_bytes > 1).sum() == 280 - 256


def test_too_little_text_for_the_vocabulary(tmp_path: Path):
    with pytest.raises(ValueError, match=r"vocabulary_size=300: 8 bytes of documents are enough for 25\d tokens only"):
        tokenizer.train(Documents.of([b"abab abab"[:8]]), 300, tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="vocabulary_size=256"):
        tokenizer.train(Documents.of([b"abab"]), 256, tmp_path / "tokenizer.json")
    assert list(tmp_path.iterdir()) == []


def test_check_lossless_names_the_document_and_the_place(bpe: Tokenizer, texts: Documents, tmp_path: Path):
    bpe.check_lossless(texts)
    bpe.save(tmp_path / "tokenizer.json")
    lossy = Tokenizer.load(tmp_path / "tokenizer.json")
    lossy._table[lossy.encode(b"\xfe")[0]] = b"?"
    with pytest.raises(ValueError, match="document '2' of 33 bytes comes back as 33 bytes, other from byte 2 on"):
        lossy.check_lossless(texts)


def test_files_that_are_no_tokenizer(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="train a tokenizer first"):
        Tokenizer.load(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"version": "1.0"')
    with pytest.raises(ValueError, match=r"half\.json is not a tokenizer"):
        Tokenizer.load(tmp_path / "half.json")


def byte_level() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(tokenizer._SYMBOLS)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return library


def test_the_byte_symbols_are_the_librarys():
    assert set(tokenizer._SYMBOLS) == set(pre_tokenizers.ByteLevel.alphabet())
    symbols = Tokenizer(byte_level())
    assert symbols.encode(bytes(range(128))).tolist() == list(range(128))
    assert symbols.encode("é日".encode()).tolist() == list("é日".encode())


def test_tokenizers_that_would_lose_bytes_are_refused():
    normalising = byte_level()
    normalising.normalizer = normalizers.NFKC()
    spaced = byte_level()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    added = byte_level()
    added.add_special_tokens(["<|endoftext|>"])
    words = byte_level()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    other = tokenizers.Tokenizer(models.WordLevel({"a": 0}, "a"))
    partial = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    partial.pre_tokenizer = byte_level().pre_tokenizer
    for library, reason in (
        (normalising, "it normalises text"),
        (spaced, "space in front"),
        (added, "added tokens"),
        (words, "not byte-level"),
        (other, "WordLevel, not BPE"),
        (partial, "byte 0x00 has no token, nor have 254 others"),
    ):
        with pytest.raises(ValueError, match=reason):
            Tokenizer(library)


def test_a_vocabulary_of_other_symbols_is_refused(tmp_path: Path, bpe: Tokenizer):
    bpe.save(tmp_path / "tokenizer.json")
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["model"]["vocab"]["日"] = 280
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="token '日' with id 280"):
        Tokenizer.load(tmp_path / "tokenizer.json")
