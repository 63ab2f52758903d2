import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.config import ComputeConfig, TransformerConfig
from bltjax.generate import cache
from bltjax.generate.cache import (
    NOWHERE,
    attend,
    empty_cache,
    empty_kept,
    first_of_documents,
    look,
    look_kept,
    places_of,
    positions_kept,
    store,
)
from tests import dense
from tests.programs import primitives

BATCH, KEY_HEADS, WIDTH = 2, 2, 6


def draws(seed, *shapes):
    draw = np.random.default_rng(seed)
    return [jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(cache, "BLOCK", 8)
    monkeypatch.setattr(cache, "LONGEST", 16)


def sizes(pieces):
    return [values.shape[2] for _, values in pieces]


@pytest.mark.parametrize(("queries", "query_heads"), [(3, 4), (1, KEY_HEADS)])  # the latter: one query a head
@pytest.mark.parametrize("filled", [0, 1, 8, 9, 13, 16, 17, 21, 25, 32])
@pytest.mark.parametrize("overwritten", [False, True])
def test_keys_in_several_places_and_pieces_are_those_of_one_softmax(
    filled, queries, query_heads, overwritten, small_pieces
):
    heads, room = (BATCH, KEY_HEADS), 32
    q, *old = draws(0, (BATCH, queries, query_heads, WIDTH), (*heads, room, WIDTH), (*heads, room, WIDTH))
    q *= 5  # far from uniform
    new = draws(1, (*heads, 5, WIDTH), (*heads, 5, WIDTH))
    kept = empty_kept(*heads, WIDTH, room, jnp.float32, overwritten)
    assert sizes(kept.pieces) == ([4, 4, 8, 16] if overwritten else [16, 16])
    assert sizes(kept.newest) == ([] if overwritten else [4, 4])
    for begin in range(0, filled, 7):  # parts, of which some end in another piece than they begin
        part = slice(begin, min(begin + 7, filled))
        places = jnp.tile(jnp.arange(room)[part], (BATCH, 1))
        kept = store(kept, *(x[:, :, part].swapaxes(1, 2) for x in old), places)
    draw = np.random.default_rng(2)
    sees_old, sees_new = draw.random((BATCH, queries, room)) < 0.6, draw.random((BATCH, queries, 5)) < 0.5
    sees_old &= np.arange(room) < filled
    sees_old[0, 0], sees_new[0, 0] = False, False  # a query that sees nothing at all

    got = attend(
        q,
        KEY_HEADS,
        lambda q: look_kept(q, kept, lambda places: jnp.asarray(sees_old)[:, :, places], jnp.int32(filled)),
        lambda q: look(q, *new, jnp.asarray(sees_new)),
    )
    keys, values = (np.concatenate(both, axis=2).transpose(0, 2, 1, 3) for both in zip(old, new, strict=True))
    want = dense.attend(
        np.float64(q), np.float64(keys), np.float64(values), np.concatenate([sees_old, sees_new], axis=2)
    )  # fmt: skip
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert (np.asarray(got)[0, 0] == 0).all()


def test_a_ring_holds_the_newest_positions_of_every_row():
    size = 5
    kept = jax.tree.map(lambda x: x - 1, empty_kept(2, 1, 3, size, jnp.float32))
    for t in range(13):
        places = jnp.array([[t % size], [t % size if t < 3 else NOWHERE]])  # the second row ends after 3 positions
        new = jnp.broadcast_to(jnp.arange(3.0), (2, 1, 1, 3))
        kept = store(kept, new + t, jnp.full((2, 1, 1, 3), float(t)), places)
    ((keys, values),) = jax.tree.map(np.asarray, kept.pieces)
    assert sorted(values[0, 0, :, 0].tolist()) == [8, 9, 10, 11, 12]
    assert values[1, 0, :, 0].tolist() == [0, 1, 2, -1, -1]
    there = values[:, 0, :, 0] >= 0
    np.testing.assert_array_equal(keys[:, 0][there], values[:, 0][there] + np.arange(3))
    found = positions_kept(jnp.array([13, 3]), jnp.arange(size), size)
    np.testing.assert_array_equal(found[0], values[0, 0, :, 0])
    np.testing.assert_array_equal(found[1] >= 0, values[1, 0, :, 0] >= 0)


def test_documents_begin_after_an_end_in_this_part_or_an_earlier_one():
    ends = jnp.array([[False, True, False, False], [False] * 4])
    first, after = first_of_documents(ends, jnp.array([10, 20]), jnp.array([7, 0]))
    assert first.tolist() == [[7, 7, 12, 12], [0] * 4] and after.tolist() == [12, 0]


def test_room_is_that_of_the_window_or_of_the_row():
    compute, tower = ComputeConfig("bfloat16"), TransformerConfig(16, 3, 4, kv_heads=2, window=100)
    windowed = empty_cache(tower, compute, 2, 5000)
    assert len(windowed.layers) == 3 and windowed.layers[0].pieces[0][0].shape == (2, 2, 100, 4)
    assert places_of(empty_cache(tower, compute, 2, 5000, ahead=7).layers[0]) == 107
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(windowed))
    assert places_of(empty_cache(tower, compute, 1, 50).layers[0]) == 50
    longest = empty_cache(TransformerConfig(16, 1, 4, window=None), compute, 1, 5000).layers[0]
    assert 5000 <= places_of(longest) < 5000 + cache.BLOCK
    assert sizes(longest.pieces) == [1024] * 5 and sizes(longest.newest) == [128, 128, 256]
    # More may be taken back than the short pieces stand for: the next piece's first places may have gone there.
    unsure = empty_cache(TransformerConfig(16, 1, 4, window=None), compute, 1, 5000, ahead=513).layers[0]
    assert sizes(unsure.pieces) == [128, 128, 256, 512, 1024, 1024, 1024, 1024] and not unsure.newest
    wide = empty_cache(dataclasses.replace(tower, window=512), compute, 1, 5000).layers[0]
    assert sizes(wide.pieces) == [128, 128, 256]  # a short row reads the first alone


