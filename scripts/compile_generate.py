"""Compiles the programs of generation for TPUs or GPUs on a machine that has none, and says what memory they need.

    pip install -e '.[tpu]'
    python scripts/compile_generate.py --preset blt-8b --topology v5e:2x4 --mesh.data 2 --mesh.model 4

They are those that `bltjax.generate.Generator` runs: one reads prompts in parts, the other draws bytes. Nothing is run,
so nothing is said about their speed. Weights lie in the parts that the mesh says; `data` is to be gathered for every
use, `model` is not.
"""

import dataclasses
import os
import sys
from typing import Literal

import tyro

# Before JAX starts: no accelerator is asked for, and no machine that isn't there is asked about itself.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from bltjax import topology
from bltjax.chips import chip
from bltjax.config import BLTConfig, EntropyModelConfig, MeshConfig
from bltjax.generate.lowered import Needs, compile_for
from bltjax.presets import preset
from bltjax.sharding import batch_ways, make_mesh


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compiles generation."""

    preset: str
    """Name of a BLT in bltjax.presets."""
    topology: str
    """Chip and shape, such as v5e:2x4; for GPUs h100:8."""
    mesh: MeshConfig = MeshConfig()
    """Sizes of the mesh axes; one may be -1."""
    entropy: str = "entropy-100m"
    """Name of the entropy model."""
    rows: int | None = None
    """Prompts of a batch; None: one for each part of replica x data."""
    capacity: int = 8192
    """Room for the bytes of a row, prompt and continuation together."""
    patch_capacity: int | None = None
    """Room for its patches; None: half as many."""
    part: int = 128
    """Bytes of a prompt that are read at once."""
    ahead: int = 0
    """Bytes that the local models guess in a round."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of weights, activations and products."""


def table(needs: dict[str, Needs], devices: int, memory: float) -> str:
    """The report for people."""
    giga = 2**30
    lines = []
    for name, one in needs.items():
        left = (memory - one.memory) / giga
        verdict = f"fits, {left:.2f} GiB left" if left >= 0 else f"{-left:.2f} GiB short"
        lines += [
            f"{name}: memory of each of {devices} devices: {verdict} of {memory / giga:.2f}",
            *(f"  {part:<9}{getattr(one, part) / giga:>9.3f} GiB" for part in ("params", "session", "scratch")),
            f"  compiled in {one.seconds:.0f} s",
        ]
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    models = []
    for name, kind in ((arguments.preset, BLTConfig), (arguments.entropy, EntropyModelConfig)):
        model = preset(name)
        if not isinstance(model, kind):
            raise ValueError(f"preset={name!r}: is a {type(model).__name__}, where a {kind.__name__} is needed.")
        models.append(dataclasses.replace(model, compute=dataclasses.replace(model.compute, dtype=arguments.dtype)))
    mesh = make_mesh(arguments.mesh, topology.devices(arguments.topology))
    needs = compile_for(
        mesh, *models, rows=arguments.rows or batch_ways(mesh), capacity=arguments.capacity,
        patch_capacity=arguments.patch_capacity or arguments.capacity // 2, part=arguments.part, ahead=arguments.ahead,
        dtype=arguments.dtype,
    )  # fmt: skip
    print(table(needs, mesh.size, chip(arguments.topology).memory))


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.exit(f"error: {error}")
