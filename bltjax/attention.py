"""Causal self-attention within windows and documents.

The reference back end goes through blocks of queries one after another, each with the span of keys that it can reach:
a windowed block sees its window and no more, an unwindowed one the keys before the end of its eighth of the row. So
little is computed that the mask hides, no N x N array exists, and the scores of a block stay in the cache of a CPU.
As in FlashAttention (Dao et al. 2022) the backward pass computes the scores again from the logarithm of their sum.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from bltjax.parallel import from_the_left, joined, per_device
from bltjax.sharding import constrain, split_axis

WINDOW_BLOCK = 128  # queries of a block under a window
CAUSAL_GROUPS = 8  # parts of an unwindowed row, each with its own span of keys; 8 leaves 1/16 of the work to the mask
CAUSAL_BLOCK = 128  # queries of a block without a window
HIDDEN = -1e30  # score of a hidden key


@dataclasses.dataclass(frozen=True)
class _Band:
    """Queries `start` to `end` in blocks; block j reaches the `span` keys from `step` times j on."""

    start: int
    end: int
    block: int
    step: int
    span: int
    ahead: int  # position of the first query less position of the first key
    window: int


Position = Array | np.ndarray  # a constant of a traced function may come as either


def _scores(band: _Band, shift: Position, j: Array, q: Array, k: Array, own: Array, theirs: Array) -> Array:
    """Scaled scores of block j, float32 [batch, groups, heads, block, span]; HIDDEN where the mask is."""
    batch, groups, heads, block, width = q.shape
    rows = q.reshape(batch, groups, heads * block, width)
    scores = jnp.einsum("bgqd,bgkd->bgqk", rows, k, preferred_element_type=jnp.float32) * width**-0.5
    first = band.ahead + shift + j * (block - band.step)
    distance = first + jnp.arange(block)[:, None] - jnp.arange(band.span)[None, :]
    visible = (distance >= 0) & (distance < band.window) & (own[:, :, None] == theirs[:, None, :])
    scores = scores.reshape(batch, groups, heads, block, band.span)
    return jnp.where(visible[:, None, None], scores, HIDDEN)


def _span(band: _Band, x: Array, j: Array, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, j * band.step, band.span, axis)


def _weighted(weights: Array, v: Array) -> Array:
    batch, groups, heads, block, span = weights.shape
    rows = weights.astype(v.dtype).reshape(batch, groups, heads * block, span)
    out = jnp.einsum("bgqk,bgkd->bgqd", rows, v, preferred_element_type=jnp.float32)
    return out.reshape(batch, groups, heads, block, v.shape[-1])


def _blocks(band: _Band, x: Array, fill: int = 0) -> Array:
    """The band's queries [batch, positions, ...] as [blocks, batch, block, ...], the last block completed."""
    x = x[:, band.start : band.end]
    after = -x.shape[1] % band.block
    x = jnp.pad(x, ((0, 0), (0, after), *(((0, 0),) * (x.ndim - 2))), constant_values=fill)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, band.block, *x.shape[2:]), 1, 0)


def _head_blocks(band: _Band, x: Array) -> Array:
    return _blocks(band, x).transpose(0, 1, 3, 4, 2, 5)


