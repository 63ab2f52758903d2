import numpy as np
import pytest

from bltjax import vocabulary
from bltjax.config import VOCABULARY_SIZE


def test_ids_are_bytes_shifted_by_four():
    ids = vocabulary.encode("Hello", eos=True)
    assert ids.dtype == np.int32
    assert ids.tolist() == [1, 76, 105, 112, 112, 115, 2]
    assert vocabulary.encode(b"\x00\xff", bos=False).tolist() == [4, 259]
    assert vocabulary.SIZE == VOCABULARY_SIZE == vocabulary.OFFSET + 256


def test_special_ids_follow_the_released_code():
    assert (vocabulary.BOE, vocabulary.BOS, vocabulary.EOS, vocabulary.DELIMITER) == (0, 1, 2, 3)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("text", [b"", bytes(range(256)), b"\x00", b"\xff\xfe\xc3(", "h\u00e9 \U0001f600".encode()])
def test_any_bytes_round_trip(text, bos, eos):
    ids = vocabulary.encode(text, bos=bos, eos=eos)
    assert len(ids) == len(text) + bos + eos
    assert vocabulary.decode(ids) == text


def test_a_string_is_its_utf8_bytes():
    assert vocabulary.encode("h\u00e9").tolist() == vocabulary.encode("h\u00e9".encode()).tolist()


def test_decode_drops_special_ids_wherever_they_stand():
    assert vocabulary.decode([1, 101, 3, 102, 3, 2, 0, 0]) == b"ab"
    assert vocabulary.decode([]) == b""


@pytest.mark.parametrize(("ids", "named"), [([5, 260], r"ids\[1\]=260"), ([-1], r"ids\[0\]=-1")])
def test_decode_refuses_ids_out_of_range(ids, named):
    with pytest.raises(ValueError, match=named):
        vocabulary.decode(ids)


def test_decode_refuses_what_is_not_a_row_of_integers():
    with pytest.raises(ValueError, match="one row of integers"):
        vocabulary.decode([[5]])
    with pytest.raises(ValueError, match="one row of integers"):
        vocabulary.decode([5.0])


def test_a_lone_surrogate_is_refused():
    with pytest.raises(ValueError, match="character 1"):
        vocabulary.encode("a\ud800")