def found_in(kept, filled, queries):
    def visible(places):
        return jnp.ones((1, queries, len(places)), bool)

    return look_kept(jnp.ones((1, 1, 1, queries, 2)), kept, visible, filled)


@pytest.mark.parametrize("queries", [1, 3])
def test_only_pieces_that_are_filled_are_read(queries, small_pieces):
    empty = jax.tree.map(lambda x: x + jnp.nan, empty_kept(1, 1, 2, 32, jnp.float32, overwritten=True))
    ones = jnp.ones((1, 16, 1, 2))
    kept = store(empty, ones, ones, jnp.arange(16)[None])

    def find(filled):
        return found_in(kept, filled, queries)

    assert np.isfinite(find(jnp.int32(16))[2]).all() and np.isnan(find(jnp.int32(17))[2]).any()
    used = primitives(find, jax.ShapeDtypeStruct((), jnp.int32))
    assert "cond" in used and ("while" in used) == (queries > 1)  # many queries read a long piece in blocks


def test_short_pieces_are_read_as_long_as_they_hold_all_of_the_last_one(small_pieces):
    kept = empty_kept(1, 1, 2, 48, jnp.float32)
    unread = jax.tree.map(lambda x: x + jnp.nan, kept)

    def reads(filled, **others):
        """Whether what lies in the other pieces is read."""
        found = found_in(dataclasses.replace(unread, **others), jnp.int32(filled), 1)
        return bool(np.isnan(found[2]).any())

    for last in (0, 16, 32):
        before, whole = last // 16, kept.pieces[: last // 16]
        assert not reads(last + 4, pieces=(*whole, *unread.pieces[before:]), newest=(kept.newest[0], unread.newest[1]))
        assert reads(last + 5, pieces=(*whole, *unread.pieces[before:]), newest=(kept.newest[0], unread.newest[1]))
        assert not reads(last + 8, pieces=(*whole, *unread.pieces[before:]), newest=kept.newest)
        assert reads(last + 9, pieces=(*whole, *unread.pieces[before:]), newest=kept.newest)
        assert not reads(last + 9, pieces=(*whole, kept.pieces[before], *unread.pieces[before + 1 :]))
        assert not reads(last + 16, pieces=(*whole, kept.pieces[before], *unread.pieces[before + 1 :]))
