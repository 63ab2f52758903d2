"""A tiny run as a process of its own: `python tests/multihost/tiny_run.py FOLDER [--steps N ...]`.

Writes the hash of its parameters at the end to FOLDER/hash. With `--kills N` it starts the same run N + 1 times, each a
process forked when all is imported, and kills all but the last at a random moment: see `killed_runs`.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import jax
import numpy as np

from bltjax.config import ByteTransformerConfig, MeshConfig, OptimConfig, RowsConfig, TrainConfig, TransformerConfig
from bltjax.data.corpus import Documents
from bltjax.data.views import ByteSource
from bltjax.metrics import Progress
from bltjax.runtime import Stopped, is_first_process, keep_compiled, start
from bltjax.train import fit

TEXTS = [b"the quick brown fox %d jumps over the lazy dog " % i * (1 + i % 5) for i in range(200)]


def config(steps: int, **mesh: int) -> TrainConfig:
    return TrainConfig(
        model=ByteTransformerConfig(TransformerConfig(width=32, layers=2, heads=2, hidden=64)),
        steps=steps,
        rows=RowsConfig(bytes=32, batch=8, seed=3),
        optim=OptimConfig(peak_rate=1e-2, warmup_steps=2, first_moment="bfloat16", spike_deviations=4.0, spike_steps=8),
        mesh=MeshConfig(**mesh),
        log_every=3,
        checkpoint_every=7,
        keep_every=50,
        max_skips=1000,  # spikes come here and there, and must come alike
    )


def parameter_hash(params: object) -> str:
    """Of the parameters, wherever they lie."""
    gathered = jax.jit(lambda p: p, out_shardings=jax.tree.map(lambda x: _everywhere(x), params))(params)
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(gathered))).hexdigest()[:16]


def _everywhere(x: jax.Array) -> jax.sharding.Sharding:
    return jax.sharding.NamedSharding(x.sharding.mesh, jax.sharding.PartitionSpec())  # type: ignore[attr-defined]


def run(folder: Path, steps: int, wait: float = 0.0, grace: float | None = None, **mesh: int) -> str:
    source = ByteSource(Documents.of(TEXTS), config(steps).rows)
    result = fit(
        config(steps, **mesh), source, folder, on_step=lambda row: time.sleep(wait), grace_seconds=grace,
        progress=Progress(every_seconds=1e9), checkpoint_seconds=1.0,
    )  # fmt: skip
    found = parameter_hash(result.params)
    if is_first_process():
        (folder / "hash").write_text(found)
    return found


def killed_runs(folder: Path, steps: int, kills: int, seed: int, cache: Path) -> None:
    """Kills the same run `kills` times with SIGKILL, and lets it end; prints where the kills fell, as JSON."""
    rng = random.Random(seed)

    def saving() -> bool:
        return any(path.stat().st_mtime > born for path in folder.glob("checkpoints/*tmp*") if path.exists())

    fallen = {"saving": 0, "between": 0}
    for kill in range(kills + 1):
        born = time.time()
        child = os.fork()
        if child == 0:
            keep_compiled(cache, at_least_seconds=0)
            try:
                run(folder, steps, wait=0.03)
                os._exit(0)
            finally:
                os._exit(1)
        if kill < kills:
            # When it has taken steps, not while it starts; every second time in the middle of a save.
            until, metrics, rows = time.monotonic() + 60, folder / "metrics.jsonl", 0
            while time.monotonic() < until:
                size = metrics.stat().st_size if metrics.exists() else 0
                if size > rows > 0:
                    break
                rows = size
                time.sleep(0.002)
            time.sleep(rng.random() * 0.3)
            while kill % 2 and not saving() and time.monotonic() < until:
                time.sleep(0.0005)
            time.sleep(rng.random() * 0.01)
            fallen["saving" if saving() else "between"] += 1
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert status == (signal.SIGKILL if kill < kills else 0), f"kill {kill}: status {status}"
    print(json.dumps(fallen), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wait", type=float, default=0.0)
    parser.add_argument("--grace", type=float)
    parser.add_argument("--model", type=int, default=1)
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    given = parser.parse_args()
    if given.kills is not None:
        killed_runs(given.folder, given.steps, given.kills, given.seed, given.cache)
        sys.exit()
    start(given.coordinator, given.num_processes, given.process_id, start_seconds=60, heartbeat_seconds=30)
    if given.cache is not None:
        keep_compiled(given.cache, at_least_seconds=0)
    try:
        run(given.folder, given.steps, given.wait, given.grace, model=given.model)
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}\n")
        sys.exit(75)
