from html.parser import HTMLParser

import numpy as np
import pytest

from bltjax import vocabulary
from bltjax.config import PatcherConfig
from bltjax.patching import starts_of
from bltjax.patching.viewer import patch_page

ENTROPY = PatcherConfig(threshold=1.5)
SPACE = PatcherConfig(rule="space")
HOSTILE = (
    b"<script>alert('x')</script> &amp; \" --> </style></span>"
    + bytes(range(256))
    + b"\xe2\x82 \xed\xa0\x80 \xf0\x9f\x92\n\n"
    + "\u202e right to left \u200b e\u0301 \u2028 \U0001f600 \ue000 \U000e0001".encode()
)


class Page(HTMLParser):
    """What a browser makes of a page: its elements, and the text and title of every cell."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.cells, self.hints, self.inside = [], [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "b":
            self.inside = True
            self.cells.append("")
            self.hints.append(dict(attrs)["title"])

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "b"

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data

    def classes(self, name):
        return [attrs for _, attrs in self.elements if name in attrs.get("class", "").split()]


def page_of(text, config, seed=0, title="A text", note=""):
    ids = vocabulary.encode(text, eos=True)
    entropies = np.random.default_rng(seed).uniform(0, 3, len(ids)).astype(np.float16)
    starts = starts_of(config, ids[None], entropies[None])[0, :-1]
    source = patch_page(title, ids, starts, config, entropies if config.rule == "entropy" else None, note)
    return source, Page(source), ids, starts, entropies


@pytest.mark.parametrize("config", [ENTROPY, SPACE])
def test_every_position_has_one_cell_and_every_patch_one_beginning(config):
    _, page, ids, starts, _ = page_of(HOSTILE, config)
    assert len(page.cells) == len(ids)
    assert len(page.classes("s")) == starts.sum()
    assert len(page.classes("z")) == starts.sum()


def test_plain_text_is_shown_as_it_is():
    _, page, *_ = page_of("a<b> &amp; \"c\" 'd'", SPACE)
    assert "".join(page.cells) == "BOSa<b>\u00b7&amp;\u00b7\"c\"\u00b7'd'EOS"


@pytest.mark.parametrize("config", [ENTROPY, SPACE])
def test_hostile_bytes_make_no_element_and_no_control_character(config):
    source, page, *_ = page_of(HOSTILE, config, title="</title><script>", note="<img src=x onerror=y>")
    assert {tag for tag, _ in page.elements} <= {
        *("html", "head", "meta", "link", "title", "style", "body", "h1", "p", "dl", "div", "dt", "dd", "span"),
        *("svg", "path", "circle", "b", "u", "i"),
    }
    assert all(character == "\n" or character.isprintable() for character in source)
    source.encode()  # no lone surrogate either


def test_the_page_asks_for_nothing_outside_itself():
    source, page, *_ = page_of(HOSTILE, ENTROPY)
    for tag, attrs in page.elements:
        assert tag not in ("script", "img", "iframe")
        assert not {name for name in attrs if name in ("src", "srcset", "action") or name.startswith("on")}
        assert attrs.get("href", "data:,") == "data:,"
    assert "url(" not in source and "@import" not in source and "http:" not in source and "https:" not in source
    assert "default-src 'none'" in source


def test_bytes_without_a_glyph_are_written_in_hexadecimal():
    _, page, *_ = page_of(b"\x00\xff\x1b\x7f", SPACE)
    assert page.cells == ["BOS", "0\n0", "F\nF", "1\nB", "7\nF", "EOS"]


def test_a_character_of_several_bytes_is_whole_unless_a_patch_starts_in_it():
    ids = vocabulary.encode("\u20ac", bos=False)
    whole = patch_page("", ids, np.array([True, False, False]), SPACE)
    assert Page(whole).cells == ["\u20ac", "", ""]
    split = patch_page("", ids, np.array([True, False, True]), SPACE)
    assert Page(split).cells == ["E\n2", "8\n2", "A\nC"]


def test_marks_stand_on_a_circle_and_formatting_characters_are_hexadecimal():
    ids = vocabulary.encode("e\u0301", bos=False)
    assert Page(patch_page("", ids, np.array([True, False, False]), SPACE)).cells == ["e", "\u25cc\u0301", ""]
    ids = vocabulary.encode("\u202e", bos=False)
    assert Page(patch_page("", ids, np.array([True, False, False]), SPACE)).cells == ["E\n2", "8\n0", "A\nE"]


def test_a_byte_is_shown_with_the_entropy_that_decided_about_it():
    _, page, ids, starts, entropies = page_of("some words to cut", ENTROPY)
    for t in range(1, len(ids)):
        assert f"uncertainty {entropies[t - 1]:.3f} nats" in page.hints[t]
    assert "uncertainty" not in page.hints[0]
    above = [t for t in range(1, len(ids)) if entropies[t - 1] > 1.5]
    assert len([tag for tag, _ in page.elements if tag == "circle"]) == len(above)
    assert {t for t in above if t > 1} == set(np.flatnonzero(starts)[2:].tolist())


def test_the_threshold_is_drawn_where_it_is_compared_with_entropies():
    assert page_of("a text", ENTROPY)[1].classes("l")
    assert not page_of("a text", PatcherConfig(variant="monotonic", threshold=0.5))[1].classes("l")
    assert not page_of("a text", SPACE)[1].classes("l")


def test_lines_end_after_newlines_and_long_patches_are_divided():
    _, page, *_ = page_of(b"one\ntwo\n\n\nthree\n", SPACE)
    assert len([tag for tag, _ in page.elements if tag == "i"]) == 3  # none within a run of newlines
    _, page, *_ = page_of("a" * 100, SPACE)
    assert len(page.classes("p")) > len(page.classes("s"))


def test_an_empty_text():
    source, page, *_ = page_of(b"", SPACE)
    assert page.cells == ["BOS", "EOS"]
    none = np.zeros(0, np.int32)
    assert Page(patch_page("", none, none.astype(bool), ENTROPY, none.astype(np.float16))).cells == []
    assert "0.00" in source


def test_what_does_not_fit_together_is_refused(unchecked):
    ids = vocabulary.encode("abc")
    starts = np.ones(4, bool)
    with pytest.raises(ValueError, match="starts has 3 entries, ids has 4"):
        patch_page("", ids, starts[:3], SPACE)
    with pytest.raises(ValueError, match="entropies has 5 entries"):
        patch_page("", ids, starts, ENTROPY, np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="finite"):
        patch_page("", ids, starts, ENTROPY, np.array([0, np.nan, 1, 1], np.float32))
    with pytest.raises(ValueError, match=r"0 \.\. 259"):
        patch_page("", ids + 200, starts, SPACE)
