"""How fast BLT runs here, as ratios to `transformers`' BLT on the same machine in the same run.

    python scripts/benchmark.py --peer-python PATH_TO_A_PYTHON_WITH_TORCH_AND_TRANSFORMERS --out benchmark.md

Each measurement is a fresh process; the two sides take turns, and the median over all timed calls is kept. Both run
the configuration `blt-bench` (encoder 1 x 256, global 12 x 512, decoder 6 x 256, k 2, six hash tables of 20,002) with
random weights on one row of random bytes cut into patches of 4. A training step is forward, backward, clipping and
AdamW on every parameter. The peak of a 2048^3 matrix product stands beside the table, since nothing here can pass it.
Takes about 20 minutes on 2 cores; `--quick` leaves out 24,576 bytes.
"""

import dataclasses
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

PRESET = "blt-bench"
PATCH_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of the table; `at_least` is the ratio to the peer that the project holds itself to."""

    kind: str  # "forward", "train" or "matmul"
    bytes: int
    dtype: str = "float32"
    peer: bool = True
    at_least: float | None = None
    calls: int = 3

    @property
    def name(self) -> str:
        return "matrix product 2048^3" if self.kind == "matmul" else f"{self.kind}, {self.bytes:,} bytes"


TASKS = (
    Task("matmul", 2048, calls=20),
    Task("matmul", 2048, "bfloat16", calls=20),
    Task("forward", 1024, at_least=0.8, calls=10),
    Task("forward", 1024, "bfloat16", peer=False, calls=10),
    Task("forward", 4096, peer=False, calls=5),
    Task("forward", 8192, at_least=1.6),
    Task("forward", 8192, "bfloat16", peer=False),
    Task("forward", 24_576, at_least=4.0, calls=2),
    Task("forward", 24_576, "bfloat16", peer=False, calls=2),
    Task("train", 1024, at_least=0.8, calls=8),
    Task("train", 1024, "bfloat16", peer=False, calls=8),
    Task("train", 8192, at_least=1.3, calls=2),
    Task("train", 8192, "bfloat16", peer=False, calls=2),
    Task("train", 24_576, peer=False, calls=1),
)


def timed(call: Callable[[], object], calls: int, warm_up: int = 1) -> list[float]:
    for _ in range(warm_up):
        call()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def patch_lengths(num_bytes: int) -> list[int]:
    """1, 4, 4, ... and the rest; they sum to one more than the bytes of the row."""
    left = num_bytes
    lengths = [1] + [PATCH_BYTES] * (left // PATCH_BYTES)
    return [*lengths, left % PATCH_BYTES] if left % PATCH_BYTES else lengths


def measure_ours(task: Task) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bltjax import families
    from bltjax.patching.patches import Patches
    from bltjax.presets import PRESETS

    if task.kind == "matmul":
        a = jax.random.normal(jax.random.key(0), (task.bytes, task.bytes)).astype(task.dtype)
        product = jax.jit(jnp.matmul)
        return {"seconds": timed(lambda: product(a, a).block_until_ready(), task.calls, 3)}

    base = PRESETS[PRESET]
    compute = dataclasses.replace(base.compute, dtype=task.dtype, unroll=True)
    config = dataclasses.replace(base, compute=compute)
    ids = np.random.default_rng(0).integers(4, 260, (1, task.bytes + 1)).astype(np.int32)
    lengths = np.array([patch_lengths(task.bytes)])
    patches = Patches.from_lengths(lengths, task.bytes)
    if task.kind == "forward":
        params = jax.jit(lambda key: families.initialize(config, key))(jax.random.key(0))
        module = families.build(config)
        forward = jax.jit(lambda params, ids, patches: module.apply({"params": params}, ids, patches))
        begin = time.perf_counter()
        compiled = forward.lower(params, ids[:, :-1], patches).compile()
        compile_seconds = time.perf_counter() - begin
        seconds = timed(lambda: compiled(params, ids[:, :-1], patches).block_until_ready(), task.calls)
        return {"seconds": seconds, "compile_seconds": compile_seconds}

    from bltjax.batch import Batch
    from bltjax.config import OptimConfig
    from bltjax.sharding import make_mesh
    from bltjax.step import compile_step

    starts = np.zeros((1, task.bytes + 1), bool)
    starts[:, np.cumsum([0, *patch_lengths(task.bytes)[:-1]])] = True
    batch = Batch(
        ids=ids[:, :-1], targets=ids[:, 1:], target_bytes=np.ones((1, task.bytes), np.uint16), starts=starts
    )  # fmt: skip
    step = compile_step(config, OptimConfig(), make_mesh(), slots=lengths.shape[1])
    state = step.initial_state(0)
    losses = []

    def one() -> None:
        nonlocal state
        state, metrics = step(state, batch, 4e-4)
        losses.append(float(metrics.sums.byte_nats))

    begin = time.perf_counter()
    one()
    compile_seconds = time.perf_counter() - begin
    return {"seconds": timed(one, task.calls, 1), "losses": losses, "compile_seconds": compile_seconds}


def peer_model() -> Any:
    """The same model in transformers, with random weights."""
    from transformers import BltConfig, BltForCausalLM

    def tower(width: int, layers: int, heads: int, **more: object) -> dict:
        hidden = -(-int(8 * width / 3) // 256) * 256
        return {
            "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": hidden, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, **more,
        }  # fmt: skip

    local = {"vocab_size": 260, "hidden_size_global": 512, "cross_attn_k": 2}
    config = BltConfig(
        vocab_size=260, patch_in_forward=False, cross_attn_k=2, encoder_hash_byte_group_size=[3, 4, 5, 6, 7, 8],
        encoder_hash_byte_group_vocab=20_002, encoder_hash_byte_group_nb_functions=1, max_position_embeddings=32_768,
        encoder_config=tower(256, 1, 4, cross_attn_all_layers=False, **local),
        decoder_config=tower(256, 6, 4, cross_attn_all_layers=True, **local),
        global_config=tower(512, 12, 8),
    )  # fmt: skip
    config.use_cache = False
    return BltForCausalLM(config)


def measure_peer(task: Task) -> dict:
    import torch

    torch.manual_seed(0)
    if task.kind == "matmul":
        a = torch.randn(task.bytes, task.bytes).to(getattr(torch, task.dtype))
        return {"seconds": timed(lambda: a @ a, task.calls, 3)}

    model = peer_model()
    ids = torch.randint(4, 260, (1, task.bytes + 1))
    lengths = torch.tensor([patch_lengths(task.bytes)])

    def forward() -> "torch.Tensor":
        return model(input_ids=ids[:, :-1], patch_lengths=lengths, use_cache=False).logits

    if task.kind == "forward":
        model.eval()
        with torch.no_grad():
            return {"seconds": timed(forward, task.calls)}
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(forward().float()[0], ids[0, 1:])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return {"seconds": timed(step, task.calls)}


def measure_apart(python: str, side: str, task: Task) -> dict:
    """One measurement in a fresh process, with its peak memory."""
    command = [python, os.path.abspath(__file__), "--worker", side, json.dumps(dataclasses.asdict(task))]
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).resolve().parent.parent), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise RuntimeError(f"{side}, {task.name}: the worker failed.\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def worker(side: str, task: Task) -> None:
    result = measure_ours(task) if side == "ours" else measure_peer(task)
    result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if side == "ours":
        import jax

        result["version"] = f"jax {jax.__version__}"
    else:
        import torch
        import transformers

        result["version"] = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(json.dumps(result))


def speed(task: Task, seconds: float) -> str:
    if task.kind == "matmul":
        return f"{2 * task.bytes**3 / seconds / 1e9:,.0f} GFLOP/s"
    return f"{task.bytes / seconds / 1e3:.2f} kB/s"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Command line of the benchmark."""

    peer_python: str | None = None  # a Python that has torch and transformers; None: measure bltjax alone
    only: str = ""  # rows whose name contains this
    rounds: int = 2  # turns of each side
    quick: bool = False  # leave out rows of 24,576 bytes
    out: pathlib.Path | None = None  # a Markdown file to write; the JSON lies beside it


