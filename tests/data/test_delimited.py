import numpy as np
import pytest

from bltjax import vocabulary
from bltjax.config import RowsConfig
from bltjax.data.corpus import Documents
from bltjax.data.delimited import DelimitedSource
from bltjax.data.pipeline import heldout_batches, train_batches
from bltjax.data.tokenizer import Tokenizer
from bltjax.data.views import TokenSource
from bltjax.patching import Patches, encode_delimited


@pytest.fixture(params=[None, 9])
def source(request: pytest.FixtureRequest, texts: Documents, bpe: Tokenizer) -> DelimitedSource:
    return DelimitedSource(texts, bpe, RowsConfig(bytes=48, slots=request.param))


def stream(texts: Documents, bpe: Tokenizer) -> np.ndarray:
    """All documents, each token with its delimiter."""
    found = []
    for document in texts:
        tokens = [bpe.decode([int(i)]) for i in bpe.encode(document.tobytes())]
        found.append(encode_delimited(tokens, eos=True))
    return np.concatenate(found)


def test_rows_are_the_delimited_stream_each_position_a_target_once(source: DelimitedSource, texts, bpe):
    whole, rows = stream(texts, bpe), [source.row(n) for n in range(len(source.rows))]
    targets = np.concatenate([row["targets"][row["targets"] >= 0] for row in rows])
    np.testing.assert_array_equal(targets, whole[1:])
    place = 0
    for row in rows:
        real = int((row["targets"] >= 0).sum())
        np.testing.assert_array_equal(row["ids"][:real], whole[place : place + real])
        assert (row["ids"][real:] == vocabulary.BOE).all() and len(row["ids"]) == source.length
        place += real
    assert sum(int(row["target_bytes"].sum()) for row in rows) == texts.total_bytes


def test_rows_begin_and_end_where_those_of_tokens_do(source: DelimitedSource, texts, bpe):
    tokens = TokenSource(texts, bpe, RowsConfig(bytes=48, slots=source.slots - 2))
    np.testing.assert_array_equal(source.rows.starts, tokens.rows.starts)
    order, other = source.order(3), tokens.order(3)
    assert [order.row(k) for k in range(5)] == [other.row(k) for k in range(5)]


def test_patches_are_tokens_with_their_delimiters_and_fit_their_slots(source: DelimitedSource):
    for number in range(len(source.rows)):
        row = source.row(number)
        real, starts = int((row["targets"] >= 0).sum()), row["starts"]
        # Raises where there are more patches than slots, or none at 0 and 1.
        Patches.from_starts(starts[None], source.slots)
        after = np.flatnonzero(np.isin(row["ids"][:real], (vocabulary.DELIMITER, vocabulary.BOS, vocabulary.EOS))) + 1
        assert set(np.flatnonzero(starts)) == {0, 1, *after.tolist()}


@pytest.mark.parametrize("stride", [48, 31])
def test_windows_score_every_position_of_every_document_once(source: DelimitedSource, stride, texts, bpe):
    batches = heldout_batches(source, 48, stride, batch=3)
    scored: dict[int, list[np.ndarray]] = {}
    for batch, documents in zip(batches, batches.row_documents, strict=True):
        for row, document in enumerate(documents):
            if document >= 0:
                targets = np.asarray(batch.targets[row])
                scored.setdefault(int(document), []).append(targets[targets >= 0])
        Patches.from_starts(np.asarray(batch.starts), batches.slots)
    for number, document in enumerate(texts):
        tokens = [bpe.decode([int(i)]) for i in bpe.encode(document.tobytes())]
        np.testing.assert_array_equal(np.concatenate(scored[number]), encode_delimited(tokens, eos=True)[1:])
    assert batches.bytes == texts.total_bytes


def test_batches_are_drawn_like_those_of_any_source(source: DelimitedSource):
    batch = next(train_batches(source, RowsConfig(bytes=48, slots=source.slots, batch=2)))
    assert batch.ids.shape == (2, source.length) and batch.starts.shape == (2, source.length + 1)
