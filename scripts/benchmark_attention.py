"""How fast the back ends of attention are on this machine, side by side, and how far they are from each other.

    python scripts/benchmark_attention.py

takes more than a minute on an H100, most of it compiling.

Each row is one call of `bltjax.attention` in bfloat16, forward alone and with its backward
pass; `off` is the largest difference of output and gradients from the reference in float32, over the largest value.
On a CPU there is the reference alone, on an NVIDIA GPU cuDNN's kernel beside it, on a TPU splash.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from bltjax.attention import attention, backend_of

# (rows, positions, heads, head width, window): local models and global models of the benchmark's size and of the 1B's
SHAPES = (
    (1, 8192, 4, 64, 512),
    (8, 8192, 4, 64, 512),
    (8, 8192, 16, 64, 512),
    (1, 2048, 8, 64, None),
    (8, 2048, 8, 64, None),
    (8, 2048, 16, 128, None),
    (1, 6144, 16, 128, None),
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measures attention."""

    calls: int = 20
    """Timed calls of each, of which the median counts."""
    most_positions: int = 10_000
    """Leaves out rows that are longer."""


def timed(call: Callable[[], Any], calls: int) -> float:
    """Median seconds of a call that was made once before."""
    seconds = []
    for _ in range(calls + 1):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def results(backend: str, window: int | None, q: Any, k: Any, v: Any, documents: Any, slope: Any) -> list[Any]:
    """Output and gradients."""
    out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, documents, window, backend), q, k, v)
    return [out, *pull(slope)]


def main(arguments: Arguments) -> None:
    """Prints a Markdown table."""
    device = jax.devices()[0]
    backends = dict.fromkeys(["reference", backend_of(device.platform, jnp.bfloat16, 64)])
    print("| rows x positions | heads | window | back end | forward, ms | and backward, ms | times | off |")
    print("|---|---|---|---|---|---|---|---|")
    for rows, positions, heads, width, window in SHAPES:
        if positions > arguments.most_positions:
            continue
        draw = np.random.default_rng(0)
        exact = jnp.asarray(draw.normal(size=(4, rows, positions, heads, width)), jnp.float32)
        documents = jnp.asarray(np.cumsum(draw.random((rows, positions)) < 1e-3, axis=1), jnp.int32)
        *qkv, slope = exact.astype(jnp.bfloat16)
        with jax.default_matmul_precision("highest"):
            wanted = jax.jit(functools.partial(results, "reference", window))(*exact[:3], documents, exact[3])
        first = None
        for backend in backends:
            forward = jax.jit(functools.partial(attention, window=window, backend=backend))
            both = jax.jit(functools.partial(results, backend, window))
            alone = timed(functools.partial(forward, *qkv, documents), arguments.calls)
            seconds = timed(functools.partial(both, *qkv, documents, slope), arguments.calls)
            first = first or seconds
            pairs = zip(both(*qkv, documents, slope), wanted, strict=True)
            off = max(float(jnp.max(jnp.abs(one - other)) / jnp.max(jnp.abs(other))) for one, other in pairs)
            print(
                f"| {rows} x {positions:,} | {heads} x {width} | {window or 'none'} | {backend} | {1e3 * alone:.2f} "
                f"| {1e3 * seconds:.2f} | {first / seconds:.2f} | {off:.4f} |",
                flush=True,
            )
    print(f"\n{device.device_kind}; jax {jax.__version__}.")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
