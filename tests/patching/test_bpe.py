import numpy as np

from bltjax import vocabulary
from bltjax.patching import PREFIX_CONSISTENT, bpe_starts, encode_delimited


def test_a_patch_is_a_token_and_its_delimiter():
    ids = encode_delimited([b"the", b" c", b"at"], eos=True)
    marks = np.flatnonzero(bpe_starts(ids[None])[0, :-1])
    parts = np.split(ids, marks[1:])
    assert [vocabulary.decode(part) for part in parts] == [b"", b"the", b" c", b"at", b""]
    assert [part[-1] for part in parts[1:-1]] == [vocabulary.DELIMITER] * 3


def test_delimiters_leave_the_bytes_alone():
    tokens = [b"\x00", b"", b"\xff\xfe", b"abc"]
    assert vocabulary.decode(encode_delimited(tokens)) == b"".join(tokens)
    assert encode_delimited([], bos=False).shape == (0,)


def test_the_unseen_position_starts_after_a_last_delimiter():
    assert bpe_starts(encode_delimited([b"ab"])[None])[0, -1]
    assert not bpe_starts(encode_delimited([b"ab"])[None, :-1])[0, -1]


def test_the_rule_is_labelled_as_not_incremental():
    assert not PREFIX_CONSISTENT["bpe"]
    # Why: the same text, cut differently once more of it is known.
    early, late = [b"th"], [b"the"]
    assert encode_delimited(early).tolist() != encode_delimited(late)[: len(encode_delimited(early))].tolist()
