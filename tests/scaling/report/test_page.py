import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from bltjax.scaling.report.data import AXES
from bltjax.scaling.report.page import embedded, page
from tests.scaling.report.conftest import HOSTILE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Parsed(HTMLParser):
    """What a browser makes of a page: its elements, and the text of each kind of them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture(scope="session")
def html(data, report, tables):
    return page(data, report, list(tables.values()))


@pytest.fixture(scope="session")
def study(html):
    return json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', html, re.S)[1])


@pytest.mark.slow
def test_the_same_study_gives_the_same_bytes(html, data, report, tables):
    assert page(data, report, list(tables.values())) == html


def test_nothing_that_came_from_data_is_read_as_html(html, study):
    found = Parsed(html)
    tags = [tag for tag, _ in found.elements]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert html.count("</script>") == 2
    assert not [name for _, attrs in found.elements for name in attrs if name.startswith("on")]
    assert any(HOSTILE.split()[0] in text for text in found.texts["p"])  # it is shown, as text
    presets = [run["preset"] for run in study["runs"].values()]
    assert f"byte-40000{HOSTILE}" in presets
    assert study["manifests"]["byte-40000-1e+12"]["note"] == HOSTILE


@pytest.mark.parametrize("text", [HOSTILE, "<!--<script>", "]]>", "\u2028\u2029", "\ud800"])
def test_embedded_json_ends_no_script(text):
    found = embedded({text: [text]})
    assert found.isascii()
    assert not set("<>&") & set(found)
    assert json.loads(found) == {text: [text]}


def test_the_page_loads_nothing(html):
    found = Parsed(html)
    for tag, attrs in found.elements:
        assert "src" not in attrs
        assert attrs.get("href", "data:,") == "data:,"
        assert tag not in ("iframe", "object", "embed", "form", "base")
        assert "style" not in attrs  # the policy would not have it
    policy = next(attrs["content"] for tag, attrs in found.elements if attrs.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    program = re.search(r"<script>(.*?)</script>", html, re.S)[1] + re.search(r"<style>(.*?)</style>", html, re.S)[1]
    urls = re.findall(r"\w+://[^\s\"']+", program)
    assert urls == ["http://www.w3.org/2000/svg"]  # the name of a language, not a place
    for word in ("fetch(", "XMLHttpRequest", "import(", "@import", "url(", "innerHTML", "eval(", "document.write"):
        assert word not in program


def test_the_page_has_all_that_is_drawn(study, report):
    assert len(study["figures"]) == len(report.figures)
    for own, figure in zip(study["figures"], report.figures, strict=True):
        for there, view in zip(own["views"], figure.views, strict=True):
            for mark, wanted in zip(there["marks"], view.marks, strict=True):
                assert mark["x"] == pytest.approx(wanted.x, rel=1e-5)
                assert mark["y"] == pytest.approx(wanted.y, rel=1e-5)
                assert mark["kind"] == wanted.kind


def test_what_is_left_out_stands_on_the_page(data, report, tables):
    less = dataclasses.replace(report, figures=(), left_out={"A <b>figure</b>": "no data"})
    text = page(data, less, list(tables.values()))
    assert "<strong>A &lt;b&gt;figure&lt;/b&gt;</strong>: no data." in text


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.fail("no Chromium is installed: deselect these tests with -m 'not browser'")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, html, tmp_path):
    """Opens the page from disk; at the end nothing was complained of and nothing was asked for but the page."""
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    url = (tmp_path / "report.html").as_uri()
    said, asked, contexts = [], [], []

    def opens(width=1200, height=900, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: said.append(dialog.message))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(url)
        return tab

    yield opens
    for context in contexts:
        context.close()
    assert said == []
    assert set(asked) == {url}


FIGURE = "#figure-bits_per_byte"


@pytest.mark.browser
def test_the_horizontal_axis_switches(opened):
    tab = opened()
    places = {}
    for axis, (_, label, _) in AXES.items():
        tab.click(f'button[data-x="{axis}"]')
        assert label in tab.text_content(f"{FIGURE} .plot")
        assert tab.get_attribute(f'button[data-x="{axis}"]', "aria-pressed") == "true"
        assert tab.locator('button[data-x][aria-pressed="true"]').count() == 1
        marks = tab.locator(f'{FIGURE} .plot [data-run="blt-6-320000-1e+13"]')
        places[axis] = marks.first.get_attribute("transform")
    assert len(set(places.values())) == 4


@pytest.mark.browser
def test_a_series_is_switched_off_and_on(opened):
    tab = opened()
    count = tab.locator(f"{FIGURE} [data-run]").count()
    assert count == 80
    button = tab.locator("button.family", has_text="flat bytes")
    button.click()
    assert tab.locator(f"{FIGURE} [data-run]").count() == 60
    assert tab.locator(f'{FIGURE} [data-run^="byte-"]').count() == 0
    assert "flat bytes" not in tab.inner_text(f"{FIGURE} .legend")
    button.click()
    assert tab.locator(f"{FIGURE} [data-run]").count() == count


@pytest.mark.browser
def test_pointing_at_a_run_shows_its_numbers_and_a_click_its_manifest(opened, data):
    tab = opened()
    row = next(row for row in data.rows if row["run"] == "byte-40000-1e+12")  # whose preset is hostile
    mark = tab.locator(f'#figure-isoflop_byte [data-run="{row["run"]}"]').last
    mark.scroll_into_view_if_needed()
    tab.wait_for_timeout(150)  # scrolling hides what was shown
    mark.hover()
    assert tab.is_visible("#tip")
    text = tab.inner_text("#tip")
    assert f"{row['heldout_bits_per_byte']:.4f}" in text
    assert "onerror=alert(1)" in text
    tab.keyboard.press("Escape")
    assert not tab.is_visible("#tip")
    mark.click()
    assert tab.is_visible("dialog")
    shown = json.loads(tab.inner_text("dialog pre"))
    assert shown["id"] == row["run"]
    assert shown["note"] == HOSTILE
    tab.click("dialog button")
    assert not tab.is_visible("dialog")
    assert tab.evaluate("document.querySelectorAll('img, iframe').length") == 0


@pytest.mark.browser
def test_all_of_it_by_keyboard(opened):
    tab = opened()
    tab.focus("button.family >> nth=-1")
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.closest('figure')?.id") == FIGURE[1:]:
            break
    first = tab.evaluate("document.activeElement.getAttribute('aria-label')")
    assert tab.is_visible("#tip")
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowLeft")
    last = tab.evaluate("document.activeElement.dataset.run")
    assert last != first
    ring = "getComputedStyle(document.activeElement.querySelector('.ring')).stroke"
    assert tab.evaluate(ring) != "none"
    tab.keyboard.press("Enter")
    assert last in tab.inner_text("dialog h2")
    tab.keyboard.press("Escape")
    assert not tab.is_visible("dialog")
    assert tab.evaluate("document.activeElement.dataset.run") == last
    # One mark of a figure is in the order of Tab, so that nobody has to pass eighty.
    assert tab.locator(f'{FIGURE} [tabindex="0"]').count() == 1


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 320, 1200])
def test_nothing_is_wider_than_the_window(opened, width):
    tab = opened(width, 844)
    for axis in AXES:
        tab.click(f'button[data-x="{axis}"]')
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        wide = """[...document.querySelectorAll("svg text")].filter((text) => {
            const box = text.getBoundingClientRect();
            return box.width && (box.left < -1 || box.right > innerWidth + 1);
        }).map((text) => text.textContent)"""
        assert tab.evaluate(wide) == []


@pytest.mark.browser
def test_light_and_dark(opened):
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = (opened(color_scheme=scheme) for scheme in ("light", "dark"))
    assert light.evaluate(ground) == "rgb(255, 255, 255)"
    assert dark.evaluate(ground) == "rgb(20, 23, 29)"
    dark.click('button[data-set="light"]')
    assert dark.evaluate(ground) == "rgb(255, 255, 255)"
    light.click('button[data-set="dark"]')
    assert light.evaluate(ground) == "rgb(20, 23, 29)"
    light.click('button[data-set="system"]')
    assert light.evaluate(ground) == "rgb(255, 255, 255)"
