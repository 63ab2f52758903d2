import runpy
import sys
from pathlib import Path

import pytest

from bltjax.data.prepare import prepare_shards
from bltjax.data.slices import Given

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "benchmark_data.py"


def test_every_figure_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"{number} bottles of beer on the wall. " * 100)
    prepare_shards([Given(f"{tmp_path}/*.txt", "text")], tmp_path / "corpus", shard_bytes=20_000, heldout_percent=10.0)
    sizes = {"row-bytes": 256, "batch": 2, "batches": 3, "documents": 12, "model": "entropy-tiny"}
    paths = {"corpus": tmp_path / "corpus", "out": tmp_path / "table.md"}
    flags = [part for name, value in {**sizes, **paths}.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == printed
    rows = [line.split("|") for line in printed.splitlines() if line.startswith("| ")][1:]
    assert [row[3].strip() for row in rows] == ["50", "50", "50", "50", "", "", "", "5", ""]
    assert all(float(row[2].split()[0].replace(",", "")) > 0 for row in rows)
