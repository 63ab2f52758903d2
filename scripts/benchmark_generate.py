"""How fast BLT writes here: against `transformers`, in long contexts, in batches, and with its own guesses.

    python scripts/benchmark_generate.py --peer-python PATH_TO_A_PYTHON_WITH_TORCH_AND_TRANSFORMERS --out speed.md
    python scripts/benchmark_generate.py --run runs/isoflop/runs/NAME --out guesses.md

The first measures the configuration `blt-bench` with random weights in float32, as scripts/benchmark.py does; every
measurement is a fresh process, and the sides of a ratio take turns. `transformers` runs without its cache, which is
wrong for this model: it computes the whole text anew for every byte. Every process asks Linux for huge pages, as
docs/generating.md has it, but those of one row, for comparison. Patches are of 4 bytes, so that neither side has
an entropy model to run. So are those of batches, by the length of their texts. The two devices into which JAX divides
the CPU write 8 rows each; so that one sees what that is worth, there are lines for 16 rows on one device, and for 16
and one by two devices that compute half of the heads and hidden units each. Rows that end their patches at different
bytes have prompts of different lengths, cut by a small entropy model with random weights, and bytes drawn at random.
The time of a new byte is that of the drawing alone, by their number; what reading the prompt adds is a row of its own.

The second measures guessing ahead (`Generator(ahead=...)`) on a trained model, by rows of a batch and guesses of a
round, against the same model without it. Prompts are from the text of this repository's own source files.
"""

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Literal

PRESET = "blt-bench"
PATCH_BYTES = 4
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Task:
    """What one process measures: the seconds of a new byte, of all rows together."""

    prompt: int = 512
    new: int = 512
    rows: int = 1
    rule: str = "strided"  # or "entropy": then each prompt of a batch is shorter than the one before
    room: int | None = None  # ids that a row has room for; None: those of the prompt and the new ones
    together: float | None = None  # see bltjax.generate.decode.Program; None: as it is
    replicas: int = 1  # devices that share out the rows; on a CPU as many are made of it
    heads: int = 1  # devices that share out heads and hidden units
    ahead: int = 0
    huge_pages: bool = True  # of Linux, for what the process allocates (docs/generating.md); False: pages of 4 kB
    run: str | None = None  # folder of a trained model; None: the benchmark's configuration
    calls: int = 3
    every: int = 1  # of transformers only each so-manieth new byte is computed, and stands for those up to the next
    device: str = "cpu"  # or "gpu"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: how many times as long the other task takes for a byte."""

    name: str
    ours: Task
    other: Task | None = None  # None: transformers, at our task
    whole: bool = False  # the reading of the prompt included
    at_least: float | None = None
    at_most: float | None = None  # then the ratio is ours to the other

    @property
    def demanded(self) -> str:
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "" if self.at_least is None else f"at least {self.at_least:g}"


FAR = 8192
ROOM = FAR + 64 + PATCH_BYTES
SHORT, LONG = Task(512, 512, room=ROOM), Task(4096, 32, room=ROOM)
FARTHEST, NEAR = Task(FAR - 64, 64, room=ROOM), Task(512 - 64, 64, room=ROOM)
BEHIND = Task(FAR, 64, room=ROOM)
MIDDLE, FULL = Task(128, 256), Task(512, 512)
UNLIKE = Task(128, 256, rule="entropy")


def in_small_pages(task: Task) -> Task:
    return dataclasses.replace(task, huge_pages=False)


def batch_row(name: str, task: Task, at_least: float | None = None, **how: Any) -> Row:
    """Sixteen rows of a task, eight on each of two devices, beside one on one."""
    how = {"rows": 16, "replicas": 1 if "heads" in how else 2, **how}
    return Row(name, dataclasses.replace(task, **how), task, at_least=at_least)


