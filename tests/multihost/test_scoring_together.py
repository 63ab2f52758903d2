"""Several processes score a corpus together, killed in between, and store what one process stores."""

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from bltjax.data.corpus import Corpus
from bltjax.data.prepare import prepare_shards
from bltjax.data.slices import Given
from bltjax.data.stream import read_entropies

ROOT = Path(__file__).resolve().parent.parent.parent
SCORE = textwrap.dedent("""
    import os, signal, sys
    import jax, numpy as np
    from bltjax import families
    from bltjax.data.corpus import Corpus
    from bltjax.presets import preset
    from bltjax.runtime import start
    from bltjax import scoring

    folder, address, count, index, shards = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    if count > 1:
        start(address, count, index)
    model = preset("entropy-tiny")
    shapes = families.abstract_params(model)
    leaves, structure = jax.tree.flatten(shapes)
    generator = np.random.default_rng(0)
    params = jax.tree.unflatten(structure, [generator.normal(0, 0.5, x.shape).astype(np.float32) for x in leaves])
    score, done = scoring.Scorer.score, []

    def limited(self, documents, show=None):
        if len(done) == shards:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(documents)
        return score(self, documents, show)

    scoring.Scorer.score = limited
    scoring.score_corpus(model, params, Corpus.open(folder))
    print(len(done))
""")


def score(folders: list[Path], shards: int) -> list[tuple[int, str, str]]:
    """Scores by a process for each folder, which may all be one; status, output and messages of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCORE, str(folder), address, str(len(folders)), str(i), str(shards)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i, folder in enumerate(folders)
    ]  # fmt: skip
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        found.append((process.returncode, out, err))
    return found


@pytest.mark.slow
def test_two_processes_killed_and_started_again_store_what_one_stores(tmp_path: Path):
    lines = (json.dumps({"text": f"line {n} " * (n % 40 + 1)}) + "\n" for n in range(150))
    (tmp_path / "lines.jsonl").write_text("".join(lines))
    given = [Given(str(tmp_path / "lines.jsonl"), "lines")]
    for name in ("one", "two"):
        prepare_shards(given, tmp_path / name, heldout_percent=20.0, shard_bytes=4000)
    one, two = (Corpus.open(tmp_path / name) for name in ("one", "two"))
    assert len(one.documents("train").pieces) > 3
    assert [status for status, _, _ in score([one.folder], 99)] == [0]
    assert any(status == -9 for status, _, _ in score([two.folder] * 2, 2))
    again = score([two.folder] * 2, 99)
    assert [status for status, _, _ in again] == [0, 0], again
    shards = sum(len(two.documents(split).pieces) for split in ("train", "heldout"))
    assert all(int(out.splitlines()[-1]) <= shards - 1 for _, out, _ in again), "what was done stayed done"
    for split in ("train", "heldout"):
        fingerprint = json.loads((one.folder / f"{split}.entropies.json").read_bytes())["fingerprint"]
        expected, found = (
            np.array(read_entropies(corpus, split, fingerprint), np.float32) for corpus in (one, two)
        )  # fmt: skip
        np.testing.assert_allclose(found, expected, atol=4e-3)


@pytest.mark.slow
def test_a_shard_that_one_process_finds_damaged_ends_the_scoring_of_both(tmp_path: Path):
    lines = (json.dumps({"text": f"line {n} " * (n % 40 + 1)}) + "\n" for n in range(150))
    (tmp_path / "lines.jsonl").write_text("".join(lines))
    prepare_shards([Given(str(tmp_path / "lines.jsonl"), "lines")], tmp_path / "one", heldout_percent=20.0)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shard = next((tmp_path / "two").glob("train-*.array_record"))
    data = bytearray(shard.read_bytes())
    for document in Corpus.open(tmp_path / "one").documents("train"):
        data[data.index(document.tobytes())] ^= 1
    shard.write_bytes(data)
    (first, _, first_said), (second, _, second_said) = score([tmp_path / "one", tmp_path / "two"], 99)
    assert first and second
    assert f"ValueError: {shard}: document" in second_said
    assert f"process 1: ValueError: {shard}: document" in first_said
    assert not list((tmp_path / "one").glob("train.entropies.f16"))


@pytest.mark.slow
def test_two_processes_train_on_entropies_that_they_have_scored_themselves(tmp_path: Path):
    for n in range(40):
        (tmp_path / f"{n}.txt").write_text(f"{n} bottles\n" * 20)
    prepare_shards([Given(f"{tmp_path}/*.txt", "text")], tmp_path / "corpus", heldout_percent=20.0, shard_bytes=2000)
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(ROOT)}

    def train(preset: str, *arguments: str) -> subprocess.Popen[str]:
        common = ["--rows.bytes", "64", "--rows.batch", "8", "--steps", "2", "--corpus", str(tmp_path / "corpus")]
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--preset", preset, *common, *arguments]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    alone = train("entropy-tiny", "--out", str(tmp_path / "entropy"))
    out, _ = alone.communicate(timeout=200)
    assert alone.returncode == 0, out
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    more = ["--entropy-run", str(tmp_path / "entropy"), "--patcher.mean-patch-bytes", "3"]
    more += ["--out", str(tmp_path / "blt"), "--coordinator", address, "--num-processes", "2", "--process-id"]
    together = [train("blt-tiny", *more, str(i)) for i in range(2)]
    for process in together:
        out, _ = process.communicate(timeout=250)
        assert process.returncode == 0, out
    assert json.loads((tmp_path / "blt" / "result.json").read_bytes())["sums"]["bytes"] > 0
    assert (tmp_path / "corpus" / "heldout.entropies.json").is_file()
