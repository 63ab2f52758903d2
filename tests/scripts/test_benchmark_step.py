"""One line of figures for a step on the devices here; never how fast it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "unit"), [("blt-tiny", "bytes"), ("token-tiny", "tokens")])
def test_a_step_is_measured_on_the_devices_here(name, unit):
    command = [sys.executable, "scripts/benchmark_step.py", "--preset", name, "--rows", "2", "--positions", "64"]
    command += ["--dtype", "float32", "--steps", "2", "--peak", "1e9"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found[f"{unit} per second"] == pytest.approx(2 * 64 / found["step, s"], rel=0.1)
    assert found["peak memory of a device, GiB"] is None, "a CPU does not say"
    assert found["share of the peak"] == pytest.approx(1e3 * found["model TFLOP/s on each device"], rel=0.1, abs=10)
