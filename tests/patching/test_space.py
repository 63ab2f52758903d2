import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax import vocabulary
from bltjax.patching import space_starts


def pieces(text, **how):
    """The text's patches as bytes, special ids left out."""
    ids = vocabulary.encode(text, **how)
    marks = np.flatnonzero(space_starts(ids[None])[0, :-1])
    return [vocabulary.decode(part) for part in np.split(ids, marks[1:])]


def test_the_worked_example():
    starts = np.flatnonzero(space_starts(vocabulary.encode("ab, cd.  ")[None])[0])
    assert np.diff(np.append(starts, 10)).tolist() == [1, 3, 4, 2]
    assert np.diff(np.append(starts, 11)).tolist() == [1, 3, 4, 3]


def test_words_end_with_the_first_byte_that_is_no_letter():
    assert pieces("one two") == [b"", b"one ", b"two"]
    assert pieces("f(x)=12;") == [b"", b"f(", b"x)", b"=12;"]


def test_continuation_bytes_belong_to_words_and_lead_bytes_do_not():
    assert pieces("\u00e9\u00e8") == [b"", b"\xc3\xa9\xc3", b"\xa8"]


@pytest.mark.parametrize("special", [0, 1, 3])
def test_a_special_id_starts_a_patch_after_it_and_counts_as_space(special):
    ids = np.array([[1, 101, special, 36, 102, 103]])
    starts = space_starts(ids)[0]
    assert starts[3]
    assert not starts[4]  # the space follows something space-like


def expected(ids):
    def space_like(value):
        if value < 4:
            return True
        byte = value - 4
        return not (chr(byte).isascii() and chr(byte).isalnum()) and not 0x80 <= byte <= 0xBF

    starts = [True, True]
    for s in range(2, len(ids) + 1):
        previous, older = ids[s - 1], ids[s - 2]
        starts.append(previous < 4 or (space_like(previous) and not space_like(older)))
    for s in range(1, len(ids) + 1):  # a document's second position
        if ids[s - 1] == vocabulary.EOS and s < len(ids):
            starts[s + 1] = True
    return starts


def test_every_byte_in_every_company():
    ids = np.random.default_rng(0).integers(0, 260, (4, 500))
    ids[:, 1:400:2] = np.random.default_rng(1).integers(100, 105, (4, 200))
    want = [expected(row.tolist()) for row in ids]
    np.testing.assert_array_equal(space_starts(ids), want)
    np.testing.assert_array_equal(jax.jit(space_starts)(jnp.asarray(ids, jnp.int16)), want)


def test_nul_and_invalid_utf8_are_bytes_like_others():
    assert pieces(b"a\x00b\xffc") == [b"", b"a\x00", b"b\xff", b"c"]
