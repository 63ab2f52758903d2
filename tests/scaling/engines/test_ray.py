"""Workers of a local Ray are killed at random while they train: every run is done once, and none is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pyarrow.parquet
import pytest

from bltjax.metrics import read_journal
from bltjax.scaling.engines import ray
from bltjax.scaling.jobs import Task
from bltjax.scaling.store import read_json

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "study.py"
WORKERS, RUNS, KILLS = 8, 8, 6
TIMES = ["device_seconds", "own_device_seconds"]


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"engine='ray': pip install 'bltjax\[ray\]'"):
        list(ray.run([Task("study.py", ".", "run")]))


def workers(mark: str) -> list[int]:
    """Processes of Ray that do a job of this test."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            if title.startswith(b"ray::byte-tiny") and mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            pass  # it has ended meanwhile
    return found


@pytest.mark.ray
def test_every_run_is_done_once_though_workers_are_killed_at_random(texts, tmp_path):
    file = tmp_path / "study.py"
    file.write_text(
        "from pathlib import Path\nfrom bltjax.scaling.study import Study\n"
        f"study = Study(out=Path('out'), corpus=({texts!r},), preset=('byte-tiny',), budgets=(6e8, 2e9),\n"
        "    seeds=(0, 1, 2, 3), row_bytes=32, batch=8, heldout_percent=20, heldout_bytes=2000)\n"
    )
    mark = uuid.uuid4().hex
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "BLTJAX_TEST_MARK": mark}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # it is not to be shared by processes that go on together
    (tmp_path / "whole").mkdir()
    command = [sys.executable, str(SCRIPT), "run", str(file)]
    whole = subprocess.Popen(
        command, cwd=tmp_path / "whole", env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said, _ = whole.communicate(timeout=900)
    assert whole.returncode == 0, said

    share = (os.cpu_count() or 1) / WORKERS
    by_ray = [*command, "--engine", "ray", "--cpus", str(share), "--retries", "50"]
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(by_ray, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        generator, kills, most, done, last = random.Random(0), 0, 0, {}, time.monotonic()
        try:
            while process.poll() is None:
                alive = workers(mark)
                most = max(most, len(alive))
                training = len(list(tmp_path.glob("out/runs/*/metrics.jsonl"))) > 0
                if training and alive and kills < KILLS and time.monotonic() - last > 0.5:
                    os.kill(generator.choice(alive), signal.SIGKILL)
                    kills, last = kills + 1, time.monotonic()
                for path in tmp_path.glob("out/runs/*/manifest.json"):
                    text = path.read_bytes()
                    if json.loads(text)["status"] == "complete":
                        done.setdefault(path, text)
                time.sleep(0.02)
        finally:
            process.kill()
        log.seek(0)
        words = log.read()
    assert process.returncode == 0, words
    assert kills >= 5 and most >= min(WORKERS, 4), (kills, most)

    paths = list(tmp_path.glob("out/runs/*/manifest.json"))
    assert len(paths) == RUNS
    assert all(path.read_bytes() == text for path, text in done.items()), "a complete run was done once more"
    starts = 0
    for path in paths:
        manifest, rows = read_json(path), read_journal(path.with_name("metrics.jsonl"))
        other = tmp_path / "whole" / path.relative_to(tmp_path)
        expected = read_journal(other.with_name("metrics.jsonl"))
        assert manifest["status"] == "complete"
        assert manifest["result"]["heldout_sums"] == read_json(other)["result"]["heldout_sums"]
        assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
        assert [without_times(row) for row in rows] == [without_times(row) for row in expected]
        starts += len(manifest["starts"])
    assert starts > RUNS, "no kill met a run that was training"
    tables = [pyarrow.parquet.read_table(folder / "out" / "table.parquet") for folder in (tmp_path, tmp_path / "whole")]
    assert len(set(tables[0]["run"].to_pylist())) == len(tables[0]) == RUNS
    assert tables[0].drop(TIMES).equals(tables[1].drop(TIMES))


def without_times(row):
    return {name: value for name, value in row.items() if name != "timing"}
