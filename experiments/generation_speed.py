"""How fast does each family write, and how well? Bytes per second against bits per byte of trained models.

    python experiments/isoflop.py
    python experiments/isoflop.py --families megabyte --out runs/megabyte
    python experiments/generation_speed.py

takes 4 minutes on 2 cores after the first two, whose models it reads. Of each family the best size at each budget
continues the same prompt, in turns with all others, which go one way and then the other; what it draws in a second, the
reading of the prompt included, is the median over turns. A model of the ladder takes some hundredths of a second for
its turn, so there are hundreds of them in a minute. The ratio of two models is the median over turns of what it was in
each, with a 95 % interval that holds whatever the noise is like, if turns are independent (order statistics).

MEGABYTE's paper (Yu et al. 2023, section 4.3) reports that a model of 1.3B and 218M parameters writes 40 % faster than
a Transformer of 350M, at better bits per byte. Here that claim is put in three ways:

    claim          random weights of the paper's shapes, at half their widths and a third of their layers: 120M
                   parameters against 25M. Speed does not depend on what weights have learnt.
    equal FLOPs    trained with one budget: each family's best against the best of flat bytes
    equal quality  each against the run of flat bytes whose bits per byte are nearest; how near is in the table

Expected on 2 cores: no 40 %. MEGABYTE is 1.02 to 1.05 times as fast with 4.5 times the parameters, and .93 to 1.05
times as fast as flat bytes of the CPU ladder; tokens reach .7 to .9 of flat bytes, BLT .5 to .65, both at far better
bits per byte. Another call gives ratios up to .03 beside the first, a little more than their intervals say. Those
models are so small that a step is bound by the number of operations; the first is bound by memory.
It leaves in runs/generation_speed (or --out): models.csv, pairs.csv (and .parquet), speed.png, speed.svg, summary.txt.
"""

import csv
import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from bltjax import families
from bltjax.config import ByteTransformerConfig, MegabyteConfig, ModelConfig, TransformerConfig
from bltjax.generate import Generator, Sampling, Source, Stop
from bltjax.scaling.plots import best_of_budgets, save, series_name, speed_figure
from bltjax.scaling.store import replace_file, write_table
from bltjax.scaling.turns import median_interval, speeds_in_turns
from bltjax.trained import load_source

Row = dict[str, Any]

