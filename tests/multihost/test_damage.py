"""A shard that one process alone finds damaged ends all processes, each saying which shard and which process it was."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bltjax.config import RowsConfig
from bltjax.data.corpus import Corpus
from bltjax.data.prepare import prepare_shards
from bltjax.data.slices import Given
from bltjax.data.views import ByteSource
from bltjax.metrics import read_journal
from scripts.launch import local

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = RowsConfig(bytes=64, batch=8, seed=0)
STEPS, DAMAGED = 24, 12


def train(folder: Path, out: Path) -> list[tuple[int, str]]:
    """Trains by two processes, each with a corpus of its own; status and messages of each."""
    address = ["--coordinator", f"127.0.0.1:{local.free_port()}", "--num-processes", "2"]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--preset", "byte-tiny", "--out", str(out), *address]
    command += ["--rows.bytes", "64", "--rows.batch", "8", "--steps", str(STEPS), "--log-every", "2"]
    command += ["--checkpoint-every", "5"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [*command, "--corpus", str(folder / str(i)), "--process-id", str(i)],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=200)[1] for process in running]
    return [(process.returncode, text) for process, text in zip(running, said, strict=True)]


def first_read_late(corpus: Corpus) -> int:
    """A document that process 1 reads at step DAMAGED or soon after, and not before."""
    source = ByteSource(corpus.documents("train"), ROWS)
    order, starts, seen = source.order(ROWS.seed), source.stream.document_starts, set()
    for step in range(STEPS):
        read = set()
        for k in range(8 * step + 4, 8 * step + 8):
            ends = source.rows.units[order.row(k) : order.row(k) + 2]
            first, after = np.searchsorted(starts, ends, "right") - (1, 0)
            read |= set(range(first, after))
        if step >= DAMAGED and read - seen:
            return min(read - seen)
        seen |= read
    raise AssertionError("every document is read before")


def rows_of(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "timing"} for row in read_journal(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_damage_that_one_process_sees_ends_all_and_mended_the_run_ends_as_if_it_had_not_been(tmp_path: Path):
    lines = (json.dumps({"text": f"line {n} " * (n % 40 + 1)}) + "\n" for n in range(150))
    (tmp_path / "lines.jsonl").write_text("".join(lines))
    prepare_shards([Given(f"{tmp_path}/lines.jsonl", "a")], tmp_path / "0", heldout_percent=5.0, shard_bytes=4000)
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    begun = time.monotonic()
    assert [status for status, _ in train(tmp_path, tmp_path / "unbroken")] == [0, 0]
    took = time.monotonic() - begun

    corpus = Corpus.open(tmp_path / "1")
    place = first_read_late(corpus)
    shards = corpus.manifest["splits"]["train"]["shards"]
    (name,) = (s["name"] for s in shards if 0 <= place - s["first_document"] < s["documents"])
    shard = tmp_path / "1" / f"{name}.array_record"
    data, document = bytearray(shard.read_bytes()), corpus.documents("train")[place].tobytes()
    data[data.index(document)] ^= 1
    shard.write_bytes(data)

    begun = time.monotonic()
    (first, first_said), (second, second_said) = train(tmp_path, tmp_path / "run")
    assert time.monotonic() - begun < took + 60, "nobody waits for what does not come"
    assert (first, second) == (1, 1), "an error of a person to mend, which is not started again"
    assert f"{shard}: document" in second_said and "has SHA-256" in second_said
    assert f"process 1: ValueError: {shard}: document" in first_said
    steps = [row["step"] for row in rows_of(tmp_path / "run")]
    assert steps and steps[-1] < STEPS and rows_of(tmp_path / "run") == rows_of(tmp_path / "unbroken")[: len(steps)]

    shutil.copy(tmp_path / "0" / shard.name, shard)
    assert [status for status, _ in train(tmp_path, tmp_path / "run")] == [0, 0]
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "unbroken")
    results = [json.loads((tmp_path / name / "result.json").read_bytes()) for name in ("unbroken", "run")]
    assert results[0]["bits_per_byte"] == results[1]["bits_per_byte"]
