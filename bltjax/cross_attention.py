"""Cross-attention between bytes and patches in time linear in bytes (BLT paper sections 3.2.2 and 3.3.1).

Each byte lies in one patch and reads one patch, so neither direction needs a bytes x patches array: the encoder's is
a segment softmax over sorted patch ids, the decoder's a gather of k rows and a softmax over k. What is spread from
patches to bytes is spread again in the backward pass, not kept.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bltjax.layers import Projection, RMSNorm
from bltjax.parallel import joined, largest, own_part, per_device, summed, summed_part
from bltjax.sharding import split_axis

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def patch_max(
    x: Float[Array, "batch bytes width"], ids: BytePatchIds, patches: int, parts: str | None = None
) -> Float[Array, "batch patches width"]:
    """Maximum over the bytes of each patch; 0 for a patch without bytes.

    The gradient goes in equal parts to the bytes that attain the maximum, as in PyTorch.

    Args:
      parts: the mesh axis over which the bytes are split, inside `sharding.per_device`.
    """
    found = largest(_segment_max(x, ids, patches), parts)
    return jnp.where(jnp.isneginf(found), 0, found)


def _patch_max_forward(x: Array, ids: Array, patches: int, parts: str | None) -> tuple[Array, tuple[Array, ...]]:
    out: Any = patch_max(x, ids, patches, parts)
    return out, (x, ids, out)


def _patch_max_backward(patches: int, parts: str | None, residuals: tuple[Array, ...], g: Array) -> tuple[Array, None]:
    x, ids, out = residuals
    attains = (x == patch_gather(out, ids)).astype(g.dtype)
    share = g / jnp.maximum(summed(patch_sum(attains, ids, patches), parts), 1)
    return attains * patch_gather(share, ids), None


patch_max.defvjp(_patch_max_forward, _patch_max_backward)


def pool(
    x: Float[Array, "batch bytes width"], ids: BytePatchIds, patches: int, how: Literal["max", "mean", "min"] = "max"
) -> Float[Array, "batch patches width"]:
    """One row per patch from the rows of its bytes; 0 for a patch without bytes."""
    parts = split_axis("bytes")

    def pooled(x: Array, ids: Array) -> Array:
        if how == "mean":
            counts = summed(patch_sum(jnp.ones((*x.shape[:2], 1), x.dtype), ids, patches), parts)
            found = summed(patch_sum(x, ids, patches), parts) / jnp.maximum(counts, 1)
        else:
            sign = 1 if how == "max" else -1
            most: Any = patch_max(sign * x, ids, patches, parts)
            found = sign * most
        return own_part(found, parts, 1)

    return per_device(pooled, [("batch", "bytes", None), ("batch", "bytes")], ("batch", "patches", None))(x, ids)


def pool_on(
    found: Float[Array, "batch width"],
    count: Int[Array, "batch"],
    before: Float[Array, "batch width"],
    before_count: Int[Array, "batch"],
    how: Literal["max", "mean", "min"] = "max",
) -> Float[Array, "batch width"]:
    """What `pool` makes of a patch whose bytes come in two parts, from its rows for each part and their bytes."""
    if how == "mean":
        share = before_count / jnp.maximum(before_count + count, 1)
        both = found + (before - found) * share[:, None].astype(found.dtype)
    else:
        both = jnp.maximum(before, found) if how == "max" else jnp.minimum(before, found)
    both = jnp.where(count[:, None] > 0, both, before)
    return jnp.where(before_count[:, None] > 0, both, found)


_PATCH_HEADS = ("batch", "patches", None, "heads", None)
_BYTE_HEADS = ("batch", "bytes", "heads", None)


@jax.checkpoint
def attend_to_bytes(
    q: Float[Array, "batch patches k heads head_width"],
    keys: Float[Array, "batch bytes heads head_width"],
    values: Float[Array, "batch bytes heads head_width"],
    ids: BytePatchIds,
) -> Float[Array, "batch patches k heads head_width"]:
    """Each of a patch's k queries attends to the bytes of that patch; 0 for a patch without bytes."""
    parts = split_axis("bytes")

    def attend(q: Array, keys: Array, values: Array, ids: Array) -> Array:
        q = joined(q, parts, 1)
        patches = q.shape[1]
        spread = patch_gather(q, ids).astype(jnp.float32)
        scores = jnp.sum(spread * keys[:, :, None].astype(jnp.float32), axis=-1) * q.shape[-1] ** -0.5
        peak = patch_gather(largest(_segment_max(jax.lax.stop_gradient(scores), ids, patches), parts), ids)
        weights = jnp.exp(scores - peak)
        total = summed_part(patch_sum(weights, ids, patches), parts, 1)
        mixed = patch_sum(weights[..., None] * values[:, :, None].astype(jnp.float32), ids, patches)
        return (summed_part(mixed, parts, 1) / jnp.maximum(total, 1e-30)[..., None]).astype(q.dtype)

    axes = [_PATCH_HEADS, _BYTE_HEADS, _BYTE_HEADS, ("batch", "bytes")]
    return per_device(attend, axes, _PATCH_HEADS)(q, keys, values, ids)


