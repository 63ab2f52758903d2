import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltjax.data.rows import RowOrder, blt_rows, byte_rows, default_slots, stretches, token_rows, windows


@st.composite
def stream_starts(draw: st.DrawFn) -> np.ndarray:
    """Starts of a stream of documents, dense in some and sparse in others."""
    parts = []
    for length in draw(st.lists(st.integers(1, 40), min_size=1, max_size=6)):
        density = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
        part = np.random.default_rng(draw(st.integers(0, 99))).random(length + 2) < density
        part[:2] = True
        parts.append(part)
    return np.concatenate(parts)


def patches_of_row(starts: np.ndarray, start: int, row: int, row_bytes: int) -> int:
    """Patches that the model will count in a row: among its inputs and, where it is padded, the padding."""
    own = starts[start : start + min(row + 1, row_bytes)].copy()
    own[:2] = True
    return int(own.sum())


@given(stream_starts(), st.integers(2, 50), st.integers(2, 20))
def test_blt_rows_are_as_long_as_bytes_and_patches_allow(starts: np.ndarray, row_bytes: int, slots: int):
    index = blt_rows(starts, row_bytes, slots)
    assert (index.starts[0], index.starts[-1]) == (0, len(starts) - 1)
    for start, row, used in zip(index.starts, np.diff(index.starts), index.used, strict=False):
        assert 1 <= row <= row_bytes
        assert patches_of_row(starts, start, row, row_bytes) <= slots
        if row < min(row_bytes, len(starts) - 1 - start):
            assert patches_of_row(starts, start, row + 1, row_bytes) > slots, "one more byte would have fitted"
        own = starts[start : start + row].copy()
        own[:2] = True
        assert used == own.sum()


@given(st.lists(st.integers(1, 9), min_size=2, max_size=60), st.integers(9, 30), st.integers(2, 12))
def test_token_rows_are_as_long_as_bytes_and_slots_allow(sizes: list[int], row_bytes: int, slots: int):
    positions = np.concatenate([[0], np.cumsum(sizes)])
    index = token_rows(positions, row_bytes, slots)
    assert (index.units[0], index.units[-1]) == (0, len(sizes) - 1)
    np.testing.assert_array_equal(index.starts, positions[index.units])
    for begin, end in zip(index.units[:-1], index.units[1:], strict=True):
        assert 1 <= end - begin <= slots
        assert positions[end] - positions[begin] <= row_bytes
        if end < len(sizes) - 1 and end - begin < slots:
            assert positions[end + 1] - positions[begin] > row_bytes, "one more token would have fitted"


@given(st.integers(2, 500), st.integers(2, 60))
def test_byte_rows_are_full_up_to_the_last(length: int, row_bytes: int):
    index = byte_rows(length, row_bytes)
    assert index.used.sum() == length - 1
    assert (index.used[:-1] == row_bytes).all()
    assert 1 <= index.used[-1] <= row_bytes


def test_tokens_of_one_byte_and_patches_of_one_byte_make_the_rows_of_bytes():
    expected = byte_rows(103, 10).starts
    np.testing.assert_array_equal(token_rows(np.arange(104), 10, 10).starts, expected)
    np.testing.assert_array_equal(blt_rows(np.ones(103, bool), 10, 10).starts, expected)


def test_a_stream_of_nothing_has_no_rows():
    for index in (byte_rows(0, 8), blt_rows(np.zeros(0, bool), 8, 4), token_rows(np.zeros(1, np.int64), 8, 4)):
        assert len(index) == 0
        assert index.fill() == (0.0, 0.0)


def test_fill_counts_bytes_and_slots():
    # A patch begins at every second byte; 3 slots hold bytes 0, 1, 2-3, so the row is cut before the next one.
    starts = np.arange(21) % 2 == 0
    starts[1] = True
    index = blt_rows(starts, 8, 3)
    lengths = np.diff(index.starts)
    assert index.fill() == (lengths.sum() / (len(index) * 8), index.used.sum() / (len(index) * 3))
    assert byte_rows(17, 8).fill() == (1.0, 1.0)
    assert byte_rows(13, 8).fill() == (0.75, 0.75)


def test_room_for_less_than_two_is_refused():
    with pytest.raises(ValueError, match=r"rows\.slots=1"):
        blt_rows(np.ones(9, bool), 8, 1)
    with pytest.raises(ValueError, match=r"rows\.bytes=1"):
        token_rows(np.arange(9), 1, 4)


def test_a_token_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match=r"rows\.bytes=8: a token has 9 bytes"):
        token_rows(np.array([0, 1, 10, 11]), 8, 4)


def counts(starts: np.ndarray, row_bytes: int) -> np.ndarray:
    return np.array([starts[begin : begin + row_bytes].sum() for begin in stretches(len(starts), row_bytes)], np.int64)


