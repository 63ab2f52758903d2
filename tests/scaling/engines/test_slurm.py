"""Array jobs by submitit: its local executor does them, and what Slurm would be asked is read from a stand-in."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from bltjax.metrics import read_journal
from bltjax.scaling.engines.slurm import Requeued, outcomes, submit
from bltjax.scaling.jobs import Outcome, Task
from bltjax.scaling.store import read_json

ROOT = Path(__file__).resolve().parents[3]
SBATCH = """#!/bin/sh
for last; do :; done
cp "$last" "$ASKED"
echo "Submitted batch job 7"
"""


def test_without_submitit_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit.helpers", None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match=r"engine='slurm': pip install 'bltjax\[slurm\]'"):
        submit([Task("study.py", ".", "run")], tmp_path)


@pytest.fixture
def tasks(texts, tmp_path) -> list[Task]:
    (tmp_path / "study.py").write_text(
        "from pathlib import Path\nfrom bltjax.scaling.study import Study\n"
        f"study = Study(out=Path('out'), corpus=({texts!r},), preset=('byte-tiny',), budgets=(2e10, 2e8),\n"
        "    row_bytes=32, batch=8, heldout_percent=20, heldout_bytes=2000)\n"
    )
    return [Task(str(tmp_path / "study.py"), str(tmp_path), name) for name in ("byte-tiny-2e10-s0", "byte-tiny-2e8-s0")]


@pytest.mark.slurm
@pytest.mark.filterwarnings("ignore")  # of submitit's own files and processes
def test_jobs_are_done_by_processes_of_submitit_and_say_how_they_ended(tasks, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    wrong = Task(tasks[0].study, tasks[0].directory, "nothing")
    jobs = submit([*tasks, wrong], tmp_path / "slurm", cluster="local")
    # The first is asked to make room, as Slurm does when time is up or another job is more important: it goes on later.
    while not (training := list(tmp_path.glob("out/runs/*-2e10-*/metrics.jsonl"))):
        time.sleep(0.01)
    (pid,) = re.findall(r"process (\d+) on", training[0].with_name("run.lock").read_text())
    os.kill(int(pid), signal.SIGUSR2)
    found = list(outcomes([*tasks, wrong], jobs))
    assert [outcome.state for outcome in found] == ["complete", "complete", "failed"], found
    assert "is none of this study's" in found[2].words
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 2
    manifest, rows = read_json(training[0].with_name("manifest.json")), read_journal(training[0])
    first, second = (start["resumed_from"] for start in manifest["starts"])
    assert first is None and 0 < second < rows[-1]["step"]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    again = list(outcomes(tasks[1:], submit(tasks[1:], tmp_path / "slurm", cluster="local")))
    assert again == found[1:2]


@pytest.mark.slurm
def test_a_job_whose_time_is_up_is_queued_again_as_it_is(tasks, tmp_path):
    task = Requeued(tasks[0].study, tasks[0].directory, tasks[0].job)
    submission = task.checkpoint()
    submission.dump(tmp_path / "pickle")
    assert type(submission).load(tmp_path / "pickle").function == task


@pytest.mark.slurm
def test_a_job_makes_room_even_where_exceptions_are_dropped(tasks, monkeypatch):
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)

    class Dropping:
        def __del__(self):
            signal.raise_signal(signal.SIGUSR2)

    def do(_):
        Dropping()
        return Outcome("job", "complete", "")

    def requeue(*_):
        raise SystemExit(144)

    monkeypatch.setattr(Task, "__call__", do)
    usual = signal.signal(signal.SIGUSR2, requeue)
    try:
        Requeued(tasks[0].study, tasks[0].directory, tasks[0].job)()
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, usual)
    assert ends == [144]


@pytest.mark.slurm
@pytest.mark.filterwarnings("ignore")
def test_slurm_is_asked_for_one_array_with_what_the_flags_say(tasks, tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        (programs / name).write_text(SBATCH)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    jobs = submit(
        tasks, tmp_path / "slurm", hours=1.5, partition="big", cpus=6, gpus=1, at_a_time=1,
        parameters={"account": "me"},
    )  # fmt: skip
    assert [job.job_id for job in jobs] == ["7_0", "7_1"]
    asked = (tmp_path / "asked").read_text()
    for line in ("array=0-1%1", "time=90", "partition=big", "cpus-per-task=6", "gpus-per-node=1", "account=me",
                 "signal=USR2@90"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in asked
