"""The benchmark's arithmetic, and one real measurement of a tiny trained model; never how fast anything is."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.studies import write_study

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_generate.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_generate_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def measured(seconds, prompt=0.0):
    """In place of a process: a byte takes so long, by side and rows of a batch."""

    def apart(python, side, task, compiled):
        found = {"bytes": [seconds[side, task.prompt, task.rows]], "prompt": prompt, "version": side}
        return {**found, "patch": 4.5, "accepted": 1.5 + task.ahead / 10, "saved": 0.25}

    return apart


def test_ratios_are_of_a_byte_alone_or_with_its_share_of_the_prompt(benchmark, monkeypatch, capsys, tmp_path):
    seconds = {("ours", 512, 1): 0.01, ("peer", 512, 1): 0.3, ("ours", 4096, 1): 0.01, ("peer", 4096, 1): 3.0}
    rows = [row for row in benchmark.ROWS if row.other is None]
    monkeypatch.setattr(benchmark, "ROWS", rows)
    monkeypatch.setattr(benchmark, "measure_apart", measured(seconds))
    benchmark.main(benchmark.Arguments(peer_python="other", peer_every=4, out=tmp_path / "table.md"))
    text = (tmp_path / "table.md").read_text()
    assert "| 512 new bytes after a prompt of 512 | 10.00 ms a byte | 300.00 ms a byte | 30.00 | at least 25 |" in text
    assert "| 300.00 | at least 200 |" in text and "computed one of 4 new bytes" in text

    def apart(python, side, task, compiled):
        return {"bytes": [0.01 if side == "ours" else 3.0], "prompt": 0.64 if side == "ours" else 0, "version": side}

    monkeypatch.setattr(benchmark, "measure_apart", apart)
    whole = [row for row in rows if row.whole and row.ours.new == 32]
    found = benchmark.Measured(benchmark.Arguments(peer_python="other"))
    assert benchmark.line(found, whole[0])["ratio"] == "100.00"  # 3 s over 0.01 s and 0.64 s / 32
    capsys.readouterr()


def test_what_is_to_be_small_is_ours_over_the_other(benchmark, monkeypatch):
    seconds = {("ours", 8128, 1): 0.012, ("ours", 448, 1): 0.01, ("ours", 32, 16): 0.001, ("ours", 32, 1): 0.01}
    monkeypatch.setattr(benchmark, "measure_apart", measured(seconds))
    found = benchmark.Measured(benchmark.Arguments())
    far, batch = (next(row for row in benchmark.ROWS if part in row.name) for part in ("context", "16 rows"))
    assert (benchmark.line(found, far)["ratio"], far.demanded) == ("1.20", "at most 1.3")
    assert (benchmark.line(found, batch)["ratio"], batch.demanded) == ("10.00", "at least 6")


def test_processes_ask_for_huge_pages_unless_a_task_is_without(benchmark, monkeypatch):
    asked = []

    def run(command, env, **_):
        asked.append(env["GLIBC_TUNABLES"])
        return subprocess.CompletedProcess(command, 0, stdout="{}", stderr="")

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    for task in (benchmark.NEAR, benchmark.in_small_pages(benchmark.NEAR)):
        benchmark.measure_apart("python", "ours", task)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    benchmark.measure_apart("python", "peer", benchmark.NEAR)
    one = "glibc.malloc.hugetlb=1"
    assert asked == [one, "glibc.malloc.hugetlb=0", f"glibc.malloc.arena_max=2:{one}"]


def test_guessing_is_tabled_by_batch_and_length_against_the_same_batch(benchmark, monkeypatch, tmp_path):
    def apart(python, side, task, compiled):
        seconds = (0.01 if task.ahead else 0.008) / task.rows
        return {"bytes": [seconds], "prompt": 0.0, "version": side, "patch": 4.5, "accepted": 2.5, "saved": 0.25}

    monkeypatch.setattr(benchmark, "measure_apart", apart)
    benchmark.main(benchmark.Arguments(run=tmp_path / "model", rounds=1, out=tmp_path / "table.md"))
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 2 + len(benchmark.BATCHES) * (1 + len(benchmark.AHEAD)) + 3
    assert "| 4 | 8 | 400 | 0.80 | 2.50 | 25% |" in lines and "| 4 | 0 | 500 | 1.00 | 1 |  |" in lines


def test_a_name_that_fits_no_row_is_an_error_that_lists_them(benchmark):
    with pytest.raises(SystemExit, match=r"only='walk'.*a byte at context 8,192"):
        benchmark.main(benchmark.Arguments(only="walk"))


@pytest.mark.thorough
def test_a_trained_model_is_measured_in_a_process_of_its_own(benchmark, tmp_path):
    write_study(tmp_path)
    task = benchmark.Task(prompt=20, new=6, rows=2, run=str(tmp_path / "runs" / "blt"), ahead=2, calls=1)
    result = benchmark.measure_apart(sys.executable, "ours", task)
    assert len(result["bytes"]) == 1 and result["prompt"] > 0
    assert 1 <= result["accepted"] <= 3 and result["saved"] <= 1
