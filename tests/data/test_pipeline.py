import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from bltjax import vocabulary
from bltjax.batch import Batch
from bltjax.config import RowsConfig
from bltjax.data.corpus import Corpus, Documents
from bltjax.data.pipeline import BLTSource, ByteSource, StreamSource, TokenSource, heldout_batches, train_batches
from bltjax.data.sources import Document
from bltjax.data.stream import ByteStream
from bltjax.data.tokenizer import Tokenizer
from bltjax.data.write import prepare
from bltjax.patching import Patches

ROWS = RowsConfig(bytes=48, batch=4, seed=5)
FIELDS = ("ids", "targets", "target_bytes", "starts")


def random_starts(documents: Documents) -> np.ndarray:
    stream = ByteStream(documents)
    starts = np.random.default_rng(0).random(stream.length) < 0.3
    starts[stream.document_starts[:-1]] = True
    starts[stream.document_starts[:-1] + 1] = True
    return starts


@pytest.fixture(params=["byte", "blt", "token"])
def source(request: pytest.FixtureRequest, texts: Documents, bpe: Tokenizer) -> StreamSource:
    return {
        "byte": lambda: ByteSource(texts, ROWS),
        "blt": lambda: BLTSource(texts, random_starts(texts), ROWS),
        "token": lambda: TokenSource(texts, bpe, ROWS),
    }[request.param]()


def bytes_of(source: StreamSource, ids: np.ndarray) -> bytes:
    if isinstance(source, TokenSource):
        return source.tokenizer.decode(ids - vocabulary.OFFSET)
    return vocabulary.decode(ids)


def assert_equal(one: Batch, other: Batch) -> None:
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def take(count: int, *args, **kwargs) -> list[Batch]:
    return list(itertools.islice(train_batches(*args, **kwargs), count))


def test_a_run_goes_on_from_its_step_number(source: StreamSource):
    unbroken = take(25, source, ROWS)
    assert 25 * ROWS.batch > 2 * len(source.rows), "further than one epoch"
    for step in (1, 7, 19):
        for one, other in zip(take(25 - step, source, ROWS, first_step=step), unbroken[step:], strict=True):
            assert_equal(one, other)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batch_of_one(source: StreamSource, count: int):
    parts = [take(9, source, ROWS, 3, process_index=i, process_count=count) for i in range(count)]
    for step, whole in enumerate(take(9, source, ROWS, 3)):
        for field in FIELDS:
            if getattr(whole, field) is not None:
                union = np.concatenate([getattr(part[step], field) for part in parts])
                np.testing.assert_array_equal(union, getattr(whole, field))


def test_an_epoch_holds_every_byte_once_and_the_next_one_otherwise(source: StreamSource):
    rows = len(source.rows)
    config = dataclasses.replace(source.config, batch=1)
    batches = take(2 * rows, source, config)
    epochs = batches[:rows], batches[rows:]
    for epoch in epochs:
        assert sum(int(batch.target_bytes.sum()) for batch in epoch) == source.documents.total_bytes
        assert sum(int((batch.targets == vocabulary.EOS).sum()) for batch in epoch) == len(source.documents)
    texts = [[batch.targets.tobytes() for batch in epoch] for epoch in epochs]
    assert sorted(texts[0]) == sorted(texts[1])
    assert texts[0] != texts[1]
    other_seed = take(rows, source, dataclasses.replace(config, seed=6))
    assert [batch.targets.tobytes() for batch in other_seed] != texts[0]


