"""Cross-attention between bytes and patches in time linear in bytes (BLT paper sections 3.2.2 and 3.3.1).

Each byte lies in one patch and reads one patch, so neither direction needs a bytes x patches array: the encoder's is
a segment softmax over sorted patch ids, the decoder's a gather of k rows and a softmax over k. What is spread from
patches to bytes is spread again in the backward pass, not kept.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bltjax.layers import Projection, RMSNorm

BytePatchIds = Int[Array, "batch bytes"]


def patch_gather(rows: Float[Array, "batch patches *features"], ids: BytePatchIds) -> Float[Array, "..."]:
    """Row ids[t] for every byte t; ids rise along the row and lie within the patches."""
    return jax.vmap(
        lambda rows, ids: rows.at[ids].get(mode="promise_in_bounds", indices_are_sorted=True)
    )(rows, ids)  # fmt: skip


def patch_sum(x: Float[Array, "batch bytes *features"], ids: BytePatchIds, patches: int) -> Float[Array, "..."]:
    """Sum over the bytes of each patch; 0 for a patch without bytes."""
    return jax.vmap(
        lambda x, ids: jax.ops.segment_sum(
            x, ids, patches, indices_are_sorted=True, mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
        )
    )(x, ids)


def _segment_max(x: Array, ids: Array, patches: int) -> Array:
    return jax.vmap(lambda x, ids: jax.ops.segment_max(x, ids, patches, indices_are_sorted=True))(x, ids)


@jax.custom_vjp
def patch_max(
    x: Float[Array, "batch bytes width"], ids: BytePatchIds, empty: Float[Array, "batch patches width"]
) -> Float[Array, "batch patches width"]:
    """Maximum over the bytes of each patch; `empty` where a patch has no bytes.

    The gradient goes in equal parts to the bytes that attain the maximum, as in PyTorch.
    """
    largest = _segment_max(x, ids, empty.shape[1])
    return jnp.where(jnp.isneginf(largest), empty, largest)


def _patch_max_forward(x: Array, ids: Array, empty: Array) -> tuple[Array, tuple[Array, ...]]:
    out = patch_max(x, ids, empty)
    return out, (x, ids, out)


def _patch_max_backward(residuals: tuple[Array, ...], g: Array) -> tuple[Array, None, Array]:
    x, ids, out = residuals
    attains = (x == patch_gather(out, ids)).astype(g.dtype)
    share = g / jnp.maximum(patch_sum(attains, ids, out.shape[1]), 1)
    return attains * patch_gather(share, ids), None, jnp.zeros_like(out)


patch_max.defvjp(_patch_max_forward, _patch_max_backward)


def pool(
    x: Float[Array, "batch bytes width"], ids: BytePatchIds, patches: int, how: Literal["max", "mean", "min"] = "max"
) -> Float[Array, "batch patches width"]:
    """One row per patch from the rows of its bytes; 0 for a patch without bytes."""
    if how == "mean":
        counts = patch_sum(jnp.ones((*x.shape[:2], 1), x.dtype), ids, patches)
        return patch_sum(x, ids, patches) / jnp.maximum(counts, 1)
    zeros = jnp.zeros((x.shape[0], patches, x.shape[2]), x.dtype)
    return patch_max(x, ids, zeros) if how == "max" else -patch_max(-x, ids, zeros)


@jax.checkpoint
def attend_to_bytes(
    q: Float[Array, "batch patches k heads head_width"],
    keys: Float[Array, "batch bytes heads head_width"],
    values: Float[Array, "batch bytes heads head_width"],
    ids: BytePatchIds,
) -> Float[Array, "batch patches k heads head_width"]:
    """Each of a patch's k queries attends to the bytes of that patch; 0 for a patch without bytes."""
    patches = q.shape[1]
    spread = patch_gather(q, ids).astype(jnp.float32)
    scores = jnp.sum(spread * keys[:, :, None].astype(jnp.float32), axis=-1) * q.shape[-1] ** -0.5
    peak = patch_gather(_segment_max(jax.lax.stop_gradient(scores), ids, patches), ids)
    weights = jnp.exp(scores - peak)
    total = jnp.maximum(patch_sum(weights, ids, patches), 1e-30)
    mixed = patch_sum(weights[..., None] * values[:, :, None].astype(jnp.float32), ids, patches)
    return (mixed / total[..., None]).astype(q.dtype)


@jax.checkpoint
def attend_to_patches(
    q: Float[Array, "batch bytes heads head_width"],
    keys: Float[Array, "batch patches k heads head_width"],
    values: Float[Array, "batch patches k heads head_width"],
    ids: BytePatchIds,
) -> Float[Array, "batch bytes heads head_width"]:
    """Each byte attends to the k rows of the patch that it may read."""
    keys = patch_gather(keys, ids)
    values = patch_gather(values, ids)
    scores = jnp.sum(q[:, :, None].astype(jnp.float32) * keys.astype(jnp.float32), axis=-1) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, axis=2)
    return jnp.sum(weights[..., None] * values.astype(jnp.float32), axis=2).astype(q.dtype)


class CrossAttention(nn.Module):
    """Multi-head cross-attention in either direction; its own norms, no biases, no positions.

    The released code adds its input twice (2 x + attention), the paper once: `residual`.
    """

    width: int
    heads: int
    kv_heads: int  # divides heads; fewer than heads: grouped queries
    residual: Literal["double", "single"] = "double"
    epsilon: float = 1e-5
    dtype: str = "float32"
    std: float | None = None  # of fresh matrices; None: width^-0.5

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch queries *k width"], memory: Float[Array, "batch keys *j width"], ids: BytePatchIds
    ) -> Float[Array, "batch queries *k width"]:
        """One side is bytes [batch, bytes, width], the other patches [batch, patches, k, width].

        Args:
          x: what asks: patches in the encoder, bytes in the decoder.
          memory: what is read.
          ids: for each byte the patch that it lies in (encoder), or the patch that it may read (decoder).
        """
        shape, std = (self.heads, self.width // self.heads), self.std or self.width**-0.5
        kv_shape, group = (self.kv_heads, shape[1]), self.heads // self.kv_heads
        x_normed = RMSNorm(self.width, self.epsilon, self.dtype, name="query_norm")(x)
        memory = RMSNorm(self.width, self.epsilon, self.dtype, name="memory_norm")(memory)
        q = Projection((self.width,), shape, std, self.dtype, name="query")(x_normed)
        keys = Projection((self.width,), kv_shape, std, self.dtype, name="key")(memory)
        values = Projection((self.width,), kv_shape, std, self.dtype, name="value")(memory)
        if group > 1:
            keys, values = jnp.repeat(keys, group, axis=-2), jnp.repeat(values, group, axis=-2)
        attend = attend_to_bytes if x.ndim == 4 else attend_to_patches
        mixed = Projection(shape, (self.width,), std, self.dtype, name="out")(attend(q, keys, values, ids))
        return (2 * x if self.residual == "double" else x) + mixed
