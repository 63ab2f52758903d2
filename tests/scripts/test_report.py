import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "report.py"
STUDY = ROOT / "experiments" / "results" / "isoflop"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_committed_table_gives_a_page(monkeypatch, tmp_path, capsys):
    run(monkeypatch, STUDY, "--out", tmp_path / "out", "--draws", 0, "--page-only")
    said = capsys.readouterr().out
    assert "left out: Training losses: no metrics.jsonl" in said
    assert "figures of 27 runs" in said
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "folder=nowhere: is no folder"),
        ((STUDY, "--draws", "-1"), "draws=-1"),
        ((STUDY, "--out", __file__), "is a file; name a folder"),
        ((STUDY.parent / "pods",), "no table.csv"),
    ],
)
def test_what_cannot_be_shown_ends_in_one_clear_error(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *arguments)
    said = " ".join(f"{stopped.value} {capsys.readouterr().err}".replace("│", " ").split())
    assert message in said
    assert "Traceback" not in said
