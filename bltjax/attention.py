"""Causal self-attention within windows and documents.

The reference back end computes in blocks, so that what the mask hides is mostly never computed: a windowed query
block sees only the key blocks its window reaches, and an unwindowed one only the keys before its end. Nothing of
size N x N exists for a windowed row, and the scores of a block are computed again in the backward pass.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

WINDOW_BLOCK = 128  # queries of one block under a window; measured best of 64, 128 and 256 on CPU
CAUSAL_BLOCKS = 8  # query blocks of an unwindowed row; 8 leaves 1/16 of the products to the mask


@functools.partial(jax.checkpoint, prevent_cse=False)
def _attend(
    q: Float[Array, "*blocks queries groups heads head_width"],
    k: Float[Array, "*blocks keys groups head_width"],
    v: Float[Array, "*blocks keys groups head_width"],
    visible: Bool[Array, "*#blocks queries keys"],
) -> Float[Array, "*blocks queries groups heads head_width"]:
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum("...qghd,...kgd->...ghqk", q, k, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(visible[..., None, None, :, :], scores, -1e30)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - peak)
    total = jnp.sum(weights, axis=-1)
    out = jnp.einsum("...ghqk,...kgd->...qghd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / jnp.moveaxis(total, -1, -3)[..., None]).astype(q.dtype)


def _pad(x: Array, before: int, after: int, value: int = 0) -> Array:
    return jnp.pad(x, ((0, 0), (before, after), *(((0, 0),) * (x.ndim - 2))), constant_values=value)


def _windowed(q: Array, k: Array, v: Array, documents: Array, window: int) -> Array:
    batch, length = q.shape[:2]
    block = min(WINDOW_BLOCK, -(-length // 8) * 8)
    reach = -(-(window - 1) // block)  # earlier blocks that a window touches
    count = -(-length // block)
    after = count * block - length

    def spans(x: Array, value: int = 0) -> Array:
        padded = _pad(x, reach * block, after, value).reshape(batch, count + reach, block, *x.shape[2:])
        return jnp.concatenate([padded[:, i : i + count] for i in range(reach + 1)], axis=2)

    queries = _pad(q, 0, after).reshape(batch, count, block, *q.shape[2:])
    own = _pad(documents, 0, after, -1).reshape(batch, count, block)
    distance = (jnp.arange(block)[:, None] + reach * block) - jnp.arange((reach + 1) * block)[None, :]
    near = (distance >= 0) & (distance < window)
    visible = near & (own[..., :, None] == spans(documents, -2)[..., None, :])
    # The padding that completes the last block sees itself, so that no row of scores is empty.
    visible |= (distance == 0) & (own[..., :, None] == -1)
    out = _attend(queries, spans(k), spans(v), visible)
    return out.reshape(batch, count * block, *q.shape[2:])[:, :length]


def _causal(q: Array, k: Array, v: Array, documents: Array) -> Array:
    length = q.shape[1]
    block = max(64, -(-length // CAUSAL_BLOCKS))
    outputs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        before = jnp.arange(end)[None, :] <= jnp.arange(start, end)[:, None]
        visible = before & (documents[:, start:end, None] == documents[:, None, :end])
        outputs.append(_attend(q[:, start:end], k[:, :end], v[:, :end], visible))
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
      documents: number of the document of each position, not negative and not falling; None: one document.
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
    if window is not None and window < length:
        out = _windowed(grouped, k, v, documents, window)
    else:
        out = _causal(grouped, k, v, documents)
    return out.reshape(q.shape)