@pytest.mark.parametrize("patch", [1, 2, 4, 7])
def test_default_slots_fit_even_patches(patch: int):
    starts = np.arange(200_000) % patch == 0
    for row_bytes in (64, 256, 1024):
        slots = default_slots(counts(starts, row_bytes))
        assert min(blt_rows(starts, row_bytes, slots).fill()) > 0.85
        assert slots < 64 or slots % 8 == 0


def test_default_slots_waste_little_where_texts_differ():
    rng = np.random.default_rng(0)
    density = np.repeat(rng.uniform(0.17, 0.27, 200), 2000)
    starts = rng.random(len(density)) < density
    index = blt_rows(starts, 1024, default_slots(counts(starts, 1024)))
    assert min(index.fill()) > 0.85


def test_default_slots_of_a_corpus_below_one_row():
    assert default_slots(counts(np.array([True, True, False, False, False]), 64)) >= 2


def test_every_epoch_is_another_permutation_of_all_rows():
    order = RowOrder(byte_rows(5001, 10), 10, seed=3)
    epochs = [[order.row(k) for k in range(epoch * 500, (epoch + 1) * 500)] for epoch in range(3)]
    for rows in epochs:
        assert sorted(rows) == list(range(500))
        assert np.abs(np.diff(rows)).mean() > 100, "neighbours in order are no neighbours in the text"
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other = RowOrder(byte_rows(5001, 10), 10, seed=4)
    assert [other.row(k) for k in range(500)] != epochs[0]


def test_any_row_of_the_order_can_be_asked_for_at_any_time():
    index = byte_rows(991, 10)
    in_turn = [RowOrder(index, 10, seed=1).row(k) for k in range(300)]
    order = RowOrder(index, 10, seed=1)
    for k in np.random.default_rng(0).permutation(300):
        assert order.row(int(k)) == in_turn[k]
    with pytest.raises(IndexError):
        order.row(-1)


def test_the_order_is_the_same_for_ever():
    # A change here reorders the data of every run that is to be resumed or repeated.
    order = RowOrder(byte_rows(101, 10), 10, seed=0)
    assert [order.row(k) for k in range(10)] == [1, 8, 0, 5, 6, 3, 9, 2, 7, 4]
    assert [order.row(k) for k in range(10, 20)] == [1, 2, 0, 9, 7, 8, 3, 5, 4, 6]


@given(stream_starts(), st.integers(2, 20), st.integers(2, 8), st.integers(0, 3))
def test_rows_cut_otherwise_visit_the_same_texts_in_the_same_order(
    starts: np.ndarray, row_bytes: int, slots: int, epoch: int
):
    by_byte, by_patch = byte_rows(len(starts), row_bytes), blt_rows(starts, row_bytes, slots)
    rank = np.empty(len(by_byte), np.int64)
    rank[RowOrder(by_byte, row_bytes, seed=7).epoch(epoch)] = np.arange(len(by_byte))
    order = RowOrder(by_patch, row_bytes, seed=7).epoch(epoch)
    cells = by_patch.starts[order] // row_bytes
    assert (np.diff(rank[cells]) >= 0).all(), "cells in the order in which the rows of bytes come"
    within = np.diff(cells) == 0
    assert (np.diff(by_patch.starts[order])[within] > 0).all(), "and within a cell in the order of the text"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=60), st.integers(5, 24), st.integers(5, 24), st.integers(0, 1))
def test_windows_score_every_unit_once_within_the_context(sizes: list[int], context: int, stride: int, of_bytes: int):
    stride = min(stride, context)
    sizes = [1] * sum(sizes) if of_bytes else sizes
    positions = np.concatenate([[0, 1], 1 + np.cumsum(sizes), [2 + sum(sizes)]])
    scored = []
    for begin, end, after in windows(positions, context, stride):
        assert begin <= after < end, "a target has at least the unit before it for context"
        assert positions[end] - positions[begin] <= context
        scored += range(after + 1, end + 1)
        if begin > 0:
            assert positions[end] - positions[begin - 1] > context, "no context is withheld"
    assert scored == list(range(1, len(positions) - 1))


def test_windows_of_bytes_end_at_the_context_and_then_by_the_stride():
    found = windows(np.arange(31), 12, 5)
    np.testing.assert_array_equal(found, [[0, 12, 0], [5, 17, 12], [10, 22, 17], [15, 27, 22], [17, 29, 27]])


@pytest.mark.parametrize("stride", [0, 13])
def test_a_stride_beyond_the_context_is_refused(stride: int):
    with pytest.raises(ValueError, match=rf"stride_bytes={stride}: must lie in 1 \.\. context_bytes, 12"):
        windows(np.arange(31), 12, stride)


def test_a_token_longer_than_the_stride_is_refused():
    with pytest.raises(ValueError, match="stride_bytes=4: a token of 6 bytes does not fit"):
        windows(np.array([0, 1, 2, 8, 9]), 5, 4)
