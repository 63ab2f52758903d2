import csv
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from bltjax.scaling import probe, throughput
from bltjax.scaling.studyfile import read_study

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "plan.py"
MACHINES = """
[box]
noted = 2026-01-31
device = "a processor"
platform = "cpu"
devices = 2
memory = 8e9
price = 3600.0
currency = "EUR"
peak = { float32 = 1e9 }
[box.fraction]
default = 0.5
[bare]
noted = 2026-01-31
device = "a processor"
platform = "cpu"
devices = 1
memory = 8e9
peak = { float32 = 1e9 }
"""


@pytest.fixture
def files(tmp_path: Path, texts: str) -> Path:
    (tmp_path / "machines.toml").write_text(MACHINES)
    (tmp_path / "study.py").write_text(
        "from pathlib import Path\nfrom bltjax.scaling.study import Study\n"
        f"study = Study(out=Path({str(tmp_path / 'out')!r}), corpus=({texts!r},), preset=('byte-tiny', 'token-tiny'),\n"
        "    budgets=(2e8, 6e8), row_bytes=32, batch=8, heldout_percent=20, heldout_bytes=2000)\n"
    )
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, files: Path, *arguments: object) -> None:
    words = [files / "study.py", "--machine", "box", "--machines", files / "machines.toml", *arguments]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_a_study_of_seconds_is_planned_once_it_is_measured(files, monkeypatch, capsys):
    text = (files / "study.py").read_text().replace("budgets=(2e8, 6e8)", "equal='seconds', budgets=(4.0, 8.0)")
    (files / "study.py").write_text(text)
    for flags in ((), ("--prepare",), ("--probe",)):
        with pytest.raises(SystemExit, match="how long a step of byte-tiny takes"):
            run(monkeypatch, files, *flags)
    with pytest.raises(SystemExit, match="to have 2 devices, and 8 are here"):
        run(monkeypatch, files, "--prepare", "--probe")
    monkeypatch.setattr(throughput, "step_seconds", lambda *_: 0.002)
    monkeypatch.setattr(probe, "step_seconds", lambda *_: 0.002)
    machines = (files / "machines.toml").read_text().replace("devices = 2", "devices = 8")
    (files / "machines.toml").write_text(machines)
    run(monkeypatch, files, "--prepare", "--probe")
    out = capsys.readouterr().out
    assert "--equal seconds" in out
    assert len(re.findall(r" 250 ", out)) == len(re.findall(r" 500 ", out)) == 2  # steps of both models
    run(monkeypatch, files)
    assert " 500 " in capsys.readouterr().out


def test_every_run_is_costed_and_written_down(files, monkeypatch, capsys):
    outputs = {name: files / f"plan.{name}" for name in ("json", "csv", "markdown")}
    run(monkeypatch, files, *(word for name, path in outputs.items() for word in (f"--{name}", path)))
    out = capsys.readouterr().out
    found = json.loads(outputs["json"].read_text())
    assert len(found["items"]) == 4 == len(list(csv.DictReader(outputs["csv"].read_text().splitlines())))
    money = sum(item["money"] for item in found["items"])
    assert found["totals"][-1]["money"] == pytest.approx(money) and f"{money:,.2f}" in out
    assert "**Totals**" in outputs["markdown"].read_text()
    command = f"python experiments/isoflop.py --out {files / 'out'}"
    assert command in out and not (files / "out").exists()


def test_a_study_above_its_cap_ends_with_the_sum_and_the_dearest_runs(files, monkeypatch, capsys):
    run(monkeypatch, files, "--json", files / "plan.json")
    items = json.loads((files / "plan.json").read_text())["items"]
    money = sum(item["money"] for item in items)
    run(monkeypatch, files, "--max-money", money + 0.01)
    capsys.readouterr()
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, files, "--max-money", money - 0.01)
    message = str(refused.value.code)
    dearest = max(items, key=lambda item: item["money"])
    assert message.startswith("refused: max_money=") and f"the study takes {money:,.2f} EUR" in message
    assert f"dearest runs: {dearest['model']} at 6e8, seed 0: {dearest['money']:,.2f}" in message
    assert "Totals" in capsys.readouterr().out  # the tables are there to see why
    with pytest.raises(SystemExit, match="device-hours"):
        run(monkeypatch, files, "--max-device-hours", 1e-9)


