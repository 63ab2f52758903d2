import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax import vocabulary
from bltjax.patching import byte_starts, limit_patch_length, strided_starts


def cut(starts, limit):
    """Lengths, each cut into pieces of the limit and a remainder."""
    pieces = []
    for length in np.diff(np.append(np.flatnonzero(starts), len(starts))).tolist():
        pieces += [limit] * (length // limit)
        pieces += [length % limit] if length % limit else []
    return pieces


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_long_patches_become_pieces_and_a_remainder(limit):
    starts = np.random.default_rng(limit).random((5, 60)) < 0.15
    starts[:, 0] = True
    limited = limit_patch_length(starts, limit)
    for row in range(5):
        assert np.diff(np.append(np.flatnonzero(limited[row]), 60)).tolist() == cut(starts[row], limit)
    compiled = jax.jit(limit_patch_length, static_argnums=1)(jnp.asarray(starts), limit)
    np.testing.assert_array_equal(compiled, limited)


def test_strides_count_from_the_first_byte_after_bos():
    ids = vocabulary.encode("abcdefghij")[None]
    assert np.flatnonzero(strided_starts(ids, 4)[0]).tolist() == [0, 1, 5, 9]
    assert np.flatnonzero(strided_starts(ids, 5)[0]).tolist() == [0, 1, 6, 11]
    assert strided_starts(ids, 1).all()


def test_strides_begin_anew_in_every_document():
    first, second = vocabulary.encode("abcdef", eos=True), vocabulary.encode("ghijklm", eos=True)
    together = strided_starts(np.concatenate([first, second])[None], 3)[0]
    alone = [strided_starts(ids[None], 3)[0, :-1] for ids in (first, second)]
    np.testing.assert_array_equal(together[:-1], np.concatenate(alone))


def test_a_patch_a_byte():
    assert byte_starts(np.zeros((2, 5), np.int32)).tolist() == [[True] * 6] * 2


@pytest.mark.parametrize("size", [0, -1])
def test_lengths_below_one_byte_are_refused(size):
    with pytest.raises(ValueError, match=f"size={size}"):
        strided_starts(vocabulary.encode("abc")[None], size)
    with pytest.raises(ValueError, match=f"max_patch_length={size}"):
        limit_patch_length(np.ones((1, 4), bool), size)
