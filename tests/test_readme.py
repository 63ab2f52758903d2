"""The README keeps its word: its example runs, its commands are CI's, what it points at is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PROSE = sorted(path for pattern in ("*.md", "experiments/*.md", "docs/*.md") for path in ROOT.glob(pattern))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_the_example_learns_its_sentence(unchecked):
    (example,) = blocks("python")
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    init = names["jax"].jit(names["model"].init)
    first, _ = names["loss"](init(names["jax"].random.key(0), names["ids"], names["patches"])["params"])
    assert names["nats"] < 0.7 * first


def test_the_two_commands_stand_alone():
    assert blocks("bash") == [
        "pip install -e . && python experiments/isoflop.py\n",
        'pip install -e ".[test]" && pytest -n 2\n',
    ]


def test_ci_runs_the_command_that_the_readme_gives():
    (pattern,) = re.findall(r"grep -E '(\^pip[^']*)' README\.md", (ROOT / ".ci" / "run").read_text())
    assert [line for line in README.splitlines() if re.match(pattern, line)] == [blocks("bash")[1].strip()]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    text = page.read_text()
    headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)}
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    dead = [link for link in links if link.startswith("#") and link[1:] not in headings]
    dead += [link for link in links if not link.startswith("#") and not (page.parent / link).exists()]
    assert dead == []


def test_every_script_that_is_named_exists():
    named = set(re.findall(r"(?:experiments|scripts)/\w+\.py", "".join(page.read_text() for page in PROSE)))
    assert {name for name in named if not (ROOT / name).is_file()} == set()
