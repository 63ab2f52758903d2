"""How fast BLT runs here, as ratios to `transformers`' BLT on the same machine in the same run.

    python scripts/benchmark.py --peer-python PATH_TO_A_PYTHON_WITH_TORCH_AND_TRANSFORMERS --out benchmark.md

Each measurement is a fresh process; the two sides take turns, and the median over all timed calls is kept. Both run
the configuration `blt-bench` (encoder 1 x 256, global 12 x 512, decoder 6 x 256, k 2, six hash tables of 20,002) with
random weights on one row of random bytes cut into patches of 4. A training step is forward, backward, clipping and
AdamW on every parameter. The peak of a 2048^3 matrix product stands beside the table, since nothing here can pass it.
Takes about 20 minutes on 2 cores; `--quick` leaves out 24,576 bytes.

    python scripts/benchmark.py --device gpu --peer-python PYTHON_WITH_CUDA --out benchmark_gpu.md

takes other rows, on the first GPU, both sides there and in the same precision: `tf32` is what JAX makes of float32 on a
GPU unless told otherwise, and torch only if it is told. Memory is then the GPU's, at its peak. On an H100 it
takes more than 7 minutes.
"""

import dataclasses
import json
import os
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

PRESET = "blt-bench"
PATCH_BYTES = 4
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of the table; `at_least` is the ratio to the peer that the project holds itself to."""

    kind: str  # "forward", "train" or "matmul"
    bytes: int  # of a row
    dtype: str = "float32"  # or "bfloat16"; on GPUs also "tf32"
    peer: bool = True
    at_least: float | None = None
    calls: int = 3
    rows: int = 1
    device: str = "cpu"

    @property
    def name(self) -> str:
        if self.kind == "matmul":
            return f"matrix product {self.bytes}^3"
        return f"{self.kind}, {f'{self.rows} x ' if self.rows > 1 else ''}{self.bytes:,} bytes"

    @property
    def is_bfloat16(self) -> bool:
        return self.dtype == "bfloat16"


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
GPU_TASKS = tuple(
    Task(kind, positions, dtype, calls=10, rows=rows, device="gpu")
    for kind, positions, rows, dtype in (
        ("matmul", 8192, 1, "float32"),
        ("matmul", 8192, 1, "tf32"),
        ("matmul", 8192, 1, "bfloat16"),
        ("forward", 1024, 1, "bfloat16"),
        ("forward", 8192, 1, "bfloat16"),
        ("forward", 8192, 1, "float32"),
        ("forward", 8192, 8, "bfloat16"),
        ("train", 8192, 1, "bfloat16"),
        ("train", 8192, 1, "tf32"),
        ("train", 8192, 8, "bfloat16"),
        ("forward", 24_576, 1, "bfloat16"),
        ("train", 24_576, 1, "bfloat16"),
    )
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

    jax.config.update("jax_default_matmul_precision", "highest" if task.dtype == "float32" else "default")
    dtype = "bfloat16" if task.is_bfloat16 else "float32"
    if task.kind == "matmul":
        a = jax.random.normal(jax.random.key(0), (task.bytes, task.bytes)).astype(dtype)
        product = jax.jit(jnp.matmul)
        return {"seconds": timed(lambda: product(a, a).block_until_ready(), task.calls, 3)}

    base = PRESETS[PRESET]
    # Written out, the reference's attention takes a GPU's compiler half a minute, and gains nothing there.
    compute = dataclasses.replace(base.compute, dtype=dtype, unroll=task.device == "cpu" or task.is_bfloat16)
    config = dataclasses.replace(base, compute=compute)
    rows = task.rows
    ids = np.random.default_rng(0).integers(4, 260, (rows, task.bytes + 1)).astype(np.int32)
    lengths = np.array([patch_lengths(task.bytes)] * rows)
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

    starts = np.zeros((rows, task.bytes + 1), bool)
    starts[:, np.cumsum([0, *patch_lengths(task.bytes)[:-1]])] = True
    batch = Batch(
        ids=ids[:, :-1], targets=ids[:, 1:], target_bytes=np.ones((rows, task.bytes), np.uint16), starts=starts
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
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = task.dtype == "tf32"
    device = "cuda" if task.device == "gpu" else "cpu"
    ready = torch.cuda.synchronize if task.device == "gpu" else (lambda: None)
    dtype = torch.bfloat16 if task.is_bfloat16 else torch.float32
    if task.kind == "matmul":
        a = torch.randn(task.bytes, task.bytes).to(device, dtype)
        return {"seconds": timed(lambda: (a @ a, ready()), task.calls, 3)}

    # Beside parameters in bfloat16 the peer keeps no others; ours stay in float32, as they do in training.
    model = peer_model().to(device, dtype)
    ids = torch.randint(4, 260, (task.rows, task.bytes + 1), device=device)
    lengths = torch.tensor([patch_lengths(task.bytes)] * task.rows, device=device)

    def forward() -> "torch.Tensor":
        return model(input_ids=ids[:, :-1], patch_lengths=lengths, use_cache=False).logits

    if task.kind == "forward":
        model.eval()
        with torch.no_grad():
            return {"seconds": timed(lambda: (forward(), ready()), task.calls)}
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(forward().float().flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        ready()

    return {"seconds": timed(step, task.calls)}


def measure_apart(python: str, side: str, task: Task) -> dict | None:
    """One measurement in a fresh process, with its peak memory; None where a GPU has too little of it."""
    command = [python, os.path.abspath(__file__), "--worker", side, json.dumps(dataclasses.asdict(task))]
    env = {**os.environ, "JAX_PLATFORMS": "cuda" if task.device == "gpu" else "cpu"}
    env["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [env.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if task.device == "gpu" and re.search("out of memory|OutOfMemory|RESOURCE_EXHAUSTED", done.stderr):
        return None
    if done.returncode:
        raise RuntimeError(f"{side}, {task.name}: the worker failed.\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def worker(side: str, task: Task) -> None:
    result = measure_ours(task) if side == "ours" else measure_peer(task)
    result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if side == "ours":
        import jax

        result["version"] = f"jax {jax.__version__}"
        if task.device == "gpu":
            result["peak_gb"] = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 2**30
            result["machine"] = jax.local_devices()[0].device_kind
    else:
        import torch
        import transformers

        if task.device == "gpu":
            result["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30

        result["version"] = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(json.dumps(result))


def speed(task: Task, seconds: float) -> str:
    if task.kind == "matmul":
        return f"{2 * task.bytes**3 / seconds / 1e9:,.0f} GFLOP/s"
    return f"{task.rows * task.bytes / seconds / 1e3:,.2f} kB/s"


def peak(results: list[dict]) -> str:
    return f"{max(result['peak_gb'] for result in results):.1f} GB" if results else ""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Command line of the benchmark."""

    device: Literal["cpu", "gpu"] = "cpu"  # gpu: the first NVIDIA GPU, other rows
    peer_python: str | None = None  # a Python that has torch and transformers; None: measure bltjax alone
    only: str = ""  # rows whose name contains this
    rounds: int = 2  # turns of each side
    quick: bool = False  # leave out rows of 24,576 bytes
    out: pathlib.Path | None = None  # a Markdown file to write; the JSON lies beside it


