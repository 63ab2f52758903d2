import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bltjax.config import PatcherConfig
from bltjax.runtime import Stopped
from bltjax.scaling import jobs as room
from bltjax.scaling.inputs import Inputs
from bltjax.scaling.jobs import Outcome, Task, attempt, job_name, jobs_of, perform, status_table, unfinished
from bltjax.scaling.store import Run, read_json

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "study.py"


def quiet(text: str) -> None:
    pass


def only_bytes(study):
    return dataclasses.replace(study, preset=("byte-tiny",), budgets=(2e8,))


def test_no_two_runs_have_one_name():
    budgets, sizes = (2e8, 2.001e8, 2.0010001e8, 1 / 3 * 1e9), (3.0, 4.5, 4.5000001)
    names = {
        job_name(name, wanted, budget, rate, seed)
        for name in ("byte-tiny", "blt-tiny")
        for wanted in ([None] if name == "byte-tiny" else [PatcherConfig(mean_patch_bytes=size) for size in sizes])
        for budget in budgets
        for rate in (8e-3, 8.0000001e-3, 4e-3)
        for seed in (0, 1)
    }
    assert len(names) == (1 + 3) * 4 * 3 * 2
    assert {"byte-tiny-2e8-s0", "blt-tiny-p4.5-2e8-s1", "blt-tiny-p3-200100010.0-s0"} <= names
    assert {"byte-tiny-2e8-r4e-3-s0", "byte-tiny-2e8-r0.0080000001-s0"} <= names


def test_names_and_order_are_known_before_anything_is_made(study, unbroken):
    before, after = jobs_of(study), jobs_of(unbroken[0])
    assert not study.out.exists()
    assert {job.name for job in before} == {job.name for job in after} and len(before) == 6
    assert all(job.run is None and job.state == "waiting" for job in before)
    assert [job.flops for job in after] == sorted(job.flops for job in after)
    assert all(job.state == "complete" for job in after)
    assert len({job.run.folder for job in after if job.run}) == 6
    assert "6 waiting; 0% of all FLOPs are done" in status_table(before)


def test_a_job_is_done_with_its_own_rows_alone_and_its_numbers_are_those_of_the_study(study, unbroken, monkeypatch):
    study = only_bytes(study)
    made = Inputs(study, quiet)
    monkeypatch.setattr(Inputs, "tokenizer", lambda *_: pytest.fail("byte-tiny needs no tokens"))
    manifest = perform(study, "byte-tiny-2e8-s0", made)
    (expected,) = (row for row in unbroken[1] if row["preset"] == "byte-tiny" and row["budget"] == 2e8)
    assert manifest["id"] == expected["run"]
    assert manifest["result"]["heldout_bits_per_byte"] == expected["heldout_bits_per_byte"]
    with pytest.raises(ValueError, match=r"run='byte-tiny': is none of this study's: byte-tiny-2e8-s0"):
        perform(study, "byte-tiny", made)


def test_how_an_attempt_ended_is_told_and_not_raised(study, monkeypatch):
    study = only_bytes(study)
    made, name = Inputs(study, quiet), "byte-tiny-2e8-s0"
    for error, state in (
        (Stopped("saved"), "stopped"), (ValueError("no such text"), "failed"), (FloatingPointError("nan"), "failed")
    ):  # fmt: skip
        monkeypatch.setattr(room, "execute", lambda *_, error=error: raised(error))
        found = attempt(study, name, made)
        assert found.state == state and str(error) in found.words
    monkeypatch.setattr(room, "execute", lambda *_: raised(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        attempt(study, name, made)


def raised(error):
    raise error


def test_the_status_names_errors_holders_and_what_is_left(study):
    study = dataclasses.replace(study, preset=("byte-tiny",), seeds=(0, 1, 2))
    Inputs(study, quiet)
    jobs = jobs_of(study)
    first, second, third = (job.run for job in jobs[:3])
    assert isinstance(first, Run) and isinstance(second, Run) and isinstance(third, Run)
    first.fail("a", FloatingPointError("the loss\nis not finite"))
    second.finish(second.begin({"id": "b"}), {"heldout_bits_per_byte": 2.34567})
    third.begin({"id": "c"})
    (third.folder / "metrics.jsonl").write_text('{"step": 7}\n{"step": 9}\n{"st')
    with jobs[3].run.hold():
        lines = status_table(jobs).splitlines()
        assert [job.name for job in unfinished(jobs, failed_too=False)] == [job.name for job in jobs[2:]]
        assert [job.name for job in unfinished(jobs, failed_too=True)] == [jobs[0].name, *(j.name for j in jobs[2:])]
    assert "failed" in lines[1] and "FloatingPointError: the loss" in lines[1]
    assert "complete" in lines[2] and "2.3457" in lines[2]
    assert "interrupted" in lines[3] and " 9/" in lines[3]
    assert f"process {os.getpid()} on" in lines[4] and "running" in lines[4]
    assert lines[-1].startswith("1 complete, 1 running, 1 interrupted, 1 failed, 2 waiting; ")


@pytest.fixture
def file(study) -> Path:
    """The study's file, in a folder whose name a shell would take apart."""
    folder = study.out.parent / "it's a folder"
    folder.mkdir()
    (folder / "study.py").write_text(
        "from pathlib import Path\nfrom bltjax.scaling.study import Study\n"
        f"study = Study(out=Path('out'), corpus={study.corpus!r}, preset=('byte-tiny',), budgets=(2e8, 2e9),\n"
        "    row_bytes=32, batch=8, heldout_percent=20, heldout_bytes=2000)\n"
    )
    return folder / "study.py"


def test_a_killed_process_keeps_no_run_and_another_goes_on(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    name = "byte-tiny-2e9-s0"
    task = Task.of(Path("study.py"), name)
    words = shlex.split(shlex.join(task.command(SCRIPT)))
    assert words[0] == sys.executable and all(Path(words[n]).is_absolute() for n in (1, 3, 6))
    monkeypatch.chdir("/")  # the command means the same from anywhere
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    other = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while not list(file.parent.glob("out/runs/*/metrics.jsonl")) and other.poll() is None:
            time.sleep(0.005)
        other.send_signal(signal.SIGSTOP)  # it lives, and holds the run, for as long as this test likes
        assert other.poll() is None, (other.stdout.read() if other.stdout else b"").decode()
        monkeypatch.chdir(file.parent)
        found = task()
        assert found.state == "busy" and f"process {other.pid} on" in found.words
    finally:
        other.kill()
        other.communicate()
    assert task().state == "complete"
    (folder,) = file.parent.glob("out/runs/*")
    assert [start["resumed_from"] for start in read_json(folder / "manifest.json")["starts"]] == [None, None]
    assert task() == Outcome(name, "complete", task().words)


def test_a_task_says_what_is_wrong_with_its_study(tmp_path):
    found = Task(str(tmp_path / "nowhere.py"), str(tmp_path), "run")()
    assert found.state == "failed" and "there is no such file" in found.words


def test_a_folder_for_copies_is_found_from_anywhere_and_a_url_stays(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Task.of(Path("s.py"), "run", "copies").mirror == str(tmp_path / "copies")
    assert Task.of(Path("s.py"), "run", "s3://bucket/a").command(SCRIPT)[-2:] == ["--mirror", "s3://bucket/a"]