@jax.checkpoint
def attend_to_patches(
    q: Float[Array, "batch bytes heads head_width"],
    keys: Float[Array, "batch patches k heads head_width"],
    values: Float[Array, "batch patches k heads head_width"],
    ids: BytePatchIds,
) -> Float[Array, "batch bytes heads head_width"]:
    """Each byte attends to the k rows of the patch that it may read."""
    parts = split_axis("patches")

    def attend(q: Array, keys: Array, values: Array, ids: Array) -> Array:
        keys, values = (patch_gather(joined(x, parts, 1), ids) for x in (keys, values))
        scores = jnp.sum(q[:, :, None].astype(jnp.float32) * keys.astype(jnp.float32), axis=-1) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(scores, axis=2)
        return jnp.sum(weights[..., None] * values.astype(jnp.float32), axis=2).astype(q.dtype)

    axes = [_BYTE_HEADS, _PATCH_HEADS, _PATCH_HEADS, ("batch", "bytes")]
    return per_device(attend, axes, _BYTE_HEADS)(q, keys, values, ids)


def spread_heads(x: Float[Array, "*batch kv_heads head_width"], heads: int) -> Float[Array, "*batch heads head_width"]:
    """Keys or values with those of each group of queries repeated for every query head of the group."""
    group = heads // x.shape[-2]
    return x if group == 1 else jnp.repeat(x, group, axis=-2)


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

    def setup(self) -> None:
        shape, std = (self.heads, self.width // self.heads), self.std or self.width**-0.5
        kv_shape, axes = (self.kv_heads, shape[1]), ("shard", "heads", "head_width")
        self.query_norm = RMSNorm(self.width, self.epsilon, self.dtype)
        self.memory_norm = RMSNorm(self.width, self.epsilon, self.dtype)
        self.query = Projection((self.width,), shape, axes, std, self.dtype)
        self.key = Projection((self.width,), kv_shape, axes, std, self.dtype)
        self.value = Projection((self.width,), kv_shape, axes, std, self.dtype)
        self.out = Projection(shape, (self.width,), ("heads", "head_width", "shard"), std, self.dtype)

    def read(self, memory: Float[Array, "batch keys *j width"]) -> tuple[Array, Array]:
        """Keys and values [batch, keys, *j, kv_heads, head_width] of what is read."""
        memory = self.memory_norm(memory)
        return self.key(memory), self.value(memory)

    def ask(
        self, x: Float[Array, "batch queries *k width"], attend: Callable[[Array], Array]
    ) -> Float[Array, "batch queries *k width"]:
        """x and what its queries find.

        Args:
          attend: from queries [batch, queries, *k, heads, head_width] to what each of them reads, of the same shape.
        """
        mixed = self.out(attend(self.query(self.query_norm(x))))
        return (2 * x if self.residual == "double" else x) + mixed

    def __call__(
        self, x: Float[Array, "batch queries *k width"], memory: Float[Array, "batch keys *j width"], ids: BytePatchIds
    ) -> Float[Array, "batch queries *k width"]:
        """One side is bytes [batch, bytes, width], the other patches [batch, patches, k, width].

        Args:
          x: what asks: patches in the encoder, bytes in the decoder.
          memory: what is read.
          ids: for each byte the patch that it lies in (encoder), or the patch that it may read (decoder).
        """
        keys, values = (spread_heads(each, self.heads) for each in self.read(memory))
        attend: Any = attend_to_bytes if x.ndim == 4 else attend_to_patches
        return self.ask(x, lambda q: attend(q, keys, values, ids))