NUMBERS = ("budget", "training_flops", "heldout_bits_per_byte", "heldout_bytes", "parameters", "seed")
FLAT = ByteTransformerConfig(TransformerConfig(width=512, layers=8, heads=8))
MEGABYTE = MegabyteConfig(
    TransformerConfig(width=1024, layers=8, heads=8), TransformerConfig(width=512, layers=6, heads=8)
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is measured."""

    studies: tuple[Path, ...] = (Path("runs/isoflop"), Path("runs/megabyte"))
    """Folders of finished studies with the same text and budgets."""
    out: Path = Path("runs/generation_speed")
    """Folder of the tables and the figure."""
    prompt_bytes: int = 256
    """Of this file, which all models continue."""
    new_bytes: int = 512
    """That each draws in a round."""
    seconds: float = 60.0
    """In which the trained models take turns, and again the two of the claim; more if an interval needs more turns."""
    claim: bool = True
    """Whether the paper's own claim is tried too, which takes a GB of memory."""


def best_runs(studies: Sequence[Path]) -> list[Row]:
    """The best size of each family at each budget, with the folder of its run.

    Raises:
      ValueError: for a folder without a finished study, or studies of different held-out text.
    """
    rows: list[Row] = []
    for study in studies:
        table = study / "table.csv"
        if not table.exists():
            raise ValueError(f"studies={study}: has no table.csv; finish the study first (experiments/isoflop.py).")
        with table.open() as file:
            for row in csv.DictReader(file):
                found = {**row, **{name: float(row[name]) for name in NUMBERS}}
                folders = list((study / "runs").glob(f"*-{row['run']}"))
                if len(folders) != 1:
                    raise ValueError(f"studies={study}: table.csv names run {row['run']}, which has no folder.")
                rows.append({**found, "folder": folders[0]})
    if len({row["heldout_bytes"] for row in rows}) > 1:
        raise ValueError("studies: their held-out texts differ in length, and so their bits per byte do not compare.")
    chosen = []
    for series in dict.fromkeys(row["series"] for row in rows):
        for best in best_of_budgets([row for row in rows if row["series"] == series]):
            chosen.append(next(row for row in rows if row["run"] == best["run"]))
    return chosen


def count(config: ModelConfig) -> int:
    """Parameters, embeddings among them."""
    return sum(leaf.size for leaf in jax.tree.leaves(families.abstract_params(config)))


def fresh(config: ModelConfig) -> Source:
    """A model with random weights."""
    params = jax.jit(lambda key: families.initialize(config, key))(jax.random.key(0))
    return Source(config, jax.tree.map(np.asarray, params))


def timed(models: Sequence[Row], sources: Sequence[Source], arguments: Arguments) -> list[Row]:
    """The models with their speed in each turn, and its median."""
    prompt = Path(__file__).read_bytes()[: arguments.prompt_bytes]
    room = 1 + arguments.prompt_bytes + arguments.new_bytes  # 1: BOS

    def writer(source: Source) -> Callable[[int], int]:
        generator = Generator(source, capacity=room)

        def write(seed: int) -> int:
            found = generator([prompt], arguments.new_bytes, Sampling(temperature=1.0, seed=seed), Stop(eos=False))
            return len(found[0].text)

        return write

    speeds = speeds_in_turns([writer(source) for source in sources], arguments.seconds)
    return [
        {**row, "turns": turns, "bytes_per_second": float(np.median(turns))}
        for row, turns in zip(models, speeds, strict=True)
    ]


def pair(kind: str, one: Row, other: Row) -> Row:
    """How many times as fast one model writes as the other."""
    ratios = one["turns"] / other["turns"]
    low, high = median_interval(ratios)
    return {
        **{"kind": kind, "model": one["name"], "against": other["name"]},
        **{"speed_ratio": float(np.median(ratios)), "low": low, "high": high, "turns": len(ratios)},
        "parameter_ratio": one["parameters"] / other["parameters"],
        "bits_per_byte_difference": one["heldout_bits_per_byte"] - other["heldout_bits_per_byte"],
    }


def pairs_of(models: Sequence[Row]) -> list[Row]:
    """Each trained model against flat bytes, of its budget and of its quality."""
    flat = [row for row in models if row["series"] == "byte"]
    found = []
    for row in (row for row in models if flat and row["series"] != "byte"):
        found += [pair("equal FLOPs", row, other) for other in flat if other["budget"] == row["budget"]]
        nearest = min(flat, key=lambda other: abs(other["heldout_bits_per_byte"] - row["heldout_bits_per_byte"]))
        found.append(pair("equal quality", row, nearest))
    return found


def main(arguments: Arguments) -> None:
    """Measures, and writes the tables and the figure."""
    runs = best_runs(arguments.studies)
    kept = ("run", "series", "preset", "budget", "parameters", "heldout_bits_per_byte")
    models = [{"name": f"{row['preset']}, {row['budget']:.0e}", **{name: row[name] for name in kept}} for row in runs]
    models = timed(models, [load_source(row["folder"]) for row in runs], arguments)
    pairs = pairs_of(models)
    if arguments.claim:
        named = {"MEGABYTE, random weights": MEGABYTE, "flat bytes, random weights": FLAT}
        unknown = {"heldout_bits_per_byte": math.nan}
        claimed: list[Row] = [{"name": name, "parameters": count(c), **unknown} for name, c in named.items()]
        pairs = [pair("claim", *timed(claimed, [fresh(c) for c in named.values()], arguments)), *pairs]
    models = [{name: value for name, value in row.items() if name != "turns"} for row in models]
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_table(models, arguments.out, "models")
    write_table(pairs, arguments.out, "pairs")
    caption = (
        f"{arguments.new_bytes} bytes drawn at temperature 1 after a prompt of {arguments.prompt_bytes}, one row, "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}. Best size of each family at each budget."
    )
    save(speed_figure(models, caption), arguments.out, "speed")
    lines = [f"{'model':32} {'bytes/s':>8} {'bits/byte':>9}  family"]
    lines += [
        f"{r['name']:32} {r['bytes_per_second']:8.0f} {r['heldout_bits_per_byte']:9.3f}  {series_name(r['series'])}"
        for r in models
    ]
    head = f"{'':14} {'model':26} {'against':26} {'speed':>5}  {'95 % interval':13}"
    lines += ["", f"{head} {'turns':>5} {'params':>6} {'bits/byte':>9}"]
    for r in pairs:
        interval = f"{r['low']:.2f} to {r['high']:.2f}"
        numbers = f"{r['speed_ratio']:5.2f}  {interval:13} {r['turns']:5} {r['parameter_ratio']:6.2f}"
        numbers += f" {r['bits_per_byte_difference']:+9.3f}" if r["kind"] != "claim" else ""
        lines.append(f"{r['kind']:14} {r['model']:26} {r['against']:26} {numbers}")
    text = "\n".join([*lines, "", caption])
    replace_file(arguments.out / "summary.txt", lambda path: path.write_text(text + "\n"))
    print(text)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