def _rows(band: _Band, blocks: Array) -> Array:
    """[blocks, batch, groups, heads, block, width] as [batch, positions, groups, heads, width], without padding."""
    count, batch, groups, heads, block, width = blocks.shape
    rows = blocks.transpose(1, 0, 4, 2, 3, 5).reshape(batch, count * block, groups, heads, width)
    return rows[:, : band.end - band.start]


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _reached(band: _Band, *arrays: Array) -> list[Array]:
    """Keys, values and their documents as far as the band sees them."""
    return [x if band.step else jax.lax.slice_in_dim(x, 0, band.span, axis=x.ndim // 2) for x in arrays]


Bands = tuple[_Band, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _banded(bands: Bands, q: Array, k: Array, v: Array, own: Array, theirs: Array, shift: Position) -> Array:
    """Queries [batch, queries, groups, heads, width] over keys [batch, groups, keys, width].

    The queries lie `shift` further on than the bands say; a number that only the running program knows.
    """
    return _banded_forward(bands, q, k, v, own, theirs, shift)[0]


def _banded_forward(
    bands: Bands, q: Array, k: Array, v: Array, own: Array, theirs: Array, shift: Position
) -> tuple[Array, tuple]:
    outs, queries, log_totals = [], [], []
    for band in bands:
        keys, values, documents = _reached(band, k, v, theirs)

        def block(_: None, x: tuple[Array, Array, Array], band=band, keys=keys, values=values, documents=documents):
            j, q, own = x
            scores = _scores(band, shift, j, q, _span(band, keys, j, 2), own, _span(band, documents, j, 1))
            peak = jnp.max(scores, axis=-1, keepdims=True)
            weights = jnp.exp(scores - peak)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            out = _weighted(weights, _span(band, values, j, 2)) / total
            return None, (out.astype(q.dtype), (peak + jnp.log(total))[..., 0])

        blocks = _head_blocks(band, q)
        # Queries that complete the last block belong to no document: their rows are thrown away.
        xs = jnp.arange(blocks.shape[0]), blocks, _blocks(band, own, -1)
        _, (out, log_total) = jax.lax.scan(block, None, xs)
        outs.append(_rows(band, out))
        queries.append(blocks)
        log_totals.append(checkpoint_name(log_total, "attention"))
    # Named, so that a remat policy can keep them: all else of attention is computed again anyway.
    out = checkpoint_name(_joined(outs), "attention")
    return out, (queries, k, v, own, theirs, shift, out, log_totals)


def _banded_backward(bands: Bands, residuals: tuple, g: Array) -> tuple:
    queries, k, v, own, theirs, shift, out, log_totals = residuals
    mean_slope = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    # Zero, in a way that needs g: sums that begin as constants are laid out by XLA when the program begins, those of
    # all layers side by side (at 24,576 bytes 2 GB of zeros).
    zero = jnp.minimum(jnp.abs(mean_slope.ravel()[0]), 0)
    dk, dv = (jnp.broadcast_to(zero, x.shape) for x in (k, v))
    dqs = []
    for band, blocks, log_total in zip(bands, queries, log_totals, strict=True):
        keys, values, documents = _reached(band, k, v, theirs)
        steps = (
            jnp.arange(blocks.shape[0]), blocks, _blocks(band, own, -1), log_total,
            _head_blocks(band, mean_slope), _head_blocks(band, g),
        )  # fmt: skip
        one = functools.partial(_one_backward, band, shift, keys, values, documents)
        dq = jnp.broadcast_to(zero, blocks.shape).astype(blocks.dtype)
        (dq, dk, dv), _ = jax.lax.scan(one, (dq, dk, dv), steps)
        dqs.append(_rows(band, dq))
    return _joined(dqs), dk.astype(k.dtype), dv.astype(v.dtype), None, None, None


def _one_backward(
    band: _Band,
    shift: Position,
    k: Array,
    v: Array,
    theirs: Array,
    carry: tuple[Array, ...],
    x: tuple[Array, ...],
) -> tuple[tuple[Array, ...], None]:
    """Adds one block's share to the gradients of queries, keys and values."""
    dq, dk, dv = carry
    j, q, own, log_total, mean_slope, g = x
    batch, groups, heads, block, width = q.shape
    keys, values = _span(band, k, j, 2), _span(band, v, j, 2)
    weights = jnp.exp(_scores(band, shift, j, q, keys, own, _span(band, theirs, j, 1)) - log_total[..., None])
    rows = g.reshape(batch, groups, heads * block, width)
    slope = jnp.einsum("bgqd,bgkd->bgqk", rows, values, preferred_element_type=jnp.float32)
    slope = weights * (slope.reshape(weights.shape) - mean_slope) * width**-0.5
    by_row = (batch, groups, heads * block, band.span)
    weights, slope = weights.astype(k.dtype).reshape(by_row), slope.astype(k.dtype).reshape(by_row)
    across = functools.partial(jnp.einsum, "bgqk,bgqd->bgkd", preferred_element_type=jnp.float32)

    def add(total: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(total, _span(band, total, j, 2) + part, j * band.step, 2)

    dk, dv = add(dk, across(slope, q.reshape(rows.shape))), add(dv, across(weights, rows))
    part = jnp.einsum("bgqk,bgkd->bgqd", slope, keys, preferred_element_type=jnp.float32)
    dq = jax.lax.dynamic_update_index_in_dim(dq, part.reshape(q.shape).astype(q.dtype), j, 0)
    return (dq, dk, dv), None


_banded.defvjp(_banded_forward, _banded_backward)


def _windowed(q: Array, k: Array, v: Array, documents: Array, window: int, parts: str | None) -> Array:
    length = q.shape[1]
    block = min(WINDOW_BLOCK, -(-length // 8) * 8)
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
    band = _Band(start=0, end=length, block=block, step=block, span=reach + block, ahead=reach, window=window)
    return _banded((band,), q, k, v, documents, theirs, jnp.zeros((), jnp.int32))  # pyright: ignore[reportReturnType]


def _causal(q: Array, k: Array, v: Array, documents: Array, window: int, parts: str | None) -> Array:
    length, theirs, shift = q.shape[1], documents, jnp.zeros((), jnp.int32)
    group = max(CAUSAL_BLOCK, math.ceil(length / CAUSAL_GROUPS / CAUSAL_BLOCK) * CAUSAL_BLOCK)
    if parts is not None:
        # Where the queries lie is known to the device alone, so each goes over the keys of the whole row.
        k, v, theirs = joined(k, parts, 2), joined(v, parts, 2), joined(documents, parts, 1)
        shift, group = jax.lax.axis_index(parts) * length, length
    bands = []
    for start in range(0, length, group):
        end = min(start + group, length)
        span = end if parts is None else k.shape[2]
        block = min(CAUSAL_BLOCK, end - start)
        bands.append(_Band(start=start, end=end, block=block, step=0, span=span, ahead=start, window=window))
    return _banded(tuple(bands), q, k, v, documents, theirs, shift)  # pyright: ignore[reportReturnType]


def attention(
    q: Float[Array, "batch positions heads head_width"],
    k: Float[Array, "batch positions key_heads head_width"],
    v: Float[Array, "batch positions key_heads head_width"],
    documents: Int[Array, "batch positions"] | None = None,
    window: int | None = None,
    backend: str = "reference",
) -> Float[Array, "batch positions heads head_width"]:
    """softmax(q k / sqrt(head_width)) v over the keys that a query may see.

    Key j is visible to query i iff j <= i, i - j < window, and both lie in the same document.

    Args:
      q, k, v: queries, keys, values; key_heads divides heads (grouped queries, Ainslie et al. 2023).
      documents: number of the document of each position, not negative; None: one document.
      window: positions visible to a query, itself included; None: all earlier ones.
      backend: "reference" is the only one so far.

    Raises:
      ValueError: for an unknown back end or a window below 1.
    """
    if backend != "reference":
        raise ValueError(f"backend={backend!r}: choose 'reference'.")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: must be at least 1, or None for all earlier positions.")
    if documents is None:
        documents = constrain(jnp.zeros(q.shape[:2], jnp.int32), ("batch", "positions"))
    parts = split_axis("positions")
    whole = q.shape[1]

    def attend(q: Array, k: Array, v: Array, documents: Array) -> Array:
        batch, length, heads, width = q.shape
        grouped = q.reshape(batch, length, k.shape[2], heads // k.shape[2], width)
        k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        mix = _causal if window is None or window >= whole else _windowed
        return mix(grouped, k, v, documents, min(window or whole, whole), parts).reshape(q.shape)

    heads = ("batch", "positions", "heads", None)
    return per_device(attend, [heads, heads, heads, ("batch", "positions")], heads)(q, k, v, documents)