def test_families_read_the_same_text_in_the_same_order(texts: Documents, bpe: Tokenizer):
    by_byte = ByteSource(texts, ROWS)
    order = by_byte.order(seed=2)
    rank = np.argsort([order.row(k) for k in range(len(by_byte.rows))])
    for source in (BLTSource(texts, random_starts(texts), ROWS), TokenSource(texts, bpe, ROWS)):
        own = source.order(seed=2)
        cells = [source.rows.starts[own.row(k)] // ROWS.bytes for k in range(len(source.rows))]
        assert (np.diff(rank[cells]) >= 0).all()
        assert len(set(cells)) > 0.9 * len(by_byte.rows)


def test_batches_hold_rows_in_the_order_drawn(source: StreamSource):
    order = source.order(ROWS.seed)
    for step, batch in enumerate(take(3, source, ROWS)):
        for i in range(ROWS.batch):
            row = source.row(order.row(step * ROWS.batch + i))
            for field, value in row.items():
                np.testing.assert_array_equal(getattr(batch, field)[i], value)


def test_a_corpus_below_one_row_or_one_batch_is_refused_with_numbers():
    documents = Documents.of([b"0123456789"] * 3)
    with pytest.raises(ValueError, match=r"30 bytes in 3 documents, less than one row of rows\.bytes=36"):
        train_batches(ByteSource(documents, RowsConfig(bytes=36)), RowsConfig(bytes=36))
    with pytest.raises(ValueError, match=r"30 bytes in 3 documents: 4 rows of rows\.bytes=10, .* rows\.batch=5"):
        train_batches(ByteSource(documents, RowsConfig(bytes=10, batch=5)), RowsConfig(bytes=10, batch=5))
    assert take(1, ByteSource(documents, RowsConfig(bytes=10, batch=4)), RowsConfig(bytes=10, batch=4))


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (dataclasses.replace(ROWS, bytes=32), {}, r"rows\.bytes=32"),
        (ROWS, {"first_step": -1}, "first_step=-1"),
        (ROWS, {"process_count": 3}, "multiple of the 3 processes"),
        (ROWS, {"process_index": 2, "process_count": 2}, "process_index=2"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_once(
    source: StreamSource, config: RowsConfig, arguments, message: str
):
    with pytest.raises(ValueError, match=message):
        train_batches(source, config, **arguments)


def test_an_error_while_a_row_is_built_reaches_the_caller(source: StreamSource, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(source, "build", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        take(1, source, ROWS)


@pytest.mark.parametrize(("context", "stride"), [(40, 40), (40, 23), (24, 11), (1000, 500)])
def test_every_heldout_byte_is_scored_once(source: StreamSource, context: int, stride: int):
    batches = heldout_batches(source, context, stride, batch=5)
    scored: dict[int, list[np.ndarray]] = {}
    for documents, batch in zip(batches.row_documents, batches, strict=True):
        for document, targets in zip(documents, batch.targets, strict=True):
            scored.setdefault(int(document), []).append(targets[targets >= 0])
    assert not np.concatenate(scored.pop(-1, [np.zeros(0)])).size
    for i, document in enumerate(source.documents):
        ids = np.concatenate(scored.pop(i))
        assert ids[-1] == vocabulary.EOS
        assert bytes_of(source, ids[:-1]) == document.tobytes()
    assert not scored
    assert batches.bytes == source.documents.total_bytes == sum(int(batch.target_bytes.sum()) for batch in batches)


@pytest.mark.parametrize("context", [24, 40, 1000])
def test_heldout_batches_have_one_shape_and_patches_accept_them(source: StreamSource, context: int):
    batches = heldout_batches(source, context, context, batch=3)
    most = 0
    for batch in batches:
        assert batch.ids.shape == batch.targets.shape == batch.target_bytes.shape == (3, batches.length)
        if isinstance(source, BLTSource):
            assert batch.starts is not None
            patches = Patches.from_starts(batch.starts, batches.slots)
            most = max(most, int(patches.encoder_ids.max()) + 1)
        else:
            most = max(most, int((batch.ids != vocabulary.BOE).sum(axis=1).max()))
    assert most == (batches.slots if not isinstance(source, ByteSource) else most)


def test_a_heldout_window_sees_its_context_and_nothing_of_other_documents(texts: Documents):
    source = BLTSource(texts, random_starts(texts), ROWS)
    stream = ByteStream(texts)
    batches = heldout_batches(source, 24, 10, batch=1)
    for (document,), batch in zip(batches.row_documents, batches, strict=True):
        begin, end = stream.document_starts[document : document + 2]
        text, starts = stream.ids(begin, end), source.stream_starts[begin:end]
        real = batch.ids[0][: int((batch.targets[0] >= 0).nonzero()[0][-1]) + 1]
        places = [
            i for i in range(len(text) - len(real)) if (text[i : i + len(real)] == real).all()
            and (starts[i + 2 : i + len(real) + 1] == batch.starts[0, 2 : len(real) + 1]).all()
        ]  # fmt: skip
        assert places, "a window is a stretch of its document"
        assert len(real) == min(24, len(text) - 1)


def test_families_score_the_same_documents_within_a_budget(texts: Documents, bpe: Tokenizer):
    chosen = []
    for source in (
        ByteSource(texts, ROWS),
        BLTSource(texts, random_starts(texts), ROWS),
        TokenSource(texts, bpe, ROWS),
    ):
        batches = heldout_batches(source, 40, 20, batch=4, max_bytes=200)
        chosen.append(batches.documents.tolist())
        assert sum(int(batch.target_bytes.sum()) for batch in batches) == batches.bytes <= 200
        assert batches.description == {
            "context_bytes": 40,
            "stride_bytes": 20,
            "max_bytes": 200,
            "windows": int((batches.row_documents >= 0).sum()),
            "documents": len(chosen[0]),
            "all_documents": len(texts),
            "bytes": batches.bytes,
            "all_bytes": texts.total_bytes,
        }
    assert chosen[0] == chosen[1] == chosen[2]
    assert 0 < len(chosen[0]) < len(texts)


def test_processes_share_heldout_batches(source: StreamSource):
    whole = heldout_batches(source, 40, 20, batch=6)
    parts = [heldout_batches(source, 40, 20, batch=6, process_index=i, process_count=3) for i in range(3)]
    for i, batch in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[i].targets for part in parts]), batch.targets)
        np.testing.assert_array_equal(np.concatenate([part.row_documents[i] for part in parts]), whole.row_documents[i])


def test_verification_finds_damage_in_the_documents_that_a_process_scores(tmp_path: Path, unchecked: None):
    # Unchecked, since a check of annotations looks into batches.
    documents = [Document(str(n), b"%d " % n * 20) for n in range(9)]
    corpus = prepare(documents, tmp_path / "corpus", heldout_percent=0)
    data = bytearray((corpus.folder / "train.bytes").read_bytes())
    data[-1] ^= 1
    (corpus.folder / "train.bytes").write_bytes(data)
    source = ByteSource(Corpus.open(corpus.folder).documents("train"), ROWS)
    first, second = (heldout_batches(source, 100, 50, 10, process_index=i, process_count=2) for i in range(2))
    first.verify()
    with pytest.raises(ValueError, match=r"train\.bytes: document 8 .* has SHA-256"):
        second.verify()


def test_heldout_batches_are_a_sequence(source: StreamSource):
    batches = heldout_batches(source, 40, 20, batch=4)
    assert len(list(batches)) == len(batches)
    assert_equal(batches[-1], batches[len(batches) - 1])
    for one, other in zip(batches[1:3], [batches[1], batches[2]], strict=True):
        assert_equal(one, other)
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_heldout_arguments_that_do_not_fit_are_refused(source: StreamSource):
    with pytest.raises(ValueError, match="stride_bytes=41"):
        heldout_batches(source, 40, 41, batch=4)
    with pytest.raises(ValueError, match="batch=0"):
        heldout_batches(source, 40, 20, batch=0)
    with pytest.raises(ValueError, match="batch=4: must be a positive multiple of the 3 processes"):
        heldout_batches(source, 40, 20, batch=4, process_count=3)
    with pytest.raises(ValueError, match="no held-out documents"):
        heldout_batches(ByteSource(Documents.of([]), ROWS), 40, 20, batch=4)