def main(arguments: Arguments) -> None:
    """Measures every row and prints the table."""
    rows, ours_speed, versions = [], {}, set()
    for task in TASKS:
        if arguments.only not in task.name or (arguments.quick and task.bytes > 20_000):
            continue
        ours, peer = [], []
        for turn in range(arguments.rounds):
            # A minute for each call of the peer at 24,576 bytes: one turn has two of them.
            if task.peer and arguments.peer_python and (turn == 0 or task.bytes < 20_000):
                peer.append(measure_apart(arguments.peer_python, "peer", task))
            ours.append(measure_apart(sys.executable, "ours", task))
        versions |= {result["version"] for result in ours + peer}
        median = statistics.median(s for r in ours for s in r["seconds"])
        theirs = statistics.median(s for r in peer for s in r["seconds"]) if peer else None
        ours_speed[task.kind, task.bytes, task.dtype] = task.bytes / median
        row = {
            "row": task.name, "dtype": task.dtype, "bltjax": speed(task, median),
            "transformers": speed(task, theirs) if theirs else "", "ratio": f"{theirs / median:.2f}" if theirs else "",
            "at least": task.at_least or "", "memory, bltjax": f"{max(r['peak_gb'] for r in ours):.1f} GB",
            "memory, transformers": f"{max(r['peak_gb'] for r in peer):.1f} GB" if peer else "",
        }  # fmt: skip
        rows.append(row)
        print(" | ".join(str(v) for v in row.values()), flush=True)
    if not rows:
        names = "; ".join(dict.fromkeys(task.name for task in TASKS))
        sys.exit(f"only={arguments.only!r}: no row has that in its name. The rows are: {names}.")
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(str(v) for v in row.values()) + " |" for row in rows]
    long, short = (ours_speed.get(("forward", n, "float32")) for n in (24_576, 4096))
    if long and short:
        lines += [
            "",
            f"Our forward pass at 24,576 bytes runs at {long / short:.2f} of its speed at 4,096 (at least 0.6).",
        ]
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    machine = next((line.split(":")[1].strip() for line in names if "model name" in line), "")
    lines += ["", f"{machine or platform.processor()}, {os.cpu_count()} cores; {'; '.join(sorted(versions))}."]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")
        arguments.out.with_suffix(".json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], Task(**json.loads(sys.argv[3])))
    else:
        import tyro

        main(tyro.cli(Arguments, description=__doc__))
