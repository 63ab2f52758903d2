"""What devices do each on their own part of an array, and what they then tell each other.

A compiler that partitions a whole program can't be trusted with look-ups, segments and attention: it gathers whole
tables, and bytes that no device needs. So these run `per_device`, and say by name what crosses. Without a mesh all of
it is the identity, and a module works in any project.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bltjax.sharding import LOGICAL_AXES, check_axes, constrain, free_axes, is_spread, partition_spec, split_axis


def per_device(
    function: Callable[..., Any],
    inputs: Sequence[Sequence[str | None]],
    outputs: Any,
    checked: bool = True,
) -> Callable[..., Any]:
    """`function` on each device's own part of its arguments; without a mesh, `function` itself.

    What crosses devices is up to the function, by collectives over `split_axis`.

    Args:
      inputs: the logical axes of each argument, an array.
      outputs: the logical axes of the result, or of each of several results (a list).
      checked: have JAX prove that what is said to be whole on every device is; not for kernels, which say nothing.

    Raises:
      ValueError: by the call, where the devices do not divide a dimension that they split.
    """

    def call(*arguments: Any) -> Any:
        for argument, axes in zip(arguments, inputs, strict=True):
            check_axes(argument, axes)
        if not is_spread():
            return function(*arguments)
        free, sizes = free_axes()

        def spec(axes: Sequence[str | None]) -> Any:
            return partition_spec(axes, tuple(free))

        for argument, axes in zip(arguments, inputs, strict=True):
            for name, size, entry in zip(axes, argument.shape, spec(axes), strict=True):
                parts = math.prod(sizes[a] for a in ((entry,) if isinstance(entry, str) else entry or ()))
                if size % parts:
                    raise ValueError(
                        f"{size} {name} do not divide over {entry}={parts} devices: change the mesh, or their number."
                    )
        mapped = jax.shard_map(
            function,
            in_specs=tuple(spec(axes) for axes in inputs),
            out_specs=[spec(axes) for axes in outputs] if isinstance(outputs, list) else spec(outputs),
            axis_names=set(free),
            check_vma=checked,
        )
        return mapped(*[constrain(argument, axes) for argument, axes in zip(arguments, inputs, strict=True)])

    return call


def summed_over_replicas(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`function(whole, rows)` on the rows of each replica, and the sum of what all of them find.

    Without this a gradient is summed over replicas wherever it arises, in each micro-batch, though only the sum over
    micro-batches is needed; between slices and nodes that network is slow.

    Args of what comes back:
      whole: a pytree that all replicas hold; rows: arrays, whose first axis the replicas share.
    """

    def call(whole: Any, rows: Any) -> Any:
        replica = split_axis("replicas")
        if replica is None:
            return function(whole, rows)

        def on_one(whole: Any, rows: Any) -> Any:
            return jax.lax.psum(function(whole, rows), replica)

        specs = partition_spec(()), partition_spec(("replicas",))
        # Unchecked, since JAX loses account of the axes around it in a `per_device`; and a gradient that is taken in
        # here would be summed over replicas where it arises.
        run = jax.shard_map(on_one, in_specs=specs, out_specs=partition_spec(()), axis_names={replica}, check_vma=False)
        return run(whole, rows)

    return call


