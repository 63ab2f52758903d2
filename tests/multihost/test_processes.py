"""Several real processes train one run: killed, stopped, and gone on with by fewer, it ends as it should."""

import signal
import sys
import time
from pathlib import Path

import pytest

from bltjax.metrics import read_journal
from scripts.launch import local

RUN = Path(__file__).resolve().parent / "tiny_run.py"
STEPS = 42


def rows_of(folder):
    return [{k: v for k, v in row.items() if k != "timing"} for row in read_journal(folder / "metrics.jsonl")]


def start(folder, cache, processes, *arguments, devices=1):
    program = [
        sys.executable,
        str(RUN),
        str(folder),
        "--steps",
        str(STEPS),
        "--cache",
        str(cache),
        *map(str, arguments),
    ]
    return local.start(program, processes, devices)


def until_rows(folder, count):
    metrics = folder / "metrics.jsonl"
    for _ in range(30_000):
        if metrics.exists() and len(metrics.read_bytes().splitlines()) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{metrics} has fewer than {count} rows after five minutes")


def broken(folder, cache, processes, **how):
    """A run of which one process is killed, that is gone on with and stopped by SIGTERM to another, and then ends."""
    running = start(folder, cache, processes, "--wait", 0.1, **how)
    until_rows(folder, 4)
    running[-1].kill()
    local.wait(running, patience=3.0)
    assert all(process.returncode for process in running), "none goes on without the others"

    before = len(rows_of(folder))
    running = start(folder, cache, processes, "--wait", 0.2, **how)
    until_rows(folder, before + 2)
    running[-1].send_signal(signal.SIGTERM)
    for process in running:
        assert process.wait(60) == 75, "one signal stops all, after the same step, with all saved"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_a_run_of_several_processes_that_is_killed_ends_as_if_it_had_not_been(tmp_path, processes):
    cache = tmp_path / "cache"
    assert local.wait(start(tmp_path / "unbroken", cache, processes)) == 0
    broken(tmp_path / "run", cache, processes)
    assert local.wait(start(tmp_path / "run", cache, processes)) == 0
    assert (tmp_path / "run" / "hash").read_text() == (tmp_path / "unbroken" / "hash").read_text()
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "unbroken")
    if processes == 4:
        another_number(tmp_path, cache)


def another_number(tmp_path, cache):
    """What 4 processes began 2 go on with: the same batches, losses equal to 1e-5."""
    broken(tmp_path / "fewer", cache, 4)
    assert local.wait(start(tmp_path / "fewer", cache, 2, "--model", 2, devices=2)) == 0
    for a, b in zip(rows_of(tmp_path / "fewer"), rows_of(tmp_path / "unbroken"), strict=True):
        assert a["bits_per_byte"] == pytest.approx(b["bits_per_byte"], rel=1e-5)
        assert (a["step"], a["sums"]["bytes"], a["fill"]) == (b["step"], b["sums"]["bytes"], b["fill"])
