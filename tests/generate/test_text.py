import pytest

from bltjax.generate.text import Characters, Stop, cut, safe


@pytest.mark.parametrize(
    ("text", "needles", "place"),
    [
        (b"one\ntwo", [b"\n"], 3),
        (b"one two", [b"\n"], None),
        (b"abcabd", [b"abd", b"cab"], 2),  # "cab" is complete first
        (b"xxEND", [b"END", b"xEND"], 1),  # complete together: the one that begins first
        (b"", [b"a"], None),
        (b"abc", [], None),
    ],
)
def test_text_ends_before_the_stop_string_that_is_complete_first(text, needles, place):
    assert cut(text, needles) == place


@pytest.mark.parametrize("needles", [[b"\n\n"], [b"abab", b"bc"], [b"aaab"], [], [b"x"]])
def test_what_is_shown_early_is_never_taken_back(needles):
    """Growing a text byte by byte, what `safe` lets out is always the beginning of what `cut` leaves in the end."""
    for text in (b"aaaaab", b"abcababab", b"a\n b\n\nc", b"ababcx"):
        end = cut(text, needles)
        final = text if end is None else text[:end]
        for length in range(len(text) + 1):
            if cut(text[:length], needles) is None:
                shown = text[: safe(text[:length], needles)]
                assert final.startswith(shown)
                assert length - len(shown) < max(map(len, needles), default=1), (
                    "no more is held back than a stop string"
                )


def test_pieces_are_whole_characters():
    text = "aé€😀ü".encode()
    for size in (1, 2, 3, 5):
        characters = Characters()
        pieces = [characters.feed(text[i : i + size]) for i in range(0, len(text), size)]
        pieces.append(characters.feed(b"", last=True))
        assert b"".join(pieces) == text
        for piece in pieces:
            piece.decode()


def test_bytes_that_are_no_character_are_shown_as_such():
    raw = b"a\xff\xc3b\xe2\x82"
    characters = Characters()
    pieces = [characters.feed(bytes([byte])) for byte in raw]
    assert characters.feed(b"", last=True) == "\ufffd".encode()  # held back until it was clear that it is cut short
    assert (b"".join(pieces) + "\ufffd".encode()).decode() == raw.decode(errors="replace")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strings": [""]}, r"stop\.strings=\[''\]: .*none of them empty"),
        ({"strings": "abc"}, "stop.strings='abc': pass a sequence"),
        ({"patches": 0}, "stop.patches=0: must be at least 1"),
    ],
)
def test_stops_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Stop(**settings)
