"""Causal self-attention within windows and documents.

The reference back end goes through the scores piece by piece and leaves out what the mask hides whole: under a window
blocks of queries, each with the keys that the window reaches; without one the tiles below the diagonal of a row. No
N x N array exists, and a piece stays in the cache of a CPU. As in FlashAttention (Dao et al. 2022) the softmax of a row
is put together from its tiles, and the backward pass computes the scores again from the logarithm of their sum.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from bltjax import kernels
from bltjax.parallel import from_the_left, joined, per_device
from bltjax.sharding import constrain, split_axis

WINDOW_BLOCK = 128  # queries of a block under a window
TILES, LEAST_TILE, MOST_TILE = 8, 128, 256  # tiles along a row without a window, and their sides
HIDDEN = -1e30  # score of a hidden key

# Queries lie as [batch, groups, heads, queries, width], keys and values as [batch, groups, keys, width], documents as
# [batch, positions]. `ahead` is the position of the first query less that of the first key.
Position = Array | np.ndarray | int  # a constant of a traced function may come as either


def _scores(ahead: Position, window: int, q: Array, k: Array, own: Array, theirs: Array) -> Array:
    """Scaled scores, float32 [batch, groups, heads, queries, keys]; HIDDEN where the mask is."""
    batch, groups, heads, block, width = q.shape
    rows = q.reshape(batch, groups, heads * block, width)
    scores = jnp.einsum("bgqd,bgkd->bgqk", rows, k, preferred_element_type=jnp.float32) * width**-0.5
    span = k.shape[2]
    distance = ahead + jnp.arange(block)[:, None] - jnp.arange(span)[None, :]
    visible = (distance >= 0) & (distance < window) & (own[:, :, None] == theirs[:, None, :])
    scores = scores.reshape(batch, groups, heads, block, span)
    return jnp.where(visible[:, None, None], scores, HIDDEN)


def _weighted(weights: Array, v: Array) -> Array:
    batch, groups, heads, block, span = weights.shape
    rows = weights.astype(v.dtype).reshape(batch, groups, heads * block, span)
    out = jnp.einsum("bgqk,bgkd->bgqd", rows, v, preferred_element_type=jnp.float32)
    return out.reshape(batch, groups, heads, block, v.shape[-1])


def _slopes(
    scores: Array, log_total: Array, mean_slope: Array, q: Array, k: Array, v: Array, g: Array
) -> tuple[Array, Array, Array]:
    """What these scores add to the gradients of queries, keys and values, float32."""
    batch, groups, heads, block, width = q.shape
    weights = jnp.exp(scores - log_total)
    rows = g.reshape(batch, groups, heads * block, width)
    slope = jnp.einsum("bgqd,bgkd->bgqk", rows, v, preferred_element_type=jnp.float32)
    slope = weights * (slope.reshape(weights.shape) - mean_slope) * width**-0.5
    by_row = (batch, groups, heads * block, k.shape[2])
    weights, slope = weights.astype(k.dtype).reshape(by_row), slope.astype(k.dtype).reshape(by_row)
    across = functools.partial(jnp.einsum, "bgqk,bgqd->bgkd", preferred_element_type=jnp.float32)
    dq = jnp.einsum("bgqk,bgkd->bgqd", slope, k, preferred_element_type=jnp.float32)
    return dq.reshape(q.shape), across(slope, q.reshape(rows.shape)), across(weights, rows)


def _mean_slope(out: Array, g: Array) -> Array:
    return jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)


def _zeros(needed: Array, *shape: int) -> Array:
    """Zeros that can't be made before `needed` is there: sums that begin as constants are laid out by XLA when the
    program begins, those of all layers side by side (in a training step at 24,576 bytes 2 GB of zeros)."""
    return jnp.broadcast_to((needed.ravel()[0] > jnp.inf).astype(jnp.float32), shape)


def _slice(x: Array, start: Position, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, x.ndim - 2)


def _put(total: Array, part: Array, start: Position) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(total, part.astype(total.dtype), start, total.ndim - 2)


def _add(total: Array, part: Array, start: Position) -> Array:
    return _put(total, _slice(total, start, part.shape[-2]) + part, start)


def _blocks(x: Array, block: int, fill: int = 0) -> Array:
    """[batch, positions, ...] as [blocks, batch, block, ...], the last block completed."""
    after = -x.shape[1] % block
    x = jnp.pad(x, ((0, 0), (0, after), *(((0, 0),) * (x.ndim - 2))), constant_values=fill)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)


def _head_blocks(x: Array, block: int) -> Array:
    """[batch, positions, groups, heads, width] as [blocks, batch, groups, heads, block, width]."""
    return _blocks(x, block).transpose(0, 1, 3, 4, 2, 5)


def _rows(blocks: Array, positions: int) -> Array:
    """[blocks, batch, groups, heads, block, width] as [batch, positions, groups, heads, width], without padding."""
    count, batch, groups, heads, block, width = blocks.shape
    rows = blocks.transpose(1, 0, 4, 2, 3, 5).reshape(batch, count * block, groups, heads, width)
    return rows[:, :positions]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_window(window: int, q: Array, k: Array, v: Array, own: Array, theirs: Array) -> Array:
    """Queries [batch, queries, groups, heads, width]; the keys begin a whole number of blocks before them."""
    return _in_window_forward(window, q, k, v, own, theirs)[0]


def _window_sizes(q_blocks: Array, keys: int) -> tuple[int, int, int]:
    """Queries of a block, keys that it reaches, and how many of those lie before it."""
    count, block = q_blocks.shape[0], q_blocks.shape[-2]
    reach = keys - count * block
    return block, reach + block, reach


def _in_window_forward(window: int, q: Array, k: Array, v: Array, own: Array, theirs: Array) -> tuple[Array, tuple]:
    blocks = _head_blocks(q, _window_block(q.shape[1]))
    block, span, reach = _window_sizes(blocks, k.shape[2])

    def one(_: None, x: tuple[Array, Array, Array]):
        j, q, own = x
        there = jax.lax.dynamic_slice_in_dim(theirs, j * block, span, 1)
        scores = _scores(reach, window, q, _slice(k, j * block, span), own, there)
        peak = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - peak)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _weighted(weights, _slice(v, j * block, span)) / total
        return None, (out.astype(q.dtype), (peak + jnp.log(total))[..., 0])

    # Queries that complete the last block belong to no document: their rows are thrown away.
    xs = jnp.arange(blocks.shape[0]), blocks, _blocks(own, block, -1)
    _, (out, log_total) = jax.lax.scan(one, None, xs)
    # Named, so that a remat policy can keep them: all else of attention is computed again anyway.
    out = checkpoint_name(_rows(out, q.shape[1]), "attention")
    return out, (blocks, k, v, own, theirs, out, checkpoint_name(log_total, "attention"))


def _in_window_backward(window: int, residuals: tuple, g: Array) -> tuple:
    blocks, k, v, own, theirs, out, log_total = residuals
    block, span, reach = _window_sizes(blocks, k.shape[2])
    mean_slope = _mean_slope(out, g)

    def one(carry: tuple[Array, ...], x: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
        dq, dk, dv = carry
        j, q, own, log_total, mean_slope, g = x
        start = j * block
        there = jax.lax.dynamic_slice_in_dim(theirs, start, span, 1)
        keys, values = _slice(k, start, span), _slice(v, start, span)
        scores = _scores(reach, window, q, keys, own, there)
        of_q, of_k, of_v = _slopes(scores, log_total[..., None], mean_slope, q, keys, values, g)
        dq = jax.lax.dynamic_update_index_in_dim(dq, of_q.astype(q.dtype), j, 0)
        return (dq, _add(dk, of_k, start), _add(dv, of_v, start)), None

    steps = (
        jnp.arange(blocks.shape[0]), blocks, _blocks(own, block, -1), log_total,
        _head_blocks(mean_slope, block), _head_blocks(g, block),
    )  # fmt: skip
    zeros = _zeros(mean_slope, *blocks.shape).astype(blocks.dtype), *(_zeros(mean_slope, *x.shape) for x in (k, v))
    (dq, dk, dv), _ = jax.lax.scan(one, zeros, steps)
    return _rows(dq, g.shape[1]), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_in_window.defvjp(_in_window_forward, _in_window_backward)


def _window_block(length: int) -> int:
    return min(WINDOW_BLOCK, -(-length // 8) * 8)


def _windowed(q: Array, k: Array, v: Array, documents: Array, window: int, parts: str | None) -> Array:
    length = q.shape[1]
    block = _window_block(length)
    reach = -(-(window - 1) // block) * block  # keys before a block that its window touches
    theirs = documents
    before = 0
    if parts is not None:
        before = window - 1
        k, v = (jnp.concatenate([from_the_left(x, before, parts, 2), x], axis=2) for x in (k, v))
        # What lies before the row comes as zeros: one less is the document of nobody.
        theirs = jnp.concatenate([from_the_left(documents + 1, before, parts, 1) - 1, documents], axis=1)
    around = (reach - before, -length % block)
    k, v = (jnp.pad(x, ((0, 0), (0, 0), around, (0, 0))) for x in (k, v))
    theirs = jnp.pad(theirs, ((0, 0), around), constant_values=-2)
    return _in_window(window, q, k, v, documents, theirs)  # pyright: ignore[reportReturnType]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_tiles(
    side: int, square: bool, q: Array, k: Array, v: Array, own: Array, theirs: Array, shift: Position
) -> Array:
    """Queries [batch, groups, heads, queries, width] over all earlier keys, in tiles of `side` that divides both.

    Args:
      square: queries and keys begin at the same position, so that tiles above the diagonal need not be computed.
      shift: positions of the first query; a number that only the running program knows.
    """
    return _in_tiles_forward(side, square, q, k, v, own, theirs, shift)[0]


def _tiles(side: int, square: bool, queries: int, keys: int) -> tuple[Array, Array]:
    """First query and first key of each tile."""
    pairs = [(i, j) for i in range(0, queries, side) for j in range(0, keys, side) if j <= i or not square]
    i, j = np.array(pairs, np.int32).T
    return jnp.asarray(i), jnp.asarray(j)


def _tile_scores(
    side: int, i: Position, j: Position, q: Array, k: Array, own: Array, theirs: Array, shift: Position
) -> tuple[Array, Array, Array]:
    """Queries and keys of a tile, and their scores."""
    q, k = _slice(q, i, side), _slice(k, j, side)
    own, theirs = (jax.lax.dynamic_slice_in_dim(x, start, side, 1) for x, start in ((own, i), (theirs, j)))
    return q, k, _scores(shift + i - j, 2**30, q, k, own, theirs)


def _in_tiles_forward(
    side: int, square: bool, q: Array, k: Array, v: Array, own: Array, theirs: Array, shift: Position
) -> tuple[Array, tuple]:
    def one(carry: tuple[Array, ...], tile: tuple[Array, Array]) -> tuple[tuple[Array, ...], None]:
        i, j = tile
        peak, total, out = (_slice(x, i, side) for x in carry)
        # Behind a barrier, or XLA masks the scores twice: for their maximum, and again for the weights.
        scores = jax.lax.optimization_barrier(_tile_scores(side, i, j, q, k, own, theirs, shift)[2])
        higher = jnp.maximum(peak, jnp.max(scores, axis=-1, keepdims=True))
        weights, scale = jnp.exp(scores - higher), jnp.exp(peak - higher)
        total = total * scale + jnp.sum(weights, axis=-1, keepdims=True)
        out = out * scale + _weighted(weights, _slice(v, j, side))
        return tuple(_put(x, new, i) for x, new in zip(carry, (higher, total, out), strict=True)), None

    zeros = _zeros(q, *q.shape[:-1], 1)
    begin = zeros + HIDDEN, zeros, _zeros(q, *q.shape)
    (peak, total, out), _ = jax.lax.scan(one, begin, _tiles(side, square, q.shape[-2], k.shape[-2]))
    out = checkpoint_name((out / total).astype(q.dtype), "attention")
    log_total = checkpoint_name(peak + jnp.log(total), "attention")
    return out, (q, k, v, own, theirs, shift, out, log_total)


def _in_tiles_backward(side: int, square: bool, residuals: tuple, g: Array) -> tuple:
    q, k, v, own, theirs, shift, out, log_total = residuals
    mean_slope = _mean_slope(out, g)

    def one(carry: tuple[Array, ...], tile: tuple[Array, Array]) -> tuple[tuple[Array, ...], None]:
        i, j = tile
        queries, keys, scores = _tile_scores(side, i, j, q, k, own, theirs, shift)
        total, mean = _slice(log_total, i, side), _slice(mean_slope, i, side)
        found = _slopes(scores, total, mean, queries, keys, _slice(v, j, side), _slice(g, i, side))
        return tuple(_add(x, more, at) for x, more, at in zip(carry, found, (i, j, j), strict=True)), None

    zeros = tuple(_zeros(mean_slope, *x.shape) for x in (q, k, v))
    sums, _ = jax.lax.scan(one, zeros, _tiles(side, square, q.shape[-2], k.shape[-2]))
    dq, dk, dv = (total.astype(x.dtype) for total, x in zip(sums, (q, k, v), strict=True))
    return dq, dk, dv, None, None, None


_in_tiles.defvjp(_in_tiles_forward, _in_tiles_backward)


def _causal(q: Array, k: Array, v: Array, documents: Array, parts: str | None) -> Array:
    length, theirs, shift = q.shape[1], documents, jnp.zeros((), jnp.int32)
    if parts is not None:
        # Where the queries lie is known to the device alone, so each goes over the keys of the whole row.
        k, v, theirs = joined(k, parts, 2), joined(v, parts, 2), joined(documents, parts, 1)
        shift = jax.lax.axis_index(parts) * length
    side = min(MOST_TILE, max(LEAST_TILE, -(-length // TILES // LEAST_TILE) * LEAST_TILE), -(-length // 8) * 8)
    q = jnp.moveaxis(q, 1, 3)
    missing = -length % side, -k.shape[2] % side
    q = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, missing[0]), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, missing[1]), (0, 0))) for x in (k, v))
    own = jnp.pad(documents, ((0, 0), (0, missing[0])), constant_values=-1)
    theirs = jnp.pad(theirs, ((0, 0), (0, missing[1])), constant_values=-2)
    out: Any = _in_tiles(side, parts is None, q, k, v, own, theirs, shift)
    return jnp.moveaxis(out, 3, 1)[:, :length]


def _reference(q: Array, k: Array, v: Array, documents: Array, window: int | None, parts: str | None) -> Array:
    """One device's part of a row."""
    batch, length, heads, width = q.shape
    grouped = q.reshape(batch, length, k.shape[2], heads // k.shape[2], width)
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    if window is None:
        return _causal(grouped, k, v, documents, parts).reshape(q.shape)
    return _windowed(grouped, k, v, documents, window, parts).reshape(q.shape)


def backend_of(platform: str, dtype: Any, head_width: int) -> str:
    """The back end that "auto" stands for: the fastest one for such heads on devices of a platform, "cpu" or "tpu".

    On an H100 cuDNN's took a quarter to a sixth of the reference's time (scripts/benchmark_attention.py).
    """
    if platform in ("gpu", "cuda") and kernels.fused_takes(dtype, head_width):
        return "cudnn"
    return "splash" if platform == "tpu" else "reference"


def attention(
    q: Float[Array, "batch positions heads head_width"],
    k: Float[Array, "batch positions key_heads head_width"],
    v: Float[Array, "batch positions key_heads head_width"],
    documents: Int[Array, "batch positions"] | None = None,
    window: int | None = None,
    backend: str = "auto",
) -> Float[Array, "batch positions heads head_width"]:
    """softmax(q k / sqrt(head_width)) v over the keys that a query may see.

    Key j is visible to query i iff j <= i, i - j < window, and both lie in the same document.

    Args:
      q, k, v: queries, keys, values; key_heads divides heads (grouped queries, Ainslie et al. 2023).
      documents: number of the document of each position, not negative; None: one document.
      window: positions visible to a query, itself included; None: all earlier ones.
      backend: "reference", which runs everywhere; "splash" on TPUs; "cudnn" on NVIDIA GPUs, in bfloat16; or "auto":
        what `backend_of` says of these heads on JAX's default devices.

    Raises:
      ValueError: for an unknown back end or a window below 1.
    """
    if backend == "auto":
        backend = backend_of(jax.default_backend(), q.dtype, q.shape[3])
    if backend not in ("reference", "splash", "cudnn"):
        raise ValueError(f"backend={backend!r}: choose 'auto', 'reference', 'splash' or 'cudnn'.")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: must be at least 1, or None for all earlier positions.")
    if documents is None:
        documents = constrain(jnp.zeros(q.shape[:2], jnp.int32), ("batch", "positions"))
    mix = {"reference": _reference, "splash": kernels.splash, "cudnn": kernels.fused}[backend]
    within = None if window is None or window >= q.shape[1] else window
    attend = functools.partial(mix, window=within, parts=split_axis("positions"))
    heads = ("batch", "positions", "heads", None)
    # What a kernel's results have in common between devices is not known to JAX.
    run = per_device(attend, [heads, heads, heads, ("batch", "positions")], heads, checked=backend == "reference")
    return run(q, k, v, documents)


PROOF_TOLERANCE = 0.03  # of the largest value, in bfloat16: some four roundings


@functools.cache
def prove(backend: str, device: Any) -> None:
    """Runs a back end beside the reference on a device, forward and backward, once: kernels are tested without one.

    Raises:
      RuntimeError: where they do not agree.
    """
    length, heads, width = 256, 2, 64
    draw = np.random.default_rng(0)
    q, k, v, slope = jax.device_put(jnp.asarray(draw.normal(size=(4, 2, length, heads, width)), jnp.bfloat16), device)
    documents = jax.device_put(jnp.asarray(np.cumsum(draw.random((2, length)) < 0.01, axis=1), jnp.int32), device)

    def results(backend: str, window: int | None) -> list[Array]:
        out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, documents, window, backend), q, k, v)
        return [out, *pull(slope)]

    for window in (None, 100):
        found, wanted = (jax.jit(functools.partial(results, name, window))() for name in (backend, "reference"))
        for name, one, other in zip(("output", "dq", "dk", "dv"), found, wanted, strict=True):
            one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
            worst = np.max(np.abs(one - other)) / np.max(np.abs(other))
            if not worst <= PROOF_TOLERANCE:
                raise RuntimeError(
                    f"compute.attention={backend!r}: on {device} its {name} with window={window} differs from the "
                    f"reference by {worst:.3g} of the largest value: set compute.attention='reference'."
                )
