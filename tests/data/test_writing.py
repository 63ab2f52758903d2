import pytest

from bltjax.data.writing import JAPANESE, NO_LETTERS, writing_system


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("The quick brown fox: été, naïve.", "Latin"),
        ("for i in range(10):\n    print(x[i] ** 2)\n", "Latin"),
        ("Всё смешалось в доме Облонских (see p. 3)", "Cyrillic"),
        ("Ἐν ἀρχῇ ἦν ὁ λόγος", "Greek"),
        ("שלום עולם", "Hebrew"),
        ("مرحبا بالعالم", "Arabic"),
        ("नमस्ते दुनिया", "Devanagari"),
        ("안녕하세요 세계", "Hangul"),
        ("天地玄黃宇宙洪荒", "Han"),
        ("吾輩は猫である。名前はまだ無い。", JAPANESE),
        ("カタカナ", JAPANESE),
        ("天地玄黃宇宙洪荒日月盈昃の", "Han"),  # one kana among thirteen
        ("1 + 1 = 2; 3.14!  😀 –", NO_LETTERS),
        ("", NO_LETTERS),
    ],
)
def test_the_script_of_most_letters(text, script):
    assert writing_system(text.encode()) == script


def test_letters_are_counted_not_bytes():
    # Nine Latin letters in nine bytes, eight Greek ones in sixteen.
    assert writing_system("abcdefghi αβγδεζηθ".encode()) == "Latin"


def test_any_bytes_will_do():
    assert writing_system(bytes(range(256))) == "Latin"
    assert writing_system(b"\xff\xfe\x80") == NO_LETTERS
    assert writing_system("привет".encode()[:-1] + b"\xff abc") == "Cyrillic"
