"""Attention by kernels that others keep: splash attention on TPUs, cuDNN's on NVIDIA GPUs.

Both see what `bltjax.attention` says is seen, on one device's part of a row; the halo of a window or the keys of the
whole row are fetched here.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bltjax.parallel import from_the_left, joined

# Queries and keys of a block: the largest that divides, and half a window at most, since of the blocks that a window
# touches all is computed. 128 are a TPU's lanes.
SPLASH_BLOCKS = (512, 256, 128)
# A compiled program shows of a kernel no more than its name and the scopes around it: one says what a product costs.
PRODUCT_SCOPE = "flops_of_a_product_"
# Matrix products of its kernels: scores and sums; forward and backward, where dq and dkv make the scores again each.
SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
FUSED_WIDTHS = 8, 128  # what a head's width must be a multiple of for cuDNN, and the widest that all GPUs take
PADDED, BEFORE = -1, -2  # documents of positions that complete a block, and of those before the row

Queries = Float[Array, "batch positions heads head_width"]
Keys = Float[Array, "batch positions key_heads head_width"]
Documents = Int[Array, "batch positions"]


def _completed(x: Array, block: int, fill: int = 0) -> Array:
    after = -x.shape[1] % block
    return jnp.pad(x, ((0, 0), (0, after), *(((0, 0),) * (x.ndim - 2))), constant_values=fill)


def _with_halo(k: Array, v: Array, documents: Array, reach: int, parts: str) -> tuple[Array, Array, Array]:
    """Keys, values and documents of a device's part after the `reach` positions before it."""
    k, v = (jnp.concatenate([from_the_left(x, reach, parts, 1), x], axis=1) for x in (k, v))
    # What lies before the row comes as zeros: two less is the document of nobody.
    before = from_the_left(documents - BEFORE, reach, parts, 1) + BEFORE
    return k, v, jnp.concatenate([before, documents], axis=1)


def _block(length: int, window: int | None) -> int:
    most = max(SPLASH_BLOCKS[-1], SPLASH_BLOCKS[0] if window is None else window // 2)
    return next(block for block in SPLASH_BLOCKS if length % block == 0 and block <= most)


def splash(
    q: Queries, k: Keys, v: Keys, documents: Documents, window: int | None, parts: str | None, interpret: bool = False
) -> Queries:
    """Attention of one device's part of a row, by the splash kernel that comes with JAX.

    Blocks of scores that the window hides are not computed.

    Args:
      window: positions visible to a query, itself included; None: all earlier ones.
      parts: mesh axis that splits the positions; None: there is none.
      interpret: run the kernel as a plain program, on machines without a TPU.
    """
    # Here, since they take half a second that most who import this package have no use for.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

    length, width = q.shape[1], q.shape[3]
    theirs, reach, shards = documents, 0, 1
    if parts is not None and window is not None:
        reach = math.ceil((window - 1) / SPLASH_BLOCKS[-1]) * SPLASH_BLOCKS[-1]
        k, v, theirs = _with_halo(k, v, documents, reach, parts)
    lanes = SPLASH_BLOCKS[-1]
    q, k, v = (_completed(x, lanes) for x in (q, k, v))
    documents, theirs = (_completed(x, lanes, PADDED) for x in (documents, theirs))
    if parts is not None and window is None:
        shards = jax.lax.axis_size(parts)
        k, v, theirs = joined(k, parts, 1), joined(v, parts, 1), joined(theirs, parts, 1)
    shape = (q.shape[1] * shards, k.shape[1])
    if window is None:
        mask: splash_mask.Mask = splash_mask.CausalMask(shape)
    else:
        mask = splash_mask.LocalMask(shape, (window - 1, 0), reach)
    queries, keys = _block(q.shape[1], window), _block(k.shape[1], window)
    kernel = splash_kernel.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * q.shape[2]),
        block_sizes=splash_kernel.BlockSizes(
            block_q=queries,
            block_kv=keys,
            block_q_dkv=queries,
            block_kv_dkv=keys,
            block_q_dq=queries,
            block_kv_dq=keys,
        ),
        head_shards=1,
        q_seq_shards=shards,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    if shards > 1:
        kernel = _own_queries(kernel, parts, shards)
    area = _computed(q.shape[1], k.shape[1], queries, keys, window, reach)
    flops = 2 * q.shape[0] * q.shape[2] * width * area

    def row(q: Array, k: Array, v: Array, own: Array, theirs: Array) -> Array:
        q, k, v = (jnp.swapaxes(x, 0, 1) for x in (q * width**-0.5, k, v))
        out: Any = kernel(q, k, v, splash_kernel.SegmentIds(own, theirs))
        return jnp.swapaxes(out, 0, 1)

    with jax.named_scope(f"{PRODUCT_SCOPE}{flops}"):
        if q.shape[0] == 1:  # a grid without rows, the only one that the interpreter of a TPU's steps takes
            return row(q[0], k[0], v[0], documents[0], theirs[0])[None, :length]
        return jax.vmap(row)(q, k, v, documents, theirs)[:, :length]


