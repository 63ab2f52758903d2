import json
import runpy
import sys
from pathlib import Path

import pytest

from bltjax import ahead
from bltjax.ahead import Plan, Report
from bltjax.hlo import Traffic

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compile.py"
GIGA = 2**30
REPORT = Report(
    devices=16,
    parameters=1 * GIGA,
    optimizer=2 * GIGA,
    batch=0.0,
    scratch=15 * GIGA,
    memory=16 * GIGA,
    model_flops=1e12,
    compiled_flops=1.25e12,
    traffic=(Traffic("all-gather", ("data",), 12, 3e9),),
    least={"data": 2e9},
    seconds={"compute": 0.5, "memory": 0.25, "links": 0.1},
    lower_seconds=1.0,
    compile_seconds=2.0,
)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> list[Plan]:
    asked = []
    monkeypatch.setattr(ahead, "compile_ahead", lambda plan: asked.append(plan) or REPORT)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return asked


def test_a_row_for_each_device_and_micro_batch(monkeypatch, capsys):
    mesh = ("--mesh.data", 4, "--mesh.model", 2, "--mesh.replica", 2)
    [plan] = run(
        monkeypatch, "--preset", "blt-tiny", "--topology", "v5e:4x4", *mesh, "--accumulation", 3, "--positions", 512
    )
    assert (plan.rows, plan.positions, plan.slots) == (8 * 3, 512, 128)
    assert (plan.model.compute.dtype, plan.model.compute.remat) == ("bfloat16", "full")
    [flat] = run(monkeypatch, "--preset", "byte-tiny", "--topology", "v5e:2x2", "--slices", 2)
    assert (flat.rows, flat.slots) == (8, None)
    [nodes] = run(monkeypatch, "--preset", "byte-tiny", "--topology", "h100:2x8", "--mesh.replica", 2)
    assert (nodes.rows, nodes.slices) == (2 * 8, 1)


def test_the_table_says_what_fits_and_the_json_holds_it_all(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "--preset", "blt-tiny", "--topology", "v5e:4x4", "--json", tmp_path / "plan.json")
    out = capsys.readouterr().out
    assert "2.00 GiB short of 16.00" in out
    assert "model 1.000e+12, compiled 1.250e+12, ratio 1.250" in out
    assert "least along data" in out and "2000.0 MB, compiled 3000.0" in out
    assert "compute 500.0 ms, memory 250.0 ms, links 100.0 ms" in out
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["asked"]["preset"] == "blt-tiny"
    assert written["found"]["free"] == -2 * GIGA
    assert written["found"]["traffic"][0]["kind"] == "all-gather"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "blt-tyni", "--topology", "v5e:2x2"), "preset='blt-tyni'"),
        (("--preset", "blt-tiny", "--topology", "v9:2x2"), "topology='v9:2x2': chips known here"),
    ],
)
def test_what_is_unknown_ends_in_one_line(monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(SCRIPT), run_name="__main__")