def by_replica(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`function(whole, rows)` by each replica on its own rows, with nothing said between replicas.

    Left to the compiler, a loop over all rows asks every device before each step whether it goes on, and what one row
    waits for, all wait for. It is left to the compiler where a mesh splits anything but rows over replicas: XLA
    (jaxlib 0.12) ends the process over a scatter in a loop of which only some axes are taken from it.

    Args of what comes back:
      whole: a pytree that all replicas hold; rows: a pytree of arrays, whose first axis the replicas share, as they do
        that of all arrays of the result.
    """

    def call(whole: Any, rows: Any) -> Any:
        free, sizes = free_axes()
        if {name for name in free if sizes[name] > 1} != {LOGICAL_AXES["replicas"]}:
            return function(whole, rows)
        own = partition_spec(("batch",), tuple(free))
        specs = partition_spec(()), own
        # Unchecked: what is the same everywhere when a loop begins differs after a step.
        return jax.shard_map(function, in_specs=specs, out_specs=own, axis_names=set(free), check_vma=False)(
            whole, rows
        )

    return call


def from_the_left(x: jax.Array, amount: int, axis_name: str, axis: int) -> jax.Array:
    """The `amount` entries of a split axis that come before this device's own; inside `per_device`.

    Only these are sent, from as many neighbours as hold them. Where the axis has no more entries there are zeros.
    """
    own, devices = x.shape[axis], jax.lax.axis_size(axis_name)
    pieces: list[jax.Array] = []
    hop = 0
    while amount > 0:
        hop, size = hop + 1, min(own, amount)
        tail = jax.lax.slice_in_dim(x, own - size, own, axis=axis)
        if hop < devices:
            pieces.append(jax.lax.ppermute(tail, axis_name, [(i, i + hop) for i in range(devices - hop)]))
        else:
            pieces.append(jnp.zeros_like(tail))
        amount -= size
    return jnp.concatenate(pieces[::-1], axis=axis)


IN_TWO_PHASES = 16  # devices along an axis, from which on what all of them gather or scatter goes in two phases


def _phases(axis_name: str) -> tuple[list[list[int]], list[list[int]]] | None:
    """Of the devices along an axis, seen as rows and columns, the rows and the columns; None: it is short, or prime.

    For TPUs a gather or a scattered sum over a whole torus is compiled as a sum that all devices make whole, which
    sends twice as much (libtpu 0.0.50); along one of its dimensions after the other it is not.
    """
    count = jax.lax.axis_size(axis_name)
    rows = max(size for size in range(1, math.isqrt(count) + 1) if count % size == 0)
    if count < IN_TWO_PHASES or rows == 1:
        return None
    columns = count // rows
    return (
        [[row * columns + column for column in range(columns)] for row in range(rows)],
        [[row * columns + column for row in range(rows)] for column in range(columns)],
    )


def joined(x: jax.Array, axis_name: str | None, axis: int) -> jax.Array:
    """All devices' parts of a split axis, side by side; inside `per_device`."""
    if axis_name is None:
        return x
    found = x
    for groups in _phases(axis_name) or (None,):
        found = jax.lax.all_gather(found, axis_name, axis_index_groups=groups)
    parts = jnp.moveaxis(found.reshape(-1, *x.shape), 0, axis)
    return parts.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def summed(x: jax.Array, *axis_names: str | None) -> jax.Array:
    """The sum over devices, on each of them; inside `per_device`."""
    names = tuple(name for name in axis_names if name is not None)
    return jax.lax.psum(x, names) if names else x


def summed_part(x: jax.Array, axis_name: str | None, axis: int) -> jax.Array:
    """This device's part, along `axis`, of the sum over devices; inside `per_device`."""
    if axis_name is None:
        return x
    parts = x.reshape(*x.shape[:axis], jax.lax.axis_size(axis_name), -1, *x.shape[axis + 1 :])
    parts = jnp.moveaxis(parts, axis, 0)
    rows, columns = _phases(axis_name) or ([], None)
    if columns is not None:
        parts = parts.reshape(len(rows), len(columns), *parts.shape[1:])
        parts = jax.lax.psum_scatter(parts, axis_name, axis_index_groups=columns)
    return jax.lax.psum_scatter(parts, axis_name, axis_index_groups=rows or None)


def largest(x: jax.Array, axis_name: str | None) -> jax.Array:
    """The maximum over devices, on each of them; without a gradient; inside `per_device`."""
    return x if axis_name is None else jax.lax.pmax(jax.lax.stop_gradient(x), axis_name)


def own_part(x: jax.Array, axis_name: str | None, axis: int) -> jax.Array:
    """This device's part of what every device holds whole; inside `per_device`."""
    if axis_name is None:
        return x
    size = x.shape[axis] // jax.lax.axis_size(axis_name)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis_name) * size, size, axis)


def exchanged(x: jax.Array, axis_name: str | None, split: int, join: int) -> jax.Array:
    """Parts of axis `split` go to their devices, which join what they receive along axis `join`."""
    return x if axis_name is None else jax.lax.all_to_all(x, axis_name, split, join, tiled=True)
