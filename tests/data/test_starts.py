import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bltjax.config import PatcherConfig, RowsConfig
from bltjax.data import kept, starts, stream, views
from bltjax.data.corpus import Corpus, Documents
from bltjax.data.prepare import prepare_shards
from bltjax.data.slices import Given
from bltjax.data.starts import patch_starts
from bltjax.data.stream import ByteStream
from bltjax.data.views import BLTSource
from bltjax.patching import stream_starts

PATCHERS = [
    PatcherConfig(rule="space"),
    PatcherConfig(rule="strided", size=3),
    PatcherConfig(rule="entropy", threshold=1.0),
    PatcherConfig(rule="entropy", variant="monotonic", threshold=0.2, max_patch_length=5),
]


@pytest.mark.parametrize("group", [1, 100, 10**9])
@pytest.mark.parametrize("patcher", PATCHERS, ids=str)
def test_groups_of_documents_have_the_starts_of_the_whole_stream(
    texts: Documents, monkeypatch: pytest.MonkeyPatch, patcher: PatcherConfig, group: int
):
    monkeypatch.setattr(starts, "_POSITIONS", group)
    whole = ByteStream(texts)
    entropies = np.random.default_rng(0).uniform(0, 2, whole.length).astype(np.float16)
    expected = stream_starts(patcher, whole.document_starts, ids=whole.ids(), entropies=entropies)
    np.testing.assert_array_equal(patch_starts(texts, patcher, entropies), expected)


def test_entropies_of_another_stream_are_refused(texts: Documents):
    with pytest.raises(ValueError, match="entropies: 7 values given"):
        patch_starts(texts, PATCHERS[2], np.zeros(7, np.float16))
    with pytest.raises(ValueError, match="entropies: None given"):
        patch_starts(texts, PATCHERS[2])


def corpus_of(folder: Path, size: int) -> Corpus:
    """A corpus of `size` random bytes in documents of 4,096."""
    folder.mkdir()
    (folder / "text").write_bytes(np.random.default_rng(size).bytes(size))
    given = [Given(str(folder / "text"), "a")]
    prepare_shards(given, folder / "corpus", piece_bytes=4096, shard_bytes=1 << 20, heldout_percent=0)
    return Corpus.open(folder / "corpus")


@pytest.mark.slow
def test_what_training_holds_in_memory_is_a_percent_of_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept, "SMALL", 0)
    # What is worked on at once is as much for any corpus; here it must not hide what grows.
    for room, name in ((starts, "_POSITIONS"), (stream, "_CHUNK"), (views, "_CHUNK")):
        monkeypatch.setattr(room, name, 256)
    sizes = (2 << 20, 10 << 20)
    peaks = dict.fromkeys(sizes, 1 << 62)
    for turn, size in enumerate(sizes * 2):  # of two turns the lower: what other threads take meanwhile is counted too
        corpus = corpus_of(tmp_path / str(turn), size)
        gc.collect()
        tracemalloc.start()
        documents = corpus.documents("train")
        found = patch_starts(documents, PatcherConfig(rule="strided", size=5))
        source = BLTSource(documents, found, RowsConfig(bytes=24_576))
        order = source.order(0)
        for k in range(20):
            source.row(order.row(k))
        peaks[size] = min(peaks[size], tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    share = (peaks[sizes[1]] - peaks[sizes[0]]) / (sizes[1] - sizes[0])
    assert share < 0.01, f"{share:.2%} of the corpus: {peaks}"
    kept_files = {path.name.split("-")[0] for path in corpus.folder.glob("train.*.npy")}
    assert kept_files == {"train.offsets.npy", "train.records.npy", "train.positions.npy", "train.starts"}


def test_a_changed_rule_or_other_entropies_are_other_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept, "SMALL", 0)
    documents = corpus_of(tmp_path / "input", 1 << 16).documents("train")
    length = ByteStream(documents).length
    wanted = {"model": "a"}
    low, high = (np.full(length, value, np.float16) for value in (0.5, 2.0))
    first = patch_starts(documents, PATCHERS[2], low, wanted)
    assert patch_starts(documents, PATCHERS[2], high, {"model": "b"}).sum() > first.sum()
    np.testing.assert_array_equal(patch_starts(documents, PATCHERS[2], high, wanted), first)  # read, not made
