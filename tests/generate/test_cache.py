import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.config import ComputeConfig, TransformerConfig
from bltjax.generate import cache
from bltjax.generate.cache import attend, empty_cache, first_of_documents, look, look_in_blocks, positions_kept, store
from tests import dense
from tests.programs import primitives

BATCH, KEY_HEADS, WIDTH = 2, 2, 6


def draws(seed, *shapes):
    draw = np.random.default_rng(seed)
    return [jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize(("queries", "query_heads"), [(3, 4), (1, KEY_HEADS)])  # the latter: one query a head
@pytest.mark.parametrize("filled", [0, 1, 8, 13, 32])
def test_keys_in_several_places_and_blocks_are_those_of_one_softmax(filled, queries, query_heads, monkeypatch):
    monkeypatch.setattr(cache, "BLOCK", 8)
    heads = (BATCH, KEY_HEADS)
    q, *old = draws(0, (BATCH, queries, query_heads, WIDTH), (*heads, WIDTH, 32), (*heads, 32, WIDTH))
    q *= 5  # far from uniform
    new = draws(1, (*heads, WIDTH, 5), (*heads, 5, WIDTH))
    draw = np.random.default_rng(2)
    sees_old, sees_new = draw.random((BATCH, queries, 32)) < 0.6, draw.random((BATCH, queries, 5)) < 0.5
    sees_old &= np.arange(32) < filled
    sees_old[0, 0], sees_new[0, 0] = False, False  # a query that sees nothing at all

    got = attend(
        q,
        KEY_HEADS,
        lambda q: look_in_blocks(q, *old, lambda places: jnp.asarray(sees_old)[:, :, places], jnp.int32(filled)),
        lambda q: look(q, *new, jnp.asarray(sees_new)),
    )
    keys = np.concatenate([old[0], new[0]], axis=3).transpose(0, 3, 1, 2)
    values = np.concatenate([old[1], new[1]], axis=2).transpose(0, 2, 1, 3)
    want = dense.attend(
        np.float64(q), np.float64(keys), np.float64(values), np.concatenate([sees_old, sees_new], axis=2)
    )  # fmt: skip
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert (np.asarray(got)[0, 0] == 0).all()


def test_a_ring_holds_the_newest_positions_of_every_row():
    size = 5
    keys, kept = jnp.full((2, 1, 3, size), -1.0), jnp.full((2, 1, size, 3), -1.0)
    for t in range(13):
        places = jnp.array([[t % size], [t % size if t < 3 else size]])  # the second row ends after 3 positions
        new = jnp.broadcast_to(jnp.arange(3.0), (2, 1, 1, 3))
        keys, kept = store(keys, kept, new + t, jnp.full((2, 1, 1, 3), float(t)), places)
    assert sorted(np.asarray(kept)[0, 0, :, 0].tolist()) == [8, 9, 10, 11, 12]
    assert np.asarray(kept)[1, 0, :, 0].tolist() == [0, 1, 2, -1, -1]
    for part in range(3):
        there = np.asarray(kept)[:, 0, :, 0] >= 0
        np.testing.assert_array_equal(np.asarray(keys)[:, 0, part][there], np.asarray(kept)[:, 0, :, 0][there] + part)
    found = positions_kept(jnp.array([13, 3]), jnp.arange(size), size)
    np.testing.assert_array_equal(found[0], kept[0, 0, :, 0])
    np.testing.assert_array_equal(found[1] >= 0, kept[1, 0, :, 0] >= 0)


def test_documents_begin_after_an_end_in_this_part_or_an_earlier_one():
    ends = jnp.array([[False, True, False, False], [False] * 4])
    first, after = first_of_documents(ends, jnp.array([10, 20]), jnp.array([7, 0]))
    assert first.tolist() == [[7, 7, 12, 12], [0] * 4] and after.tolist() == [12, 0]


def test_room_is_that_of_the_window_or_of_the_row():
    compute, tower = ComputeConfig("bfloat16"), TransformerConfig(16, 3, 4, kv_heads=2, window=100)
    windowed = empty_cache(tower, compute, 2, 5000)
    assert len(windowed.keys) == 3 and windowed.values[0].shape == (2, 2, 100, 4)
    assert windowed.keys[0].shape == (2, 2, 4, 100)
    assert empty_cache(tower, compute, 2, 5000, ahead=7).values[0].shape[2] == 107
    assert windowed.values[0].dtype == jnp.bfloat16
    assert empty_cache(tower, compute, 1, 50).values[0].shape[2] == 50
    longest = TransformerConfig(16, 1, 4, window=None)
    assert 5000 <= empty_cache(longest, compute, 1, 5000).values[0].shape[2] < 5000 + cache.BLOCK


def test_only_blocks_that_are_filled_are_read(monkeypatch):
    monkeypatch.setattr(cache, "BLOCK", 8)
    keys = jnp.full((1, 1, 2, 32), jnp.nan).at[..., :8].set(1.0)
    values = keys.swapaxes(2, 3)
    q = jnp.ones((1, 1, 1, 1, 2))

    def find(filled):
        return look_in_blocks(q, keys, values, lambda places: jnp.ones((1, 1, len(places)), bool), filled)

    assert np.isfinite(find(jnp.int32(8))[2]).all() and np.isnan(find(jnp.int32(9))[2]).any()
    assert "while" in primitives(find, jax.ShapeDtypeStruct((), jnp.int32))