def test_prepared_text_is_measured_and_the_study_may_go_on_in_its_folder(files, monkeypatch, capsys):
    run(monkeypatch, files, "--prepare", "--json", files / "plan.json")
    items = json.loads((files / "plan.json").read_text())["items"]
    size = json.loads((files / "plan.json").read_text())["text"]["train_bytes"]
    assert all(item["rows_measured"] for item in items) and not re.search(r"~\d", capsys.readouterr().out)
    assert all(item["epochs"] == pytest.approx(item["bytes"] / size) for item in items)
    assert (files / "out" / "study.json").is_file()  # claimed: no other study may take the folder


def test_what_is_probed_is_used_and_printed_for_the_file(files, monkeypatch, capsys):
    monkeypatch.setattr(probe, "step_seconds", lambda *given: 0.25)
    run(monkeypatch, files, "--probe", "--json", files / "plan.json")
    items = json.loads((files / "plan.json").read_text())["items"]
    out = capsys.readouterr().out
    for item in items:
        assert f'"{item["model"]}" = {item["fraction_of_peak"]:.4g}' in out
        # With every step at a quarter of a second, training takes that long for each.
        scoring = item["scoring_flops_on_devices"] / (2 * 1e9 * item["fraction_of_peak"])
        assert item["hours"] * 3600 == pytest.approx(item["steps"] * 0.25 + scoring)


def test_an_earlier_study_predicts_optima(files, monkeypatch, capsys):
    run(monkeypatch, files, "--fit", ROOT / "experiments" / "results" / "isoflop" / "table.csv")
    assert "fewer than three sizes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--machine", "abacus"), "machine='abacus'"),
        (("--machines", "nowhere.toml"), "nowhere.toml"),
        (("--devices", 0), "devices=0"),
        (("--devices", 3), "batch=8: rows do not divide over 3 devices"),
        (("--max-money", -1), "max_money=-1"),
        (("--max-money", "nan"), "max_money=nan"),
        (("--max-device-hours", "inf"), "max_device_hours=inf"),
        (("--machine", "bare", "--max-money", 5), "can't be checked, [bare] has no price"),
        (("--machine", "bare", "--max-device-hours", 5), "can't be checked, [bare] lacks"),
        (("--bytes-per-parameter", 0), "bytes_per_parameter=0"),
        (("--fit", "nowhere.csv"), "nowhere.csv"),
        (("--fit", SCRIPT), "must be a .csv or a .parquet file"),
        (("--json", "/nowhere/plan.json"), "/nowhere/plan.json"),
    ],
)
def test_bad_flags_end_in_one_clear_line(arguments, message, files, monkeypatch, capsys):
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, files, *arguments)
    said = f"{refused.value.code} {capsys.readouterr().err}"
    assert refused.value.code != 0 and message in re.sub(r"[\s│]+", " ", said)


def test_a_study_that_is_none_ends_in_one_clear_line(files, monkeypatch):
    (files / "study.py").write_text("study = 3")
    with pytest.raises(SystemExit, match="has a `study` that is a int"):
        run(monkeypatch, files)


def test_a_folder_of_something_else_is_not_prepared_in(files, monkeypatch):
    (files / "out").mkdir()
    (files / "out" / "thesis.tex").write_text("")
    with pytest.raises(SystemExit, match="holds something else"):
        run(monkeypatch, files, "--prepare")
    assert [path.name for path in (files / "out").iterdir()] == ["thesis.tex"]


def test_the_example_of_the_header_is_the_main_job():
    assert "experiments/studies/isoflop.py --machine cpu --probe" in SCRIPT.read_text()
    assert read_study(ROOT / "experiments" / "studies" / "isoflop.py").budgets == (8e10, 2e11, 5e11)