ROWS = (
    Row("512 new bytes after a prompt of 512", SHORT, at_least=25),
    Row("the same, the reading of the prompt included", SHORT, whole=True),
    Row("32 new bytes after a prompt of 4,096", LONG, at_least=200),
    Row("the same, the reading of the prompt included", LONG, whole=True),
    Row("a byte at context 8,192 over one at 512", FARTHEST, NEAR, at_most=1.3),
    Row("a byte behind context 8,192 over one at 512", BEHIND, NEAR, at_most=1.3),
    Row("context 8,192 over 512, in pages of 4 kB", in_small_pages(FARTHEST), in_small_pages(NEAR), at_most=1.3),
    Row("context 8,192 in huge pages, against pages of 4 kB", FARTHEST, in_small_pages(FARTHEST)),
    Row("context 512 in huge pages, against pages of 4 kB", NEAR, in_small_pages(NEAR)),
    batch_row("bytes per second of 16 rows over one, texts of 128 bytes", Task(32, 96), at_least=6),
    batch_row("16 rows over one, texts of 128 bytes, room for 1,024", Task(32, 96, room=1024), at_least=6),
    batch_row("16 rows over one, texts of 384 bytes", MIDDLE, at_least=6),
    batch_row("16 rows over one, texts of 1,024 bytes", FULL, at_least=6),
    batch_row("16 rows over one, patches by entropy, texts of 384 bytes", UNLIKE, at_least=6),
    batch_row("the same, the global model run when any row waits", UNLIKE, together=0.0),
    batch_row("the same, the global model run when all rows wait", UNLIKE, together=1.0),
    batch_row("16 rows on one device over one, texts of 384 bytes", MIDDLE, heads=1),
    batch_row("16 rows on one device over one, texts of 1,024 bytes", FULL, heads=1),
    batch_row("16 rows by two devices that share out the heads over one on one, texts of 1,024 bytes", FULL, heads=2),
    batch_row("one row by two devices that share out the heads over one on one, the same", FULL, heads=2, rows=1),
)
AHEAD, BATCHES = (1, 2, 4, 8, 16), (1, 4, 16)


def random_source(rule: str) -> Any:
    """The benchmark's model with random weights, and the rule that cuts it."""
    import jax
    import numpy as np

    from bltjax import families
    from bltjax.config import PatcherConfig
    from bltjax.entropy_model import EntropyModel
    from bltjax.generate import Source
    from bltjax.patching import next_byte_entropy
    from bltjax.presets import PRESETS

    def weights(config: Any, seed: int, scale: float = 1.0) -> Any:
        params = jax.jit(lambda key: families.initialize(config, key))(jax.random.key(seed))
        return jax.tree.map(lambda leaf: np.asarray(leaf) * scale, params)

    config: Any = PRESETS[PRESET]
    if rule == "strided":
        return Source(config, weights(config, 0), PatcherConfig(rule="strided", size=PATCH_BYTES))
    entropy: Any = PRESETS["entropy-cpu"]
    params = weights(entropy, 1, scale=3.0)  # fresh weights are as unsure of every byte
    ids = np.random.default_rng(2).integers(4, 260, (1, 2048)).astype(np.int32)
    found = jax.jit(lambda params, ids: next_byte_entropy(EntropyModel(entropy).apply({"params": params}, ids)))
    threshold = float(np.quantile(np.asarray(found(params, ids)), 1 - 1 / PATCH_BYTES))
    return Source(config, weights(config, 0), PatcherConfig(threshold=threshold), entropy, params)


def prompts_of(task: Task) -> list[Any]:
    """Prompts of one length; with patches that end where they like each is a little shorter than the one before."""
    import numpy as np

    if task.run is None:
        draw = np.random.default_rng(0)
        shorter = int(task.rule == "entropy")
        return [draw.integers(4, 260, task.prompt - row * shorter).astype(np.int32) for row in range(task.rows)]
    text = b"".join(path.read_bytes() for path in sorted((REPOSITORY / "bltjax").rglob("*.py")))
    step = len(text) // task.rows
    return [text[row * step : row * step + task.prompt - row] for row in range(task.rows)]


def measure_ours(task: Task) -> dict[str, Any]:
    """Seconds of a new byte and of the prompt, and how far guesses held."""
    import jax

    from bltjax.config import MeshConfig
    from bltjax.generate import Generator, Sampling, Stop, decode
    from bltjax.sharding import make_mesh
    from bltjax.trained import load_source

    jax.config.update("jax_default_matmul_precision", "highest")  # float32 as it is on CPUs
    devices = task.replicas * task.heads
    if task.device == "cpu" and devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    if task.together is not None:
        decode.TOGETHER = task.together
    source = random_source(task.rule) if task.run is None else load_source(task.run)
    if devices > 1:
        source = source.on(make_mesh(MeshConfig(replica=task.replicas, model=task.heads), jax.devices()[:devices]))
    room = task.room or 1 + task.prompt + task.new  # 1: texts get a BOS

    class Timed(Generator):
        """Knows how long drawing took: what is left of a call that first reads a long prompt would be too rough."""

        drawing = 0.0

        def _draw(self, *arguments: Any) -> Any:
            begin = time.perf_counter()
            session = jax.block_until_ready(super()._draw(*arguments))
            self.drawing += time.perf_counter() - begin
            return session

    generator = Timed(source, capacity=room, ahead=task.ahead)
    prompts = prompts_of(task)
    sampling = Sampling(temperature=1.0) if task.rule == "entropy" else Sampling()

    def call(new: int) -> tuple[float, float, Any]:
        """Seconds of reading and of drawing, and what was drawn."""
        begin, generator.drawing = time.perf_counter(), 0.0
        found = generator(prompts, new, sampling, Stop(eos=False))
        return time.perf_counter() - begin - generator.drawing, generator.drawing, found

    call(min(task.new, 8))  # compiles
    reading, seconds, found = zip(*(call(task.new) for _ in range(task.calls)), strict=True)
    drawn = task.new * task.rows
    patches = sum(int(each.starts[len(each.prompt_ids) :].sum()) for each in found[0])
    result = {
        "bytes": [each / drawn for each in seconds],
        "prompt": min(reading),
        "patch": drawn / max(patches, 1),
    }
    if task.ahead:
        held = [each.guesses for each in found[0]]
        result["accepted"] = sum(one.ids for one in held) / sum(one.rounds for one in held)
        result["saved"] = 1 - sum(one.latent_rounds for one in held) / max(sum(one.patches for one in held), 1)
    return result