def main(arguments: Arguments) -> None:
    """Measures every row and prints the table."""
    rows, ours_speed, versions, machines = [], {}, set(), set()
    tasks = TASKS if arguments.device == "cpu" else GPU_TASKS
    for task in tasks:
        if arguments.only not in task.name or (arguments.quick and task.bytes > 20_000):
            continue
        ours, peer, too_large = [], [], {}
        for turn in range(arguments.rounds):
            # On CPUs a minute for each call of the peer at 24,576 bytes: one turn has two of them.
            sides = [("ours", sys.executable, ours)]
            if task.peer and arguments.peer_python and (turn == 0 or task.bytes < 20_000 or arguments.device == "gpu"):
                sides.insert(0, ("peer", arguments.peer_python, peer))
            for side, python, results in sides:
                found = measure_apart(python, side, task)
                if found is None:
                    too_large[side] = "out of memory"
                else:
                    results.append(found)
        versions |= {result["version"] for result in ours + peer}
        machines |= {result["machine"] for result in ours if "machine" in result}
        median, theirs = (
            statistics.median(s for r in side for s in r["seconds"]) if side else None for side in (ours, peer)
        )
        if median:
            ours_speed[task.kind, task.bytes, task.dtype] = task.bytes / median
        row = {
            "row": task.name, "dtype": task.dtype,
            "bltjax": speed(task, median) if median else too_large.get("ours", ""),
            "transformers": speed(task, theirs) if theirs else too_large.get("peer", ""),
            "ratio": f"{theirs / median:.2f}" if theirs and median else "",
            "at least": task.at_least or "", "memory, bltjax": peak(ours), "memory, transformers": peak(peer),
        }  # fmt: skip
        rows.append(row)
        print(" | ".join(str(v) for v in row.values()), flush=True)
    if not rows:
        names = "; ".join(dict.fromkeys(task.name for task in tasks))
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
    lines += [
        "",
        *(f"{name}." for name in sorted(machines)),
        f"{machine or platform.processor()}, {os.cpu_count()} cores; {'; '.join(sorted(versions))}.",
    ]
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
