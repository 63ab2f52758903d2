"""What devices can't do without telling each other in a training step, worked out from the model and its mesh.

Beside what a compiled program sends (`bltjax.hlo`) it says how much of that is for nothing. Counted is what each device
sends on a ring, by the axis that it crosses; norm scales and ids of bytes and documents, all small, are left out, and
along `sequence` what MEGABYTE's filters and SpaceByte's patches need.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

from bltjax import families
from bltjax.config import BLTConfig, LanguageModelConfig, MegabyteConfig, ModelConfig, TransformerConfig
from bltjax.flops import cross_layers
from bltjax.sharding import parameter_axes, parameter_paths

SUMS = 4  # bytes of a number that is summed over devices: float32


def least_traffic(
    model: ModelConfig,
    mesh: Mapping[str, int],
    rows: int,
    positions: int,
    slots: int | None = None,
    accumulation: int = 1,
) -> dict[str, float]:
    """Bytes that each device must send in a step, by mesh axes ("data", or "replica+sequence" for a sum over both).

    - Along `data`, in each micro-batch: every kernel gathered once forward and once backward in the compute dtype,
      its gradient summed once into parts (a sum that is left for later has no room on any device), what is looked up
      in tables exchanged there and back.
    - Along `replica` and `sequence`, once in a step: the sum of the gradients of what a device keeps; of tables, the
      gradients of what was looked up where these are fewer.
    - Along `model`, of each layer: the sum of what attention and feed-forward put out, and of the gradients of what
      these two read; the same for cross-attention, with both of its inputs.
    - Along `sequence`, of each layer and both ways: the window's halo of keys and values, or all keys and values of a
      row without a window; for cross-attention what patches ask and find, or what bytes read of them.

    Args:
      mesh: sizes of the axes replica, data, model and sequence.
      rows: of the global batch, over all micro-batches.
      positions: bytes (or tokens) of a row; slots: its patches, for a model that reads them.
      accumulation: micro-batches of a step.
    """
    width = 2 if model.compute.dtype == "bfloat16" else 4
    found: dict[str, float] = {}

    def add(axes: str, size: float) -> None:
        if size:
            found[axes] = found.get(axes, 0.0) + size

    data, ways, parts = mesh["data"], mesh["model"], mesh["sequence"]
    kernels, tables = _kernels_and_tables(model, ways)
    own_rows = rows / (mesh["replica"] * data)
    places = own_rows * positions / parts
    looked_up = places * sum(row for _, row in tables)
    gathered = kernels * (2 * width + SUMS) * accumulation
    add("data", _share(data) * (gathered + 2 * looked_up * width))
    together = mesh["replica"] * parts
    crossed = "+".join(axis for axis in ("replica", "sequence") if mesh[axis] > 1)
    add(crossed, _sum_over(together) * kernels / data * SUMS)
    for size, row in tables:
        sparse = (together - 1) * places * row * width  # a device's part of the width, for all rows that share it
        add(crossed, min(_sum_over(together) * size / data * SUMS, sparse))
    for tower, length in _towers(model, positions, slots):
        add("model", own_rows * 4 * tower.layers * _sum_over(ways) * length / parts * tower.width * width)
        keys_and_values = 2 * tower.key_heads * tower.head_width / ways * width
        reach = min(length * _share(parts), (tower.window or length) - 1)
        add("sequence", own_rows * 2 * tower.layers * reach * keys_and_values)
    if isinstance(model, BLTConfig) and slots is not None:
        for axis, size in _cross_attention(model, positions, slots, width, mesh):
            add(axis, own_rows * size)
    return found


def _share(parts: int) -> float:
    """Of an array in so many parts, what is not a device's own."""
    return (parts - 1) / parts


def _sum_over(parts: int) -> float:
    """What a device sends for each byte of a sum that all of them need."""
    return 2 * _share(parts)


def _kernels_and_tables(model: ModelConfig, ways: int) -> tuple[float, list[tuple[float, int]]]:
    """Numbers in the kernels of one part of `model`; numbers and width of each table."""
    kernels, tables = 0.0, []
    for path, leaf in parameter_paths(families.abstract_params(model)):
        axes, size = parameter_axes(path), math.prod(leaf.shape)
        if path.endswith("first_query/table"):
            continue  # k rows, small
        if path.endswith("table"):
            tables.append((float(size), leaf.shape[1]))
        elif "shard" in axes:
            kernels += size / (ways if "heads" in axes or "hidden" in axes else 1)
    return kernels, tables


def _towers(model: ModelConfig, positions: int, slots: int | None) -> Iterator[tuple[TransformerConfig, int]]:
    """The stacks of self-attention, each with the length of its row."""
    if isinstance(model, MegabyteConfig):
        yield model.global_model, positions // model.patch_bytes
        yield dataclasses.replace(model.local_model, window=model.cross_patch_bytes + 1), positions
    elif isinstance(model, LanguageModelConfig):
        yield model.tower, positions
    elif slots is not None:
        yield from ((model.encoder, positions), (model.decoder, positions), (model.global_model, slots))


def _cross_attention(
    model: BLTConfig, positions: int, slots: int, width: int, mesh: Mapping[str, int]
) -> Iterator[tuple[str, float]]:
    """For each row: along `model` sums as in a layer; along `sequence` what crosses between bytes and patches."""
    parts, ways = mesh["sequence"], mesh["model"]
    encoder, decoder = cross_layers(model)
    of_bytes, of_patches = positions / parts, slots * model.cross_attention.k / parts
    both = (2 * of_patches + of_bytes, 2 * of_bytes + of_patches)  # out, and the gradients of both inputs
    for layers, local, places in zip((encoder, decoder), (model.encoder, model.decoder), both, strict=True):
        yield "model", layers * _sum_over(ways) * places * local.width * width
    rows = slots * model.cross_attention.k * model.encoder.width / ways * _share(parts)
    yield "sequence", encoder * 2 * rows * (width + SUMS)  # queries to the bytes, sums of what these find back
    yield "sequence", decoder * 2 * 2 * rows * width  # keys and values
    summed = 2 * slots * model.encoder.width * _share(parts) * width
    if model.cross_attention.pooling != "none":
        yield "sequence", summed  # what bytes are pooled to
    if not decoder:
        yield "sequence", summed  # the row that is added to bytes
