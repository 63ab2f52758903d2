"""A run in one process, killed at random moments, ends as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bltjax.metrics import read_journal

RUN = Path(__file__).resolve().parent / "tiny_run.py"


def rows_of(folder):
    return [{k: v for k, v in row.items() if k != "timing"} for row in read_journal(folder / "metrics.jsonl")]


def environment():
    return {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def tiny(folder, cache, *arguments, **settings):
    command = [sys.executable, str(RUN), str(folder), "--cache", str(cache), *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ended(process):
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def until_rows(folder, count, process):
    metrics = folder / "metrics.jsonl"
    for _ in range(6000):
        if metrics.exists() and len(metrics.read_bytes().splitlines()) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{metrics} has fewer than {count} rows after a minute")


@pytest.mark.slow
def test_sigkill_at_26_random_moments_changes_nothing(tmp_path):
    kills, steps = 26, 240
    status, _, err = ended(tiny(tmp_path / "unbroken", tmp_path / "cache", "--steps", steps))
    assert status == 0, err
    status, out, err = ended(tiny(tmp_path / "run", tmp_path / "cache", "--steps", steps, "--kills", kills))
    assert status == 0, err
    fallen = json.loads(out.splitlines()[-1])
    assert sum(fallen.values()) == kills
    assert fallen["saving"] >= kills // 2, "some must fall in the middle of a save"
    assert (tmp_path / "run" / "hash").read_text() == (tmp_path / "unbroken" / "hash").read_text()
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "unbroken")
    assert rows_of(tmp_path / "run")[-1]["step"] == steps


def test_sigterm_saves_within_its_grace_and_a_second_run_is_kept_out(tmp_path):
    first = tiny(tmp_path / "run", tmp_path / "cache", "--steps", 300, "--wait", 0.1, "--grace", 30)
    until_rows(tmp_path / "run", 2, first)
    status, _, err = ended(tiny(tmp_path / "run", tmp_path / "cache", "--steps", 300))
    assert status == 1
    assert f"process {first.pid} on" in err and "is training in this folder" in err
    assert first.poll() is None, "the first is not disturbed"
    begun = time.monotonic()
    first.send_signal(signal.SIGTERM)
    status, _, err = ended(first)
    assert (status, time.monotonic() - begun < 30) == (75, True), err
    assert "stopped by SIGTERM at step" in err and "the state is saved" in err
