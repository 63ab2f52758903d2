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
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

WINDOW_BLOCK = 128  # queries of a block under a window
CAUSAL_GROUPS = 8  # parts of an unwindowed row, each with its own span of keys; 8 leaves 1/16 of the work to the mask
CAUSAL_BLOCK = 128  # queries of a block without a window
HIDDEN = -1e30  # score of a hidden key


@dataclasses.dataclass(frozen=True)
class _Band:
    """Which keys a block of queries reaches: those from `step` times its number on, `span` of them."""

    step: int
    span: int
    ahead: int  # position of the first query less position of the first key
    window: int


def _scores(band: _Band, j: Array, q: Array, k: Array, own: Array, theirs: Array) -> Array:
    """Scaled scores of block j, float32 [batch, groups, heads, block, span]; HIDDEN where the mask is."""
    batch, groups, heads, block, width = q.shape
    rows = q.reshape(batch, groups, heads * block, width)
    scores = jnp.einsum("bgqd,bgkd->bgqk", rows, k, preferred_element_type=jnp.float32) * width**-0.5
    first = band.ahead + j * (block - band.step)
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _banded(band: _Band, q: Array, k: Array, v: Array, own: Array, theirs: Array) -> Array:
    """Blocks of queries [blocks, batch, groups, heads, block, width] over keys [batch, groups, keys, width]."""
    return _banded_forward(band, q, k, v, own, theirs)[0]


def _banded_forward(band: _Band, q: Array, k: Array, v: Array, own: Array, theirs: Array) -> tuple[Array, tuple]:
    def block(_: None, x: tuple[Array, Array, Array]) -> tuple[None, tuple[Array, Array]]:
        j, q, own = x
        scores = _scores(band, j, q, _span(band, k, j, 2), own, _span(band, theirs, j, 1))
        peak = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - peak)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _weighted(weights, _span(band, v, j, 2)) / total
        return None, (out.astype(q.dtype), (peak + jnp.log(total))[..., 0])

    _, (out, log_total) = jax.lax.scan(block, None, (jnp.arange(q.shape[0]), q, own))
    # Named, so that a remat policy can keep them: all else of attention is computed again anyway.
    out, log_total = checkpoint_name(out, "attention"), checkpoint_name(log_total, "attention")
    return out, (q, k, v, own, theirs, out, log_total)


def _banded_backward(band: _Band, residuals: tuple, g: Array) -> tuple:
    q, k, v, own, theirs, out, log_total = residuals
    batch, groups, heads, block, width = q.shape[1:]
    mean_slope = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def add(total: Array, j: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(total, _span(band, total, j, 2) + part, j * band.step, 2)

    def one(carry: tuple[Array, Array], x: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        dk, dv = carry
        j, q, own, log_total, mean_slope, g = x
        keys, values = _span(band, k, j, 2), _span(band, v, j, 2)
        weights = jnp.exp(_scores(band, j, q, keys, own, _span(band, theirs, j, 1)) - log_total[..., None])
        rows = g.reshape(batch, groups, heads * block, width)
        slope = jnp.einsum("bgqd,bgkd->bgqk", rows, values, preferred_element_type=jnp.float32)
        slope = weights * (slope.reshape(weights.shape) - mean_slope[..., None]) * width**-0.5
        by_row = (batch, groups, heads * block, band.span)
        weights, slope = weights.astype(k.dtype).reshape(by_row), slope.astype(k.dtype).reshape(by_row)
        across = functools.partial(jnp.einsum, "bgqk,bgqd->bgkd", preferred_element_type=jnp.float32)
        carry = add(dk, j, across(slope, q.reshape(rows.shape))), add(dv, j, across(weights, rows))
        dq = jnp.einsum("bgqk,bgkd->bgqd", slope, keys, preferred_element_type=jnp.float32)
        return carry, dq.reshape(q.shape).astype(q.dtype)

    start = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    steps = (jnp.arange(q.shape[0]), q, own, log_total, mean_slope, g)
    (dk, dv), dq = jax.lax.scan(one, start, steps)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


_banded.defvjp(_banded_forward, _banded_backward)


def _blocks(x: Array, block: int, fill: int = 0) -> Array:
    """[batch, positions, ...] as [blocks, batch, block, ...], the last block completed."""
    after = -x.shape[1] % block
    x = jnp.pad(x, ((0, 0), (0, after), *(((0, 0),) * (x.ndim - 2))), constant_values=fill)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)


def _attend(q: Array, k: Array, v: Array, own: Array, theirs: Array, band: _Band, block: int) -> Array:
    """Queries [batch, queries, groups, heads, width] over keys [batch, groups, keys, width]."""
    blocks = _blocks(q, block).transpose(0, 1, 3, 4, 2, 5)
    # Queries that complete the last block belong to no document: their rows are thrown away below.
    out: Array = _banded(band, blocks, k, v, _blocks(own, block, -1), theirs)  # pyright: ignore[reportAssignmentType]
    count, batch, groups, heads, _, width = out.shape
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(batch, count * block, groups, heads, width)[:, : q.shape[1]]


def _windowed(q: Array, k: Array, v: Array, documents: Array, window: int) -> Array:
    length = q.shape[1]
    block = min(WINDOW_BLOCK, -(-length // 8) * 8)
    reach = -(-(window - 1) // block) * block  # keys before a block that its window touches
    around = (reach, -length % block)
    k, v = (jnp.pad(x, ((0, 0), (0, 0), around, (0, 0))) for x in (k, v))
    theirs = jnp.pad(documents, ((0, 0), around), constant_values=-2)
    band = _Band(step=block, span=reach + block, ahead=reach, window=window)
    return _attend(q, k, v, documents, theirs, band, block)


def _causal(q: Array, k: Array, v: Array, documents: Array) -> Array:
    length = q.shape[1]
    group = max(CAUSAL_BLOCK, math.ceil(length / CAUSAL_GROUPS / CAUSAL_BLOCK) * CAUSAL_BLOCK)
    outputs = []
    for start in range(0, length, group):
        end = min(start + group, length)
        band = _Band(step=0, span=end, ahead=start, window=length)
        own, block = documents[:, start:end], min(CAUSAL_BLOCK, end - start)
        outputs.append(_attend(q[:, start:end], k[:, :, :end], v[:, :, :end], own, documents[:, :end], band, block))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


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
    batch, length, heads, width = q.shape
    if documents is None:
        documents = jnp.zeros((batch, length), jnp.int32)
    grouped = q.reshape(batch, length, k.shape[2], heads // k.shape[2], width)
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    if window is not None and window < length:
        out = _windowed(grouped, k, v, documents, window)
    else:
        out = _causal(grouped, k, v, documents)
    return out.reshape(q.shape)
