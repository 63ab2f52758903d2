"""Several processes: each knows its place, none outlives a bad end of another; and what is started again, and when."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.launch import local

FOLDER = Path(__file__).resolve().parent.parent.parent.parent / "scripts" / "launch"

PROGRAM = """
import json, os, sys, time
arguments = sys.argv[1:]
place = dict(zip(arguments[1::2], arguments[2::2]))
with open(os.path.join(arguments[0], place["--process-id"]), "w") as file:
    json.dump([place, os.environ["XLA_FLAGS"]], file)
"""


def start(folder, more="", processes=3):
    return local.start([sys.executable, "-c", PROGRAM + more, str(folder)], processes, cpu_devices=2)


def test_each_process_knows_its_place(tmp_path):
    assert local.wait(start(tmp_path)) == 0
    said = [json.loads((tmp_path / str(i)).read_text()) for i in range(3)]
    assert [place["--process-id"] for place, _ in said] == ["0", "1", "2"]
    assert {(place["--coordinator"], place["--num-processes"]) for place, _ in said} == {
        (said[0][0]["--coordinator"], "3")
    }
    assert all(flags.count("device_count=") == 1 and "device_count=2" in flags for _, flags in said)


def test_when_one_ends_badly_the_others_are_ended(tmp_path):
    more = """
import json
import os
import signal
deaf = os.path.join(arguments[0], "deaf")
if place["--process-id"] == "1":
    while not os.path.exists(deaf):
        time.sleep(0.01)
    sys.exit(7)
if place["--process-id"] == "2":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(deaf, "w").close()
time.sleep(60)
"""
    begun = time.monotonic()
    running = start(tmp_path, more)
    assert local.wait(running, patience=1.0) == 7
    assert [process.returncode for process in running] == [-signal.SIGTERM, 7, -signal.SIGKILL]
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("name", ["slurm.sbatch", "xpk.sh", "tpu_vm.sh", "skypilot.yaml"])
def test_launch_files_are_short_and_start_the_training_script(name, tmp_path):
    text = (FOLDER / name).read_text()
    assert len(text.splitlines()) <= 45
    before, edit, rest = (
        text.split("--- edit from here ---")[0],
        *text.split("--- edit from here ---")[1].split("--- to here ---"),
    )
    assert len(before.splitlines()) <= 5, "what must be edited stands at the top"
    assert "CORPUS" in edit and "RUN" in edit and "scripts/train.py" in rest
    script = FOLDER / name
    if name.endswith(".yaml"):
        script = tmp_path / "run.sh"
        script.write_text(text.split("run: |\n")[1])
    subprocess.run(["bash", "-n", str(script)], check=True)


FAKE = """#!/usr/bin/env bash
tool=$(basename "$0")
echo "$@" >> "$LOG.$tool"
[ "$tool" = gcloud ] || exit 0
exit "$(sed -n "$(wc -l < "$LOG.gcloud")p" "$LOG")"
"""


def launched(name, tmp_path, statuses=()):
    """Runs a launch file whose tools only note how they were called; gcloud ends with one status after the other."""
    log = tmp_path / "log"
    log.write_text("".join(f"{status}\n" for status in statuses))
    for tool in ("gcloud", "xpk", "sleep"):
        (tmp_path / tool).write_text(FAKE)
        (tmp_path / tool).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
    done = subprocess.run(["bash", str(FOLDER / name)], env=environment, capture_output=True, text=True, timeout=60)
    noted = {tool: tmp_path / f"log.{tool}" for tool in ("gcloud", "xpk", "sleep")}
    return done, {tool: path.read_text().splitlines() if path.exists() else [] for tool, path in noted.items()}


@pytest.mark.parametrize(
    ("statuses", "ends"),
    [([0], 0), ([75] * 30 + [0], 0), ([137, 255, 134, 0], 0), ([137] * 21, 137), ([1], 1), ([75, 2], 2)],
    ids=["done", "stopped", "crashed", "crashed too often", "error", "usage"],
)
def test_a_tpu_vm_goes_on_after_stops_and_some_crashes_and_never_after_an_error(statuses, ends, tmp_path):
    done, calls = launched("tpu_vm.sh", tmp_path, statuses)
    assert done.returncode == ends, done.stderr
    assert len(calls["gcloud"]) == len(statuses)
    assert calls["sleep"] == ["30"] * (len(statuses) - 1)
    assert ("not started again" in done.stderr) == (ends != 0)


def test_xpk_goes_on_after_a_stop_and_hands_signals_to_python(tmp_path):
    done, calls = launched("xpk.sh", tmp_path)
    assert done.returncode == 0, done.stderr
    (call,) = calls["xpk"]
    assert call.startswith("workload create --workload bltjax-blt-8b ")
    assert "--restart-on-exit-codes 75" in call and "--max-restarts 1000" in call
    assert "--command cd /bltjax && exec python scripts/train.py" in call
