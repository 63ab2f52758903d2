"""Which pod holds the training step of each BLT of the paper's Table 10, and what does the step compute and send there?

    pip install -e '.[tpu]'
    python experiments/pods.py

compiles the very step of scripts/train.py for each plan below, on any Linux machine with Python 3.12: 24,576 bytes in
4,096 patches a row, batches near the paper's 16M bytes, bfloat16 products, float32 state. Nothing is run, so nothing is
said of the speed that a pod reaches. The compilations in the table add up to 39 minutes on 2 cores; with names as
arguments only those plans are compiled:

    python experiments/pods.py blt-1b-v6e-4x4 blt-8b-v5p-4x4x8

It leaves in experiments/results/pods (or --out) a JSON file for each plan, and table.md of all that lie there, which
docs/pods.md repeats. Expected: with remat "full", which computes the layers again in the backward pass, all fit, and
compiled over model FLOPs lies near 4/3; with "none" it is 1.15 at most, and only blt-400m, and blt-8b on v5p, fit.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

# Before JAX starts: no accelerator is asked for, and no machine that isn't there is asked about itself.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from bltjax.ahead import Plan, compile_ahead
from bltjax.config import ComputeConfig, MeshConfig
from bltjax.presets import preset

RESULTS = Path(__file__).resolve().parent / "results" / "pods"
BYTES, PATCHES = 24_576, 4_096  # of a row


@dataclasses.dataclass(frozen=True)
class Booking:
    """One preset on one pod."""

    preset: str
    topology: str
    mesh: MeshConfig
    accumulation: int  # so that rows x bytes come near 16M
    remat: Literal["none", "full", "dots"] = "full"

    @property
    def name(self) -> str:
        kind = "" if self.remat == "full" else f"-{self.remat}"
        return f"{self.preset}-{self.topology.replace(':', '-')}{kind}"

    @property
    def rows(self) -> int:
        return self.mesh.replica * self.mesh.data * self.accumulation

    @property
    def plan(self) -> Plan:
        compute = ComputeConfig(dtype="bfloat16", remat=self.remat)
        model = dataclasses.replace(preset(self.preset), compute=compute)
        return Plan(model, self.topology, self.mesh, self.rows, BYTES, PATCHES, self.accumulation)


BOOKINGS = (
    Booking("blt-400m", "v5e:4x4", MeshConfig(data=16), 41),
    Booking("blt-400m", "v6e:4x4", MeshConfig(data=16), 41),
    Booking("blt-400m", "v6e:4x4", MeshConfig(data=16), 41, remat="none"),
    Booking("blt-1b", "v5e:4x4", MeshConfig(data=16), 41),
    Booking("blt-1b", "v6e:4x4", MeshConfig(data=16), 41),
    Booking("blt-2b", "v6e:4x4", MeshConfig(data=16), 41),
    Booking("blt-4b", "v6e:4x4", MeshConfig(data=16), 41),
    Booking("blt-8b", "v5p:4x4x8", MeshConfig(data=128), 5),
    Booking("blt-8b", "v6e:16x16", MeshConfig(data=256), 3),
    Booking("blt-400m", "v5e:4x4", MeshConfig(data=16), 41, remat="none"),
    # Of the rest, only that on v5p fits; the others say by how much they do not.
    Booking("blt-1b", "v5e:4x4", MeshConfig(data=16), 41, remat="none"),
    Booking("blt-1b", "v6e:4x4", MeshConfig(data=16), 41, remat="none"),
    Booking("blt-2b", "v6e:4x4", MeshConfig(data=16), 41, remat="none"),
    Booking("blt-4b", "v6e:4x4", MeshConfig(data=16), 41, remat="none"),
    Booking("blt-8b", "v5p:4x4x8", MeshConfig(data=128), 5, remat="none"),
    Booking("blt-8b", "v6e:16x16", MeshConfig(data=256), 3, remat="none"),
)


def asked(booking: Booking) -> dict[str, Any]:
    """A booking as JSON has it."""
    return {**dataclasses.asdict(booking), "rows": booking.rows}


def record(booking: Booking) -> dict[str, Any]:
    """What was asked and what the compiler made of it, as JSON has it; of a plan that does not fit, what it said."""
    try:
        report = compile_ahead(booking.plan)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"asked": asked(booking), "refused": str(error).partition(". HLO module")[0].partition("\n")[0]}
    found = {**dataclasses.asdict(report), "free": report.free, "step_seconds": report.step_seconds}
    return {"asked": asked(booking), "found": found}


def table(records: list[dict[str, Any]]) -> str:
    """All plans as a table in Markdown."""
    giga = 2**30
    lines = [
        "| preset | topology | mesh | MB a step | GiB a device: state, scratch, free | remat | compiled / model FLOPs "
        "| sent / least | compute, memory, links: seconds at least | compiled in |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in records:
        given = one["asked"]
        mesh = ", ".join(f"{axis} {size}" for axis, size in given["mesh"].items() if size > 1)
        beginning = f"| {given['preset']} | {given['topology']} | {mesh} | {given['rows'] * BYTES / 1e6:.1f} | "
        if "refused" in one:
            words = one["refused"].split(": ")[-1]
            lines.append(f"{beginning}does not fit: {words} | {given['remat']} | | | | |")
            continue
        found = one["found"]
        state = (found["parameters"] + found["optimizer"]) / giga
        sent: dict[str, float] = {}
        for part in found["traffic"]:
            axes = "+".join(part["axes"])
            sent[axes] = sent.get(axes, 0.0) + part["sent"]
        ratios = ", ".join(f"{axes} {sent[axes] / least:.2f}" for axes, least in found["least"].items())
        seconds = ", ".join(f"{value:.2f}" for value in found["seconds"].values())
        lines.append(
            f"{beginning}{state:.2f}, {found['scratch'] / giga:.2f}, {found['free'] / giga:.2f} | {given['remat']} | "
            f"{found['compiled_flops'] / found['model_flops']:.3f} | {ratios} | {seconds} | "
            f"{found['lower_seconds'] + found['compile_seconds']:.0f} s |"
        )
    return "\n".join(lines) + "\n"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compiles plans for pods."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Plans to compile; none: all of them."""
    out: Path = RESULTS
    """Where results are kept."""


def main(arguments: Arguments) -> None:
    bookings = {booking.name: booking for booking in BOOKINGS}
    for name in arguments.names:
        if name not in bookings:
            raise ValueError(f"{name!r}: no such plan; there are {', '.join(bookings)}.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or bookings:
        found = record(bookings[name])
        (arguments.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(table([found]), flush=True)
    there = [arguments.out / f"{name}.json" for name in bookings]
    records = [json.loads(path.read_text()) for path in there if path.exists()]
    (arguments.out / "table.md").write_text(table(records))


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.exit(f"error: {error}")