def _computed(length: int, span: int, queries: int, keys: int, window: int | None, reach: int) -> int:
    """Scores that the kernel computes for a head: those of every block in which one is visible.

    Without a window a part of a row counts as its last part, which sees the whole row and takes longest.
    """
    first = np.arange(0, length, queries)[:, None] + (span - length if window is None else reach)
    start = np.arange(0, span, keys)[None, :]
    seen = start <= first + queries - 1
    if window is not None:
        seen &= start + keys - 1 >= first - (window - 1)
    return int(seen.sum()) * queries * keys


def _own_queries(kernel: Any, parts: str | None, shards: int) -> Any:
    """The kernel for this device's queries of one made for those of all: blocks lie along axis 1, positions along 0."""

    def own(x: Array) -> Array:
        if x.ndim == 0:
            return x
        axis = min(1, x.ndim - 1)
        size = x.shape[axis] // shards
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(parts) * size, size, axis)

    return jax.tree.map(own, kernel)


def fused_takes(dtype: Any, head_width: int) -> bool:
    """Whether cuDNN's attention is there for heads of a type and width."""
    step, widest = FUSED_WIDTHS
    return jnp.dtype(dtype) == jnp.bfloat16 and head_width % step == 0 and head_width <= widest


def fused(
    q: Queries,
    k: Keys,
    v: Keys,
    documents: Documents,
    window: int | None,
    parts: str | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Queries:
    """Attention of one device's part of a row, by cuDNN through `jax.nn.dot_product_attention`.

    It takes documents as a mask only. So a windowed row goes in blocks of a window's queries with the keys of two, and
    the mask stays linear in the row; half of the scores are computed in vain. Without a window the mask has a value
    for each query and key: for the global model, whose patches are few. Under a mask its backward pass takes even
    numbers of queries and keys only, to which rows are completed.

    Args:
      window: positions visible to a query, itself included; None: all earlier ones.
      parts: mesh axis that splits the positions; None: there is none.
      implementation: "cudnn", or "xla" on a machine without it.

    Raises:
      ValueError: for float32 or a width of heads that cuDNN does not offer.
    """
    if implementation == "cudnn" and not fused_takes(q.dtype, q.shape[3]):
        raise ValueError(
            f"compute.attention='cudnn': takes bfloat16 and heads of a multiple of {FUSED_WIDTHS[0]} up to "
            f"{FUSED_WIDTHS[1]} wide, not {q.dtype} of {q.shape[3]}; change compute.dtype, or take 'reference'."
        )
    attend = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    batch, length = documents.shape
    first = jnp.zeros((), jnp.int32)
    if window is None:
        theirs = documents
        if parts is not None:
            first = jax.lax.axis_index(parts) * length
            k, v, theirs = joined(k, parts, 1), joined(v, parts, 1), joined(documents, parts, 1)
        q, k, v = (_completed(x, 2) for x in (q, k, v))
        documents, theirs = (_completed(x, 2, PADDED) for x in (documents, theirs))
        own = first + jnp.arange(q.shape[1])
        visible = (own[:, None] >= jnp.arange(k.shape[1])) & (documents[:, :, None] == theirs[:, None, :])
        return attend(q, k, v, mask=visible[:, None])[:, :length]
    block = window + window % 2
    if parts is None:
        before = ((0, 0), (block, 0))
        k, v = (jnp.pad(x, (*before, (0, 0), (0, 0))) for x in (k, v))
        theirs = jnp.pad(documents, before, constant_values=BEFORE)
    else:
        k, v, theirs = _with_halo(k, v, documents, block, parts)
    blocks = -(-length // block)

    def by_block(x: Array, fill: int = 0) -> Array:
        x = _completed(x, block, fill)
        return x.reshape(batch * blocks, block, *x.shape[2:])

    def with_last(x: Array, fill: int = 0) -> Array:
        """Each block's keys after those of the block before it."""
        earlier, later = x[:, : blocks * block], x[:, block:]
        return jnp.concatenate([by_block(earlier, fill), by_block(later, fill)], axis=1)

    own, theirs = by_block(documents, PADDED), with_last(theirs, PADDED)
    distance = block + np.arange(block)[:, None] - np.arange(2 * block)
    visible = (distance >= 0) & (distance < window) & (own[:, :, None] == theirs[:, None, :])
    out = attend(by_block(q), with_last(k), with_last(v), mask=visible[:, None])
    return out.reshape(batch, blocks * block, *out.shape[2:])[:, :length]
