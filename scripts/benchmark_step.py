"""What one training step of a preset takes on the devices here: seconds, share of the peak, memory.

    python scripts/benchmark_step.py --preset blt-400m --rows 8
    python scripts/compile.py --preset blt-400m --topology h100:1 --mesh.data 1 --rows 8 --slots 2049

The second says on any machine what the first will find on an H100: docs/pods.md has both. Rows are random bytes, cut
into patches of 4 where a model reads patches; parameters are random. Two steps go first, untimed.
"""

import dataclasses
import json
import statistics
import time
from typing import Literal

import jax
import numpy as np
import tyro

from bltjax import vocabulary
from bltjax.batch import Batch
from bltjax.config import MeshConfig, OptimConfig, TokenTransformerConfig
from bltjax.flops import flops_per_byte
from bltjax.presets import preset
from bltjax.sharding import make_mesh
from bltjax.step import compile_step

PATCH_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measures a training step."""

    preset: str
    """Name of a model in bltjax.presets."""
    rows: int = 8
    """Rows of the global batch."""
    positions: int = 8192
    """Bytes (or tokens) of a row."""
    mesh: MeshConfig = MeshConfig()
    """Sizes of the mesh axes; one may be -1."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of activations and products."""
    remat: Literal["none", "full", "dots"] = "full"
    """What a layer recomputes in the backward pass."""
    attention: Literal["auto", "reference", "splash", "cudnn"] = "auto"
    """Back end of attention."""
    steps: int = 6
    """Timed steps, of which the median counts."""
    peak: float | None = None
    """FLOP/s of a device, to print the share of it that is reached: 989e12 for an H100 in bfloat16."""


def batch_of(rows: int, positions: int, ids: int, patched: bool) -> Batch:
    """Random rows; patches of 4 bytes if they have any."""
    drawn = np.random.default_rng(0).integers(vocabulary.OFFSET, ids, (rows, positions + 1)).astype(np.int32)
    starts = np.zeros((rows, positions + 1), bool)
    starts[:, 0] = True
    starts[:, 1::PATCH_BYTES] = True
    starts[:, -1] = False  # of the byte after the row
    target_bytes = np.ones((rows, positions), np.uint16)
    return Batch(ids=drawn[:, :-1], targets=drawn[:, 1:], target_bytes=target_bytes, starts=starts if patched else None)


def main(arguments: Arguments) -> None:
    """Prints one line of JSON."""
    model = preset(arguments.preset)
    compute = dataclasses.replace(
        model.compute, dtype=arguments.dtype, remat=arguments.remat, attention=arguments.attention
    )
    model = dataclasses.replace(model, compute=compute)
    is_token = isinstance(model, TokenTransformerConfig)
    ids = model.vocabulary_size if isinstance(model, TokenTransformerConfig) else vocabulary.SIZE
    batch = batch_of(arguments.rows, arguments.positions, ids, model.reads_patches)
    slots = int(batch.starts[0].sum()) if batch.starts is not None else None
    step = compile_step(model, OptimConfig(), make_mesh(arguments.mesh), slots=slots)
    state, seconds = step.initial_state(0), []
    for _ in range(arguments.steps + 2):
        begin = time.perf_counter()
        state, metrics = step(state, batch, 4e-4)
        float(metrics.sums.byte_nats)
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[2:])
    unit = PATCH_BYTES if model.reads_patches else 1
    cost = flops_per_byte(model, unit, arguments.positions).training  # of a token, taken as one byte
    count = arguments.rows * arguments.positions
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    out = {
        **{name: getattr(arguments, name) for name in ("preset", "rows", "positions", "dtype", "remat", "attention")},
        "first step, s": round(seconds[0], 1),
        "step, s": round(median, 4),
        f"{'tokens' if is_token else 'bytes'} per second": round(count / median),
        "model TFLOP/s on each device": round(cost * count / median / jax.device_count() / 1e12, 2),
        "peak memory of a device, GiB": None if memory is None else round(memory / 2**30, 3),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}",
    }
    if arguments.peak:
        out["share of the peak"] = round(cost * count / median / jax.device_count() / arguments.peak, 4)
    print(json.dumps(out))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
