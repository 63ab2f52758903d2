"""Compiles a training step for a TPU pod or for nodes of GPUs on a machine that has none, and says what it needs there.

    pip install -e '.[tpu]'
    python scripts/compile.py --preset blt-400m --topology v5e:4x4 --mesh.data 16 --positions 8192 --slots 2048
    pip install -e '.[cuda-compile]'
    python scripts/compile.py --preset blt-400m --topology h100:8 --mesh.data 8 --positions 8192 --slots 2048

It is the very step of scripts/train.py. The table says whether it fits into a chip's memory and by how much, the FLOPs
that the model needs and those that were compiled, what the devices send each other along which axis of the mesh, and
what the chips can't do faster. Nothing is run, so nothing is said about the speed that a pod reaches.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Literal

import tyro

# Before JAX starts: no accelerator is asked for, and no machine that isn't there is asked about itself.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from bltjax.ahead import Plan, Report, compile_ahead
from bltjax.config import MeshConfig
from bltjax.hlo import by_axis
from bltjax.presets import preset


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compiles one training step."""

    preset: str
    """Name of a model in bltjax.presets."""
    topology: str
    """Chip and shape, such as v5e:4x4, v6e:16x16 or v5p:4x4x8; for GPUs h100:8, or h100:16x8 for 16 nodes of 8."""
    mesh: MeshConfig = MeshConfig()
    """Sizes of the mesh axes; one may be -1."""
    rows: int | None = None
    """Rows of the global batch; None: one for each part of replica x data, times accumulation."""
    positions: int = 8192
    """Bytes (or tokens) of a row."""
    slots: int | None = None
    """Patch slots of a row, for a BLT; None: a quarter of its bytes."""
    accumulation: int = 1
    """Micro-batches of a step."""
    slices: int = 1
    """Slices of TPUs of that topology, joined by the slow network; replica must be a multiple, as of nodes of GPUs."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of activations and products."""
    remat: Literal["none", "full", "dots"] = "full"
    """What a layer recomputes in the backward pass."""
    json: Path | None = None
    """Where to write the report as JSON too."""


def plan_of(arguments: Arguments) -> Plan:
    """The plan of a command line."""
    model = preset(arguments.preset)
    compute = dataclasses.replace(model.compute, dtype=arguments.dtype, remat=arguments.remat)
    model = dataclasses.replace(model, compute=compute)
    slots = arguments.slots or arguments.positions // 4
    chips = arguments.slices
    for size in arguments.topology.partition(":")[2].split("x"):
        chips *= int(size) if size.isdigit() else 1
    mesh = arguments.mesh
    sizes = [size for size in (mesh.model, mesh.sequence) if size != -1]
    parts = chips
    for size in sizes:
        parts //= size
    return Plan(
        model=model,
        topology=arguments.topology,
        mesh=mesh,
        rows=arguments.rows or parts * arguments.accumulation,
        positions=arguments.positions,
        slots=slots if model.reads_patches else None,
        accumulation=arguments.accumulation,
        slices=arguments.slices,
    )


def table(report: Report) -> str:
    """The report for people."""
    giga = 2**30
    verdict = f"fits, {report.free / giga:.2f} GiB left" if report.free >= 0 else f"{-report.free / giga:.2f} GiB short"
    sent = {"+".join(axes): size for axes, size in by_axis(report.traffic).items()}
    lines = [
        f"memory of each of {report.devices} devices: {verdict} of {report.memory / giga:.2f}",
        *(f"  {name:<12}{getattr(report, name) / giga:>9.3f} GiB"
          for name in ("parameters", "optimizer", "batch", "scratch")),
        f"FLOPs of a step on each device: model {report.model_flops:.3e}, compiled {report.compiled_flops:.3e}, "
        f"ratio {report.compiled_flops / report.model_flops:.3f}",
        "sent by each device in a step:",
        *(f"  {one.kind:<20}{'+'.join(one.axes) or '?':<16}{one.count:>7} times{one.sent / 1e6:>12.1f} MB"
          for one in report.traffic),
        *(f"  least along {axes:<28}{least / 1e6:>17.1f} MB, compiled {sent.get(axes, 0.0) / 1e6:.1f}"
          for axes, least in report.least.items()),
        "no step is faster than " + ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in report.seconds.items()),
        f"  ({report.assumptions})",
        f"traced in {report.lower_seconds:.0f} s, compiled in {report.compile_seconds:.0f} s",
    ]  # fmt: skip
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    report = compile_ahead(plan_of(arguments))
    print(table(report))
    if arguments.json is not None:
        asked = {**dataclasses.asdict(arguments), "json": None}
        found = {**dataclasses.asdict(report), "free": report.free, "step_seconds": report.step_seconds}
        arguments.json.write_text(json.dumps({"asked": asked, "found": found}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.exit(f"error: {error}")
