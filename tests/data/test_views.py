import numpy as np
import pytest

from bltjax import vocabulary
from bltjax.config import RowsConfig
from bltjax.data.corpus import Documents
from bltjax.data.stream import ByteStream
from bltjax.data.tokenizer import Tokenizer
from bltjax.data.views import BLTSource, ByteSource, StreamSource, TokenSource
from bltjax.patching import Patches

ROWS = RowsConfig(bytes=48)


def random_starts(documents: Documents, density: float = 0.3, seed: int = 0) -> np.ndarray:
    stream = ByteStream(documents)
    starts = np.random.default_rng(seed).random(stream.length) < density
    starts[stream.document_starts[:-1]] = True
    starts[stream.document_starts[:-1] + 1] = True
    return starts


@pytest.fixture(params=["byte", "blt", "blt, few slots", "token", "token, few slots"])
def source(request: pytest.FixtureRequest, texts: Documents, bpe: Tokenizer) -> StreamSource:
    return {
        "byte": lambda: ByteSource(texts, ROWS),
        "blt": lambda: BLTSource(texts, random_starts(texts), ROWS),
        "blt, few slots": lambda: BLTSource(texts, random_starts(texts), RowsConfig(bytes=48, slots=5)),
        "token": lambda: TokenSource(texts, bpe, ROWS),
        "token, few slots": lambda: TokenSource(texts, bpe, RowsConfig(bytes=48, slots=7)),
    }[request.param]()


def bytes_of(source: StreamSource, ids: np.ndarray) -> bytes:
    if isinstance(source, TokenSource):
        return source.tokenizer.decode(ids - vocabulary.OFFSET)
    return vocabulary.decode(ids)


def test_mistake_5_rows_hold_every_byte_of_the_corpus_once(source: StreamSource):
    rows = [source.row(n) for n in range(len(source.rows))]
    scored = np.concatenate([row["targets"][row["targets"] >= 0] for row in rows])
    # Every target that stands for bytes, in order, is the corpus itself.
    assert bytes_of(source, scored[scored >= vocabulary.OFFSET]) == b"".join(
        document.tobytes() for document in source.documents
    )
    assert sum(int(row["target_bytes"].sum()) for row in rows) == source.documents.total_bytes
    assert (scored == vocabulary.EOS).sum() == len(source.documents)
    assert (scored == vocabulary.BOS).sum() == len(source.documents) - 1
    assert source.mean_row_bytes * len(rows) == pytest.approx(source.documents.total_bytes)


def test_a_target_is_the_next_input_and_counts_its_own_bytes(source: StreamSource):
    expected_first = vocabulary.BOS
    for number in range(len(source.rows)):
        row = source.row(number)
        real = int((row["targets"] >= 0).sum())
        assert row["ids"][0] == expected_first, "a row goes on with the last target of the one before"
        np.testing.assert_array_equal(row["ids"][1:real], row["targets"][: real - 1])
        assert (row["targets"][real:] == -1).all()
        assert (row["ids"][real:] == vocabulary.BOE).all()
        for target, count in zip(row["targets"], row["target_bytes"], strict=True):
            assert count == (len(bytes_of(source, np.array([target]))) if target >= vocabulary.OFFSET else 0)
        expected_first = row["targets"][real - 1]
    assert expected_first == vocabulary.EOS


def test_every_row_has_the_same_shape_and_type(source: StreamSource):
    shapes = {
        tuple((name, value.shape, value.dtype.name) for name, value in source.row(n).items())
        for n in range(len(source.rows))
    }
    assert len(shapes) == 1
    kind = "int32" if isinstance(source, TokenSource) else "int16"
    expected = {
        ("ids", (source.length,), kind),
        ("targets", (source.length,), kind),
        ("target_bytes", (source.length,), "uint16"),
    }
    if isinstance(source, BLTSource):
        expected.add(("starts", (source.length + 1,), "bool"))
    assert set(shapes.pop()) == expected


@pytest.mark.parametrize(("slots", "density"), [(None, 0.3), (2, 1.0), (3, 0.0), (9, 0.3), (48, 1.0)])
def test_patches_accept_every_row_within_the_slots(texts: Documents, slots: int | None, density: float):
    source = BLTSource(texts, random_starts(texts, density), RowsConfig(bytes=48, slots=slots))
    starts = np.stack([source.row(number)["starts"] for number in range(len(source.rows))])
    assert int(Patches.from_starts(starts, source.slots).encoder_ids.max()) < source.slots


def test_starts_are_those_of_the_stream_but_for_the_first_two(texts: Documents):
    stream_starts = random_starts(texts)
    source = BLTSource(texts, stream_starts, RowsConfig(bytes=48, slots=7))
    for number, (begin, end) in enumerate(zip(source.rows.units[:-1], source.rows.units[1:], strict=True)):
        starts = source.row(number)["starts"]
        assert starts[:2].all()
        # The unseen byte after the inputs is among them: it decides what the last input may read.
        np.testing.assert_array_equal(starts[2 : end - begin + 1], stream_starts[begin + 2 : end + 1])
        assert not starts[max(end - begin + 1, 2) :].any()


def test_starts_of_another_stream_are_refused(texts: Documents):
    starts = random_starts(texts)
    with pytest.raises(ValueError, match=f"stream_starts has {len(starts) - 1} positions, .* has {len(starts)}"):
        BLTSource(texts, starts[1:], ROWS)
    starts[ByteStream(texts).document_starts[3] + 1] = False
    with pytest.raises(ValueError, match="document 3 does not begin with two starts"):
        BLTSource(texts, starts, ROWS)


def test_rows_of_tokens_shorter_than_a_token_are_refused(texts: Documents, bpe: Tokenizer):
    longest = int(bpe.token_bytes.max())
    with pytest.raises(ValueError, match=rf"rows\.bytes={longest - 1}: a token has {longest} bytes"):
        _ = TokenSource(texts, bpe, RowsConfig(bytes=longest - 1, slots=4)).rows


def test_slots_are_measured_where_they_are_not_given(texts: Documents, bpe: Tokenizer):
    for source in (BLTSource(texts, random_starts(texts), ROWS), TokenSource(texts, bpe, ROWS)):
        assert source.config.slots == source.slots
        assert 2 <= source.slots <= 50
        assert min(source.rows.fill()) > 0.6
    assert ByteSource(texts, ROWS).slots == 48
