"""The engine that starts processes: here they are a shell's, and what a job leaves behind is a file."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from bltjax.scaling.engines import local
from bltjax.scaling.engines.local import here, processes
from bltjax.scaling.inputs import Inputs
from bltjax.scaling.jobs import Outcome
from bltjax.scaling.store import Run

DONE = """'{"status": "complete", "id": "a", "starts": [], "result": {"heldout_bits_per_byte": 2.5}}'"""
FAILED = """'{"status": "failed", "id": "a", "starts": [], "error": {}}'"""


def go(folder: Path, scripts: dict[str, str], count: int = 2, retries: int = 2) -> dict[str, Outcome]:
    for name in scripts:
        (folder / "runs" / name).mkdir(parents=True, exist_ok=True)
    commands = {name: ["sh", "-c", f"cd '{folder / 'runs' / name}'; {text}"] for name, text in scripts.items()}
    found = list(processes(commands, lambda name: Run(folder / "runs" / name), count, retries, folder))
    assert sorted(outcome.job for outcome in found) == sorted(scripts)
    return {outcome.job: outcome for outcome in found}


def test_killed_processes_are_started_again_and_others_are_not(tmp_path):
    found = go(
        tmp_path,
        {
            "sound": f"echo x >>starts; echo {DONE} >manifest.json",
            "killed-twice": f"echo x >>starts; [ $(wc -l <starts) -gt 2 ] || kill -9 $$; echo {DONE} >manifest.json",
            "always-killed": "echo x >>starts; kill -9 $$",
            "wrong": f"echo x >>starts; echo {FAILED} >manifest.json; echo 'nan: lower the rate' >&2; exit 1",
            "stopped": "echo x >>starts; echo 'saved at step 7'; exit 75",
        },
    )
    assert {name: outcome.state for name, outcome in found.items()} == {
        "sound": "complete", "killed-twice": "complete", "always-killed": "crashed", "wrong": "failed",
        "stopped": "stopped",
    }  # fmt: skip
    starts = {path.parent.name: len(path.read_text()) // 2 for path in tmp_path.glob("runs/*/starts")}
    assert starts == {"sound": 1, "killed-twice": 3, "always-killed": 3, "wrong": 1, "stopped": 1}
    assert found["sound"].words == "2.5000 bits per byte" and "signal 9" in found["always-killed"].words
    assert found["wrong"].words == "nan: lower the rate" and found["stopped"].words == "saved at step 7"


def test_a_run_of_another_process_is_reported_and_left(tmp_path):
    with Run(tmp_path / "runs" / "taken").hold():
        found = go(tmp_path, {"taken": "echo 'taken: busy'"})
    assert found["taken"] == Outcome("taken", "busy", "taken: busy")


def test_so_many_at_a_time_each_with_a_place_of_its_own_for_programs(tmp_path):
    text = "date +%s.%N >begun; basename $JAX_COMPILATION_CACHE_DIR >slot; sleep 0.3; date +%s.%N >ended"
    go(tmp_path, {str(n): text for n in range(5)}, count=2)
    times = [
        tuple(float((folder / name).read_text()) for name in ("begun", "ended"))
        for folder in (tmp_path / "runs").iterdir()
    ]
    most = max(sum(begun <= at < ended for begun, ended in times) for at, _ in times)
    assert most == 2
    slots = {(folder / "slot").read_text() for folder in (tmp_path / "runs").iterdir()}
    assert slots == {"compiled-0\n", "compiled-1\n"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_asks_all_processes_to_save_and_starts_no_other(tmp_path, number):
    waits = "trap 'echo saved; exit 75' TERM; touch ready; while :; do sleep 0.05; done"

    def stop():
        while len(list(tmp_path.glob("runs/*/ready"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    found = go(tmp_path, {"a": waits, "b": waits, "c": "touch begun"}, count=2)
    thread.join()
    assert {name: (o.state, o.words) for name, o in found.items()} == {
        "a": ("stopped", "saved"), "b": ("stopped", "saved"), "c": ("stopped", "not begun")
    }  # fmt: skip
    assert not (tmp_path / "runs" / "c" / "begun").exists()


def test_in_this_process_the_first_stop_ends_it_and_a_failure_does_not(study, monkeypatch):
    states = iter(["complete", "failed", "busy", "stopped", "complete"])
    monkeypatch.setattr(local, "attempt", lambda study, job, *_: Outcome(job, next(states), ""))
    made = Inputs(study, lambda text: None)
    assert [outcome.state for outcome in here(study, list("abcde"), made)] == ["complete", "failed", "busy", "stopped"]
