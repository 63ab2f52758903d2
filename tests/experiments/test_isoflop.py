import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "experiments" / "isoflop.py"
FAST = (
    "--preset", "byte-tiny", "blt-tiny", "--budgets", "2e8", "6e8", "--patch-sizes", "3",
    "--row-bytes", "32", "--batch", "8", "--heldout-percent", "20",
    "--entropy-model", "entropy-tiny", "--entropy-bytes", "3000",
)  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", str(SCRIPT), *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=600, env=environment)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    words = "the of a to in is that for it as was with be by on not he his but at are this have from or had an they"
    generator = random.Random(0)
    for number in range(40):
        (folder / f"{number}.txt").write_text(" ".join(generator.choices(words.split(), k=100 + number)))
    return folder


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--corpus", "/nowhere/*.txt"), "/nowhere/*.txt matches no file"),
        (("--preset", "blt-400n"), "blt-400m"),
        (("--budgets", "10"), "less than one step"),
        (("--budget", "1e10"), "--budgets"),
    ],
)
def test_bad_flags_end_in_one_clear_error_and_leave_nothing(flags, named, tmp_path):
    out = tmp_path / "out"
    done = run("--out", str(out), *flags)
    assert done.returncode != 0
    assert named in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.glob("corpus-*"))


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_table(texts, tmp_path):
    flags = ("--corpus", str(texts), *FAST)
    whole = run("--out", str(tmp_path / "whole"), *flags)
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for sign, kill in (("entropy-*/checkpoints", signal.SIGKILL), ("runs/*/metrics.jsonl", signal.SIGTERM)):
        process = subprocess.Popen(
            command("--out", str(out), *flags), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not list(out.glob(sign)) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(kill)
        assert process.wait(timeout=300) != 0
    done = run("--out", str(out), *flags)
    assert done.returncode == 0, done.stderr
    tables = [done.stdout.partition("series ")[2].partition("Table and figures")[0] for done in (whole, done)]
    assert tables[0] == tables[1] != ""


def test_the_help_lists_every_flag():
    done = run("--help")
    assert done.returncode == 0
    for flag in ("corpus", "families", "budgets", "sizes", "seeds", "patch-sizes", "dtype", "out", "preset"):
        assert f"--{flag}" in done.stdout
