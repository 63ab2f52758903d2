"""Kernels as blocks of their columns: how a CPU multiplies few rows by a large matrix as fast as it can read it.

In go params of layers; out come the same, large kernels as `Blocked`, which `layers.product` takes in a kernel's place.
`generate` lays its params out like this: each of its steps multiplies a row or some rows by every kernel of the model.

Of a kernel in one piece XLA on a CPU takes some columns at a time, and walks through all of its memory for them in
strides as wide as it. A block lies in one piece. On two cores (float32, jax 0.10 and 0.12) products of 2 to 16 rows
gain most, one row gains little, and 64 rows and more gain nothing. What is best for one row differs between processors:
XLA divides a block of 65,536 numbers among cores and none of half as many, which some gain from and others do not.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

COLUMNS = 64  # of a block
SMALLEST = 1 << 16  # numbers of a kernel worth taking apart: what is smaller stays in a core's own cache
MANY = 128  # rows that a product may well have; for more a kernel is better in one piece


@functools.partial(jax.tree_util.register_dataclass, data_fields=["blocks"], meta_fields=["inputs", "outputs"])
@dataclasses.dataclass(frozen=True)
class Blocked:
    """A kernel [*inputs, *outputs] of a `Projection` as blocks of columns of the matrix that it is.

    Attributes:
      blocks: [blocks, inputs, columns], or what JAX puts in its place, as in any pytree.
    """

    blocks: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def times(self, x: Float[Array, "..."], dtype: Any = None) -> Float[Array, "..."]:
        """x [..., *inputs] times the kernel, [..., *outputs], in the dtype of x.

        Args:
          dtype: of what comes out; None: that of x.
        """
        blocks, leading = self.blocks.astype(x.dtype), x.shape[: x.ndim - len(self.inputs)]
        # Worked out once: without the barrier XLA does it anew for every block.
        rows = jax.lax.optimization_barrier(x.reshape(-1, blocks.shape[1]))
        each = jnp.broadcast_to(rows, (len(blocks), *rows.shape))
        found = jnp.einsum("brk,bkc->brc", each, blocks, preferred_element_type=dtype)
        return found.swapaxes(0, 1).reshape(*leading, *self.outputs)


def in_blocks(params: Any, columns: int = COLUMNS, smallest: int = SMALLEST) -> Any:
    """Params with the large kernels of layers and of cross-attention as `Blocked`.

    Args:
      columns: of a block; kernels that they do not divide are left alone.
      smallest: numbers of a kernel that is taken apart.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [getattr(entry, "key", None) for entry in path]
        if names[-1] != "kernel" or not {"layers", "cross_attention"} & set(names):
            return leaf
        split = 2 if names[-2] == "out" else 1  # the output of attention sums over heads and their widths
        inputs, outputs = leaf.shape[:split], leaf.shape[split:]
        if leaf.size < smallest or math.prod(outputs) % columns:
            return leaf
        matrix = jnp.asarray(leaf).reshape(math.prod(inputs), -1, columns)
        return Blocked(matrix.swapaxes(0, 1), inputs, outputs)

    return jax.tree_util.tree_map_with_path(one, params)


def in_one_piece(params: Any) -> Any:
    """Params as they were before `in_blocks`."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Blocked):
            return leaf
        return leaf.blocks.swapaxes(0, 1).reshape(*leaf.inputs, *leaf.outputs)

    return jax.tree.map(one, params, is_leaf=lambda leaf: isinstance(leaf, Blocked))