def measure_peer(task: Task) -> dict[str, Any]:
    """Seconds of a new byte of `transformers` without cache: the whole text anew for each."""
    import torch

    from scripts.benchmark import patch_lengths, peer_model

    device = "cuda" if task.device == "gpu" else "cpu"
    model = peer_model().eval().to(device)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 260, (1, task.prompt + task.new), generator=draw).to(device)

    def one(length: int) -> float:
        lengths = torch.tensor([patch_lengths(length)], device=device)
        begin = time.perf_counter()
        out = model(input_ids=ids[:, :length], patch_lengths=lengths, use_cache=False, logits_to_keep=1)
        int(out.logits[0, -1].argmax())
        return time.perf_counter() - begin

    with torch.no_grad():
        one(task.prompt)
        seconds = [one(length) for length in range(task.prompt, task.prompt + task.new, task.every)]
    return {"bytes": [statistics.mean(seconds)], "prompt": 0.0}


def measure_apart(python: str, side: str, task: Task, compiled: str = "") -> dict[str, Any]:
    """One measurement in a fresh process, which keeps what it compiles in a folder if there is one."""
    command = [python, os.path.abspath(__file__), "--worker", side, json.dumps(dataclasses.asdict(task))]
    env = {**os.environ, "JAX_PLATFORMS": "cuda" if task.device == "gpu" else "cpu"}
    tunables = os.environ.get("GLIBC_TUNABLES")
    env["GLIBC_TUNABLES"] = ":".join([*filter(None, [tunables]), f"glibc.malloc.hugetlb={int(task.huge_pages)}"])
    env["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [env.get("PYTHONPATH")])])
    if compiled:
        env["JAX_COMPILATION_CACHE_DIR"] = compiled
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise RuntimeError(f"{side}, {task}: the worker failed.\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def worker(side: str, task: Task) -> None:
    result = measure_ours(task) if side == "ours" else measure_peer(task)
    if side == "ours":
        import jax

        result["version"] = f"jax {jax.__version__} on {jax.devices()[0].device_kind}"
    else:
        import torch
        import transformers

        result["version"] = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(json.dumps(result))


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Command line of the benchmark."""

    device: Literal["cpu", "gpu"] = "cpu"  # gpu: the first NVIDIA GPU, for both sides
    peer_python: str | None = None  # a Python that has torch and transformers; None: leave its rows out
    run: pathlib.Path | None = None  # a trained BLT: measure guessing ahead on it, and nothing else
    only: str = ""  # rows whose name contains this
    rounds: int = 2  # turns of each side
    peer_every: int = 1  # compute each so-manieth new byte of transformers; it stands for those up to the next
    out: pathlib.Path | None = None  # a Markdown file to write


class Measured:
    """Tasks that have been measured, each in turns."""

    def __init__(self, arguments: Arguments, compiled: str = "") -> None:
        self.arguments = arguments
        self.compiled = compiled
        self.versions: set[str] = set()
        self.kept: dict[tuple[str, Task], list[dict[str, Any]]] = {}

    def turn(self, side: str, task: Task, turns: int) -> None:
        """Measures a task once more, unless it has been measured so often."""
        found = self.kept.setdefault((side, task), [])
        if len(found) < turns:
            python = sys.executable if side == "ours" else self.arguments.peer_python
            there = dataclasses.replace(task, device=self.arguments.device)
            if there.device == "gpu":  # one of them
                there = dataclasses.replace(there, replicas=1, heads=1)
            found.append(measure_apart(str(python), side, there, self.compiled))
            self.versions.add(found[-1]["version"])

    def seconds(self, side: str, task: Task, whole: bool = False) -> float:
        """Of a new byte, the median over all calls; with its share of the prompt's reading where that counts."""
        found = self.kept[side, task]
        prompt = statistics.median(each["prompt"] for each in found) / (task.new * task.rows) if whole else 0.0
        return statistics.median(s for each in found for s in each["bytes"]) + prompt

    def value(self, task: Task, name: str) -> float:
        return statistics.median(each[name] for each in self.kept["ours", task])


def line(measured: Measured, row: Row) -> dict[str, str]:
    """A row of the table, measured."""
    arguments = measured.arguments
    other = ("ours", row.other) if row.other else ("peer", dataclasses.replace(row.ours, every=arguments.peer_every))
    for turn in range(arguments.rounds):
        if other[0] == "ours" or turn == 0:  # a turn of the peer takes minutes
            measured.turn(*other, turn + 1)
        measured.turn("ours", row.ours, turn + 1)
    ours, theirs = measured.seconds("ours", row.ours, row.whole), measured.seconds(*other, row.whole)
    ratio = ours / theirs if row.at_most is not None else theirs / ours
    return {
        "row": row.name, "bltjax": f"{ours * 1e3:.2f} ms a byte", "the other": f"{theirs * 1e3:.2f} ms a byte",
        "ratio": f"{ratio:.2f}", "demanded": row.demanded,
    }  # fmt: skip


def guess_lines(measured: Measured, run: pathlib.Path) -> list[dict[str, str]]:
    """The table of guessing ahead, by rows of a batch and guesses of a round."""
    lines = []
    for batch in BATCHES:
        plain = Task(prompt=256, new=512, rows=batch, run=str(run.resolve()))
        tasks = [plain, *(dataclasses.replace(plain, ahead=ahead) for ahead in AHEAD)]
        for turn in range(measured.arguments.rounds):
            for task in tasks:
                measured.turn("ours", task, turn + 1)
        for task in tasks:
            seconds, of_plain = measured.seconds("ours", task), measured.seconds("ours", plain)
            lines.append({
                "rows": str(batch),
                "guesses of a round": str(task.ahead),
                "bytes per second": f"{1 / seconds:,.0f}",
                "over plain": f"{of_plain / seconds:.2f}",
                "bytes of a round": f"{measured.value(task, 'accepted'):.2f}" if task.ahead else "1",
                "global steps saved": f"{measured.value(task, 'saved'):.0%}" if task.ahead else "",
            })  # fmt: skip
            print(" | ".join(lines[-1].values()), flush=True)
    return lines


def machine() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = next((line.split(":")[1].strip() for line in names if "model name" in line), "")
    return f"{named or platform.processor()}, {os.cpu_count()} cores, huge pages {huge_pages()}"


def huge_pages() -> str:
    """Who gets huge pages: "always" everybody, "madvise" who asks, "never" nobody."""
    modes = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return modes.read_text().split("[")[1].split("]")[0] if modes.exists() else "unknown"


def main(arguments: Arguments) -> None:
    """Measures every row and prints the table."""
    with tempfile.TemporaryDirectory() as compiled:  # many tasks run the same program
        tabled(arguments, Measured(arguments, compiled))


def tabled(arguments: Arguments, measured: Measured) -> None:
    """Prints the table, and writes it where it is to go."""
    if arguments.run is not None:
        lines = guess_lines(measured, arguments.run)
        patch = measured.value(Task(prompt=256, new=512, run=str(arguments.run.resolve())), "patch")
        notes = [f"{arguments.run.name}: 512 new bytes after prompts of 256, in patches of {patch:.2f} bytes."]
    else:
        rows = [row for row in ROWS if arguments.only in row.name and (row.other or arguments.peer_python)]
        if not rows:
            names = "; ".join(dict.fromkeys(row.name for row in ROWS))
            sys.exit(f"only={arguments.only!r}: no row that can be measured has that in its name. All rows: {names}.")
        lines = []
        for row in rows:
            lines.append(line(measured, row))
            print(" | ".join(lines[-1].values()), flush=True)
        notes = []
        if arguments.peer_every > 1:
            notes = [
                f"transformers computed one of {arguments.peer_every} new bytes, from the first on; each stands for "
                "those up to the next."
            ]
    table = ["| " + " | ".join(lines[0]) + " |", "|" + "---|" * len(lines[0])]
    table += ["| " + " | ".join(each.values()) + " |" for each in lines]
    table += ["", *notes, f"{machine()}; {'; '.join(sorted(measured.versions))}."]
    print("\n".join(table))
    if arguments.out:
        arguments.out.write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], Task(**json.loads(sys.argv[3])))
    else:
        import tyro

        main(tyro.cli(Arguments, description=__doc__))
