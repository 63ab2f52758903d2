"""The command line over a study: what is done, by whom, how it stands, and its tables."""

import math
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from bltjax import runtime
from bltjax.metrics import read_journal
from bltjax.scaling import sweep
from bltjax.scaling.store import read_json

ROOT = Path(__file__).resolve().parents[2]
TIMES = ["device_seconds", "own_device_seconds"]
SCRIPT = ROOT / "scripts" / "study.py"


@pytest.fixture
def file(texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "study.py").write_text(
        "from pathlib import Path\nfrom bltjax.scaling.study import Study\n"
        f"study = Study(out=Path('out'), corpus=({texts!r},), preset=('byte-tiny',), budgets=(6e8, 2e8),\n"
        "    row_bytes=32, batch=8, heldout_percent=20, heldout_bytes=2000)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "keep_compiled", lambda folder: None)  # the folder of this test run stays
    return tmp_path / "study.py"


def study(monkeypatch: pytest.MonkeyPatch, *words: object) -> object:
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return ended.value.code


def test_a_study_of_seconds_is_measured_by_the_process_that_runs_it_and_by_no_other(file, monkeypatch, capsys):
    text = file.read_text().replace("budgets=(6e8, 2e8)", "equal='seconds', budgets=(5.0,)")
    file.write_text(text)
    for words in (("status",), ("print-jobs",), ("run", "--processes", "2")):
        ended = study(monkeypatch, words[0], "study.py", *words[1:])
        assert "is not in out/throughput.json" in ended and "--prepare --probe" in ended
    assert study(monkeypatch, "run", "study.py") == 0
    assert "ms a step on" in capsys.readouterr().err and Path("out/table.csv").exists()
    assert study(monkeypatch, "status", "study.py") == 0
    assert "1 complete" in capsys.readouterr().out


def test_commands_are_printed_cheapest_first_and_mean_the_same_anywhere(file, monkeypatch, capsys):
    assert study(monkeypatch, "print-jobs", "study.py") == 0
    out = capsys.readouterr().out
    lines = [shlex.split(line) for line in out.splitlines()]
    assert [words[4] for words in lines] == ["byte-tiny-2e8-s0", "byte-tiny-6e8-s0"]
    assert lines[0] == [
        sys.executable, str(SCRIPT), "one", str(file), "byte-tiny-2e8-s0", "--directory", str(file.parent)
    ]  # fmt: skip
    assert study(monkeypatch, "run", "study.py", "--print-jobs") == 0
    assert capsys.readouterr().out == out
    assert study(monkeypatch, "status", "study.py") == 0
    assert "2 waiting" in capsys.readouterr().out
    assert not (file.parent / "out").exists()
    monkeypatch.chdir("/")
    assert study(monkeypatch, *lines[0][2:]) == 0
    monkeypatch.chdir(file.parent)
    assert study(monkeypatch, "print-jobs", "study.py", "--mirror", "copies") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert shlex.split(line)[4:] == [
        "byte-tiny-6e8-s0", "--directory", str(file.parent), "--mirror", str(file.parent / "copies")
    ]  # fmt: skip


def test_a_failed_run_is_left_until_it_is_tried_again_and_the_others_are_done(file, monkeypatch, capsys):
    score, scored = sweep.evaluate, []

    def first_fails(*given):
        scored.append(score(*given))
        return scored[-1] if len(scored) > 1 else type(scored[-1])(**{**vars(scored[-1]), "byte_nats": math.nan})

    monkeypatch.setattr(sweep, "evaluate", first_fails)
    assert study(monkeypatch, "run", "study.py") == 1
    said = capsys.readouterr().err
    assert "byte-tiny-2e8-s0: failed: FloatingPointError" in said and "byte-tiny-6e8-s0: complete" in said
    assert "failed: byte-tiny-2e8-s0: see `status`; `retry` does them once more" in said
    assert study(monkeypatch, "run", "study.py") == 1 and len(scored) == 2
    assert study(monkeypatch, "status", "study.py") == 0
    assert "1 complete, 1 failed" in capsys.readouterr().out
    assert study(monkeypatch, "table", "study.py") == 0
    assert "1 of 2 runs are complete" in capsys.readouterr().err
    assert len(pyarrow.parquet.read_table("out/table.parquet")) == 1 and not Path("out/summary.txt").exists()

    assert study(monkeypatch, "retry", "study.py", "--mirror", "copies") == 0
    assert len(scored) == 3
    printed = capsys.readouterr()
    assert (
        "byte-tiny-2e8-s0: complete" in printed.err
        and printed.out.strip() == Path("out/summary.txt").read_text().strip()
    )
    table = Path("out/table.csv").read_bytes()
    assert Path("copies/table.csv").read_bytes() == table
    assert len(list(Path("copies/runs").glob("*/manifest.json"))) == 2  # also what was complete before
    steps = pyarrow.parquet.read_table("out/metrics.parquet").to_pylist()
    assert len({(row["run"], row["step"]) for row in steps}) == len(steps)
    assert {path.name for path in Path("out").glob("*.png")} == {"bits_per_byte.png", "isoflop_byte.png"}

    Path("out").rename("gone")
    assert study(monkeypatch, "table", "study.py", "--source", "copies") == 0
    assert Path("out/table.csv").read_bytes() == table
    assert Path("out/metrics.parquet").read_bytes() == Path("gone/metrics.parquet").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("status", "nowhere.py"), "there is no such file"),
        (("run", "study.py", "--engine", "abacus"), "abacus"),
        (("run", "study.py", "--processes", 0), "processes=0: must be at least 1"),
        (("run", "study.py", "--processes", 2, "--engine", "ray"), "processes=2: is for --engine local"),
        (("run", "study.py", "--engine", "slurm", "--gpus", 0.5), "gpus=0.5: Slurm gives whole ones"),
        (("one", "study.py", "byte-huge-2e8-s0"), "is none of this study's: byte-tiny-6e8-s0"),
        (("table", "study.py"), "no run of this study is complete"),
    ],
)  # fmt: skip
def test_bad_words_end_in_one_clear_line(words, message, file, monkeypatch, capsys):
    code = study(monkeypatch, *words)
    said = f"{code} {capsys.readouterr().err}"
    assert code != 0 and message in re.sub(r"[\s│]+", " ", said)
    assert "Traceback" not in said


