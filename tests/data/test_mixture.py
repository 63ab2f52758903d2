import dataclasses
import itertools

import numpy as np
import pytest

from bltjax.config import RowsConfig
from bltjax.data.corpus import Documents
from bltjax.data.mixture import ROUND, Mixture
from bltjax.data.pipeline import BLTSource, ByteSource, heldout_batches, train_batches
from bltjax.data.stream import ByteStream

ROWS = RowsConfig(bytes=16, batch=8, seed=3)


def source_of(letter: bytes, sizes, config: RowsConfig = ROWS) -> ByteSource:
    return ByteSource(Documents.of([letter * size for size in sizes]), config)


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return Mixture([source_of(b"a", [500, 20]), source_of(b"b", [3] * 200), source_of(b"c", [4000])], [1, 2, 5])


def letters(mixture: Mixture, count: int, seed: int = 3) -> np.ndarray:
    """Bytes of each of the three sources in the first rows."""
    order, found = mixture.order(seed), np.zeros(3, np.int64)
    for k in range(count):
        targets = mixture.row(order.row(k))["targets"]
        found += [int((targets == 4 + ord(letter)).sum()) for letter in "abc"]
    return found


def test_sources_have_their_shares_of_the_bytes(mixture: Mixture):
    found = letters(mixture, 3 * ROUND)
    np.testing.assert_allclose(found / found.sum(), [1 / 8, 2 / 8, 5 / 8], rtol=0.01)
    np.testing.assert_allclose(found.sum() / (3 * ROUND), mixture.mean_row_bytes, rtol=0.01)
    some = letters(mixture, ROUND // 8)  # and of any stretch, nearly
    np.testing.assert_allclose(some / some.sum(), [1 / 8, 2 / 8, 5 / 8], rtol=0.05)


def test_each_source_comes_in_its_own_order_epoch_after_epoch(mixture: Mixture):
    order, firsts = mixture.order(5), np.cumsum([0, *(len(source.rows) for source in mixture.sources)])
    drawn = np.array([order.row(k) for k in range(2 * ROUND)])
    for i, source in enumerate(mixture.sources):
        own = drawn[(drawn >= firsts[i]) & (drawn < firsts[i + 1])] - firsts[i]
        assert len(own) == 2 * mixture.counts[i] > 2 * len(source.rows), "more than one epoch"
        expected = source.order(5)
        np.testing.assert_array_equal(own, [expected.row(k) for k in range(len(own))])


def test_row_k_depends_on_seed_and_k_alone(mixture: Mixture):
    order = mixture.order(1)
    expected = [order.row(k) for k in range(3 * ROUND)]
    for k in (0, 3 * ROUND - 1, ROUND, ROUND - 1, 17):
        assert mixture.order(1).row(k) == order.row(k) == expected[k]
    assert [mixture.order(2).row(k) for k in range(50)] != expected[:50]
    with pytest.raises(IndexError):
        order.row(-1)


def test_a_run_goes_on_from_its_step_number_on_any_number_of_processes(mixture: Mixture):
    unbroken = list(itertools.islice(train_batches(mixture, ROWS), 12))
    for batch, whole in zip(train_batches(mixture, ROWS, first_step=5), unbroken[5:], strict=False):
        np.testing.assert_array_equal(batch.ids, whole.ids)
    parts = [train_batches(mixture, ROWS, 3, process_index=i, process_count=2) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([next(part).ids for part in parts]), unbroken[3].ids)


def test_the_index_counts_all_rows(mixture: Mixture):
    assert len(mixture.rows) == sum(len(source.rows) for source in mixture.sources)
    assert (np.diff(mixture.rows.units) > 0).all()
    assert len(mixture.documents) == sum(len(source.documents) for source in mixture.sources)
    assert 0.9 < mixture.rows.fill()[0] <= 1.01
    number = len(mixture.sources[0].rows) + 4
    np.testing.assert_array_equal(mixture.row(number)["ids"], mixture.sources[1].row(4)["ids"])


@pytest.mark.usefixtures("unchecked")
def test_a_mixture_is_trained_on_and_its_sources_are_scored(mixture: Mixture):
    with pytest.raises(TypeError, match="source: is a Mixture, which is no StreamSource; score each of its sources"):
        heldout_batches(mixture, 16, 16, batch=2)  # pyright: ignore[reportArgumentType]
    assert sum(heldout_batches(source, 16, 16, batch=2).bytes for source in mixture.sources) == 520 + 600 + 4000


def test_one_source_alone_is_itself():
    source = source_of(b"a", [500])
    order = Mixture([source], [7]).order(2)
    assert [order.row(k) for k in range(100)] == [source.order(2).row(k) for k in range(100)]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "one for each of the 2"),
        ([1.0, 0.0], "must be positive"),
        ([1.0, float("nan")], "must be positive"),
        ([1.0, 1e-9], r"weights\[1\]=1e-09: less than one row in 4096"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message: str):
    with pytest.raises(ValueError, match=message):
        Mixture([source_of(b"a", [500]), source_of(b"b", [500])], weights)


def test_sources_of_other_shapes_are_refused():
    other = dataclasses.replace(ROWS, bytes=32)
    with pytest.raises(ValueError, match=r"sources\[1\] is a ByteSource"):
        Mixture([source_of(b"a", [500]), source_of(b"b", [500], other)], [1, 1])
    with pytest.raises(ValueError, match=r"sources\[1\] has no rows"):
        Mixture([source_of(b"a", [500]), source_of(b"b", [])], [1, 1])


def test_patched_sources_mix():
    sources = []
    for letter in (b"a", b"b"):
        documents = Documents.of([letter * 300])
        starts = np.arange(ByteStream(documents).length) % 3 != 2
        sources.append(BLTSource(documents, starts, dataclasses.replace(ROWS, slots=12)))
    batch = next(train_batches(Mixture(sources, [1, 1]), dataclasses.replace(ROWS, slots=12)))
    assert batch.starts is not None and batch.starts.shape == (8, 17)
