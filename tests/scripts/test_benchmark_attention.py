"""The table of a machine's back ends; never how fast anything is."""

import re
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_attention.py"


def test_a_cpu_has_the_reference_alone_and_bfloat16_is_near_float32(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--calls", "1", "--most-positions", "100"])
    monkeypatch.setattr(sys, "path", sys.path)
    main = runpy.run_path(str(SCRIPT))
    shapes = ((2, 64, 2, 16, 9), (1, 40, 1, 16, None), (1, 9999, 1, 16, None))
    main["main"].__globals__["SHAPES"] = shapes
    main["main"](main["Arguments"](calls=1, most_positions=100))
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if " | reference | " in line]
    assert [row[0] for row in rows] == ["| 2 x 64", "| 1 x 40"]
    assert all(0 < float(row[-1].strip(" |")) < 0.05 for row in rows)
    assert all(re.fullmatch(r"\d+\.\d\d", row[4]) for row in rows)