@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_an_engine_that_is_not_installed_is_named_with_its_extra(engine, file, monkeypatch):
    monkeypatch.setitem(sys.modules, engine if engine == "ray" else "submitit.helpers", None)
    assert f"pip install 'bltjax[{engine}]'" in str(study(monkeypatch, "run", "study.py", "--engine", engine))


@pytest.mark.slow
def test_processes_that_are_killed_and_stopped_do_every_run_once(file):
    """Two processes at a time; one of them is killed, then all are stopped, then the same command goes on."""
    text = file.read_text()
    file.write_text(text.replace("(6e8, 2e8)", "(6e8, 2e9)").replace("row_bytes", "seeds=(0, 1), row_bytes"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "-W", "error", str(SCRIPT), "run", str(file)]
    (file.parent / "whole").mkdir()
    whole = subprocess.run(command, cwd=file.parent / "whole", env=environment, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr

    def begin() -> subprocess.Popen[str]:
        words = [*command, "--processes", "2"]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    process, killed = begin(), False
    while process.poll() is None and not killed:
        for lock in Path("out").glob("runs/*/metrics.jsonl"):
            named = re.match(r"process (\d+) on", lock.with_name("run.lock").read_text())
            if named:
                os.kill(int(named[1]), signal.SIGKILL)
                killed = True
                break
        time.sleep(0.01)
    assert killed
    while process.poll() is None and len(list(Path("out").glob("runs/*/metrics.jsonl"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 75 and "stopped: the same command goes on from here" in said, said
    process = begin()
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    paths = sorted(Path("out").glob("runs/*/manifest.json"))
    assert len(paths) == 4
    assert sum(len(read_json(path)["starts"]) for path in paths) > 4
    for path in paths:
        steps = [row["step"] for row in read_journal(path.with_name("metrics.jsonl"))]
        assert steps == sorted(set(steps))
    tables = [pyarrow.parquet.read_table(f"{folder}out/table.parquet") for folder in ("", "whole/")]
    assert tables[0].drop(TIMES).equals(tables[1].drop(TIMES))
