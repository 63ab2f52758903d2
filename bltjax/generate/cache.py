"""Keys and values of what a tower has read, and attention to them: the step form of `bltjax.attention`.

In go some new positions of every row, as many as the row has of them, and the cache of those before; out come the
tower's rows for the new ones, and the cache with them in it. One new position is a step of generation, many are a
part of a prompt. `flat` and `latent` call this for every tower. Layers are those of `bltjax.transformer`: only what
they attend to is given here.

A cache is a ring: position t of a row lies at place t modulo the number of places. A window of w positions needs
w places, whatever the length of the row; without a window there are places for the whole row. Long rings are read in
blocks, and only as far as they are filled, so that room for a long row costs a short one nothing but memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from bltjax.attention import HIDDEN
from bltjax.config import ComputeConfig, TransformerConfig
from bltjax.layers import rotation_at
from bltjax.sharding import constrain
from bltjax.transformer import TransformerLayer

BLOCK = 256  # places of a ring that are read at once

Keys = Float[Array, "batch key_heads head_width places"]
Values = Float[Array, "batch key_heads places head_width"]
Found = tuple[Array, Array, Array]  # largest score, sum of weights, weighed values: what a softmax is put together from
Lookup = Callable[[Array], Found]  # from queries [batch, key_heads, group, queries, head_width]


@chex.dataclass
class Cache:
    """Keys and values of one tower, by layer."""

    keys: tuple[Keys, ...]
    values: tuple[Values, ...]


class _Part(nn.Module):
    function: Callable[..., Any]

    @nn.compact
    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def run_part(function: Callable[..., Any], params: Any, *arguments: Any) -> Any:
    """A function that makes submodules, such as `blt.embed_bytes`, with the params of the module that they are of."""
    return _Part(function).apply({"params": params}, *arguments)


def split_layers(params: Any) -> tuple[Any, ...]:
    """Stacked params of layers as those of each layer, in arrays of their own.

    Taken apart inside a loop of steps, they would be copied in every one of them.
    """
    leaves, structure = jax.tree.flatten(params)
    return tuple(jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in range(leaves[0].shape[0]))


def whole_blocks(places: int) -> int:
    """So many places, or some more, that they can be read in blocks."""
    return max(places, 1) if places <= BLOCK else -(-places // BLOCK) * BLOCK


def empty_cache(config: TransformerConfig, compute: ComputeConfig, batch: int, positions: int, ahead: int = 0) -> Cache:
    """A cache for rows of up to `positions` positions, none of which has been read.

    Args:
      ahead: how many of the positions that were read may be taken back: the next ones go to their places, and what the
        window still reaches has not been overwritten.
    """
    places = whole_blocks(positions if config.window is None else min(config.window + ahead, positions))

    def zeros(*shape: int) -> tuple[Array, ...]:
        axes = ("batch", "heads", None, None)
        empty = jnp.zeros((batch, config.key_heads, *shape), compute.dtype)
        return tuple(constrain(empty, axes) for _ in range(config.layers))

    return Cache(keys=zeros(config.head_width, places), values=zeros(places, config.head_width))


def look(q: Array, keys: Keys, values: Values, visible: Bool[Array, "batch queries places"]) -> Found:
    """What queries find among keys, all at once."""
    scale = q.shape[-1] ** -0.5
    scores = _weighed(q, keys) * scale
    visible = visible[:, None, None]
    scores = jnp.where(visible, scores, HIDDEN)
    peak = jnp.max(scores, axis=-1)
    weights = jnp.where(visible, jnp.exp(scores - peak[..., None]), 0)
    return peak, jnp.sum(weights, axis=-1), _weighed(weights.astype(values.dtype), values)


def _weighed(weights: Array, rows: Array) -> Array:
    """Sums [batch, key_heads, group, queries, n], float32, of rows [batch, key_heads, m, n] with weights [..., m]."""
    if weights.shape[2] * weights.shape[3] > 1:
        return jnp.einsum("bhgqm,bhmn->bhgqn", weights, rows, preferred_element_type=jnp.float32)
    # A product with a single row is limited by memory: written as a sum, XLA on a CPU reads the rows once, where they
    # lie, and copies none of them.
    weights, rows = weights[:, :, 0, 0, :, None].astype(jnp.float32), rows.astype(jnp.float32)
    return jnp.sum(weights * rows, axis=2)[:, :, None, None]


def look_in_blocks(
    q: Array, keys: Keys, values: Values, visible: Callable[[Array], Bool[Array, "batch queries places"]],
    filled: Int[Array, ""],
) -> Found:  # fmt: skip
    """What queries find among keys, of which the first `filled` places are in use; block by block.

    Args:
      visible: from places, an array of some of them, to who sees them.
    """
    places = values.shape[2]
    if places <= BLOCK:
        return look(q, keys, values, visible(jnp.arange(places)))

    def block(j: Array, before: Found) -> Found:
        first = j * BLOCK
        some_keys = jax.lax.dynamic_slice_in_dim(keys, first, BLOCK, 3)
        some_values = jax.lax.dynamic_slice_in_dim(values, first, BLOCK, 2)
        return merge(before, look(q, some_keys, some_values, visible(first + jnp.arange(BLOCK))))

    peak = jnp.full(q.shape[:-1], HIDDEN, jnp.float32)
    nothing = peak, jnp.zeros_like(peak), jnp.zeros(q.shape, jnp.float32)
    return jax.lax.fori_loop(0, (jnp.minimum(filled, places) + BLOCK - 1) // BLOCK, block, nothing)


def merge(one: Found, other: Found) -> Found:
    """What is found in two places, as if they were one."""
    peak = jnp.maximum(one[0], other[0])
    weights = [jnp.exp(found[0] - peak) for found in (one, other)]
    total, mixed = (
        sum(w.reshape(w.shape + (1,) * (found[i].ndim - w.ndim)) * found[i]
            for w, found in zip(weights, (one, other), strict=True))
        for i in (1, 2)
    )  # fmt: skip
    return peak, jnp.asarray(total), jnp.asarray(mixed)


def attend(q: Float[Array, "batch queries heads head_width"], key_heads: int, *lookups: Lookup) -> Array:
    """softmax(q k / sqrt(head_width)) v over the keys of all lookups together; 0 where no key is visible."""
    batch, queries, heads, width = q.shape
    grouped = q.reshape(batch, queries, key_heads, heads // key_heads, width).transpose(0, 2, 3, 1, 4)
    found = lookups[0](grouped)
    for lookup in lookups[1:]:
        found = merge(found, lookup(grouped))
    _, total, mixed = found
    out = mixed / jnp.maximum(total, 1e-30)[..., None]
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)


def store(
    keys: Keys,
    values: Values,
    new_keys: Float[Array, "batch new key_heads head_width"],
    new_values: Float[Array, "batch new key_heads head_width"],
    places: Int[Array, "batch new"],
) -> tuple[Keys, Values]:
    """What is kept, with the new at their places; what has a place beyond the last one is not kept."""
    rows = jnp.arange(keys.shape[0])[:, None]
    keys = keys.at[rows, :, :, places].set(new_keys.astype(keys.dtype), mode="drop")
    return keys, values.at[rows, :, places].set(new_values.astype(values.dtype), mode="drop")


def as_stored(keys: Array, values: Array) -> tuple[Keys, Values]:
    """Keys and values [batch, new, key_heads, head_width] as they would lie if they were kept."""
    return keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)


def positions_kept(position: Int[Array, "batch"], places: Int[Array, "places"], size: int) -> Int[Array, "..."]:
    """Which position lies at each place [batch, places] of a ring when `position` is the next one; negative: none."""
    newest = (position - 1)[:, None]
    return newest - (newest - places) % size


def after(done: Array, x: Int[Array, "..."]) -> Int[Array, "..."]:
    """x, but only once `done` is known: what x then makes room for can be overwritten in place.

    XLA keeps a copy of an array that is overwritten by something which does not depend on all that reads it.
    """
    return x + jnp.isnan(done.ravel()[0].astype(jnp.float32)).astype(x.dtype)


def last_new(x: Float[Array, "batch new width"], count: Int[Array, "batch"]) -> Float[Array, "batch 1 width"]:
    """The row of the last of `count` new positions; of the first where there is none."""
    return x[jnp.arange(len(x)), jnp.maximum(count - 1, 0)][:, None]


def first_of_documents(
    ends: Bool[Array, "batch new"], position: Int[Array, "batch"], first: Int[Array, "batch"]
) -> tuple[Int[Array, "batch new"], Int[Array, "batch"]]:
    """Where the document of each new position begins, and where that of the position after them all does.

    Args:
      ends: whether a document ends with that position.
      position: the first of the new positions.
      first: where its document begins.
    """
    after = jnp.where(ends, position[:, None] + 1 + jnp.arange(ends.shape[1]), 0)
    running = jax.lax.cummax(jnp.concatenate([first[:, None], after], axis=1), axis=1)
    return running[:, :-1], running[:, -1]


def read_layers(
    config: TransformerConfig,
    compute: ComputeConfig,
    layers: Sequence[Any],
    cache: Cache,
    x: Float[Array, "batch new width"],
    position: Int[Array, "batch"],
    count: Int[Array, "batch"],
    first: Int[Array, "batch new"],
    before: Callable[[int, Array], Array] | None = None,
) -> tuple[list[Float[Array, "batch new width"]], Cache]:
    """The layers of a tower for new positions of rows, of which each has as many as it has.

    Args:
      layers: the params of each layer.
      cache: what the tower has read of these rows.
      x: what enters the tower; what comes after the `count` first positions of a row is not read.
      position: of the first new one in its row.
      count: new positions of each row, 0 .. new; what comes out beyond them means nothing.
      first: the earliest position that each may see: where its document begins.
      before: what each layer's input becomes before that layer.

    Returns:
      What comes out of each layer, and the cache with the new positions.
    """
    new, size = x.shape[1], cache.values[0].shape[2] if cache.values else 1
    index = jnp.arange(new)
    places = position[:, None] + index
    window = config.window or jnp.iinfo(jnp.int32).max
    angles = rotation_at(places, config.head_width, config.rope_theta)

    def sees(other: Array) -> Array:
        """Who sees positions [batch, some], all of which come before or are among the new ones."""
        distance = places[:, :, None] - other[:, None, :]
        return (distance >= 0) & (distance < window) & (other[:, None, :] >= first[:, :, None])

    def among_old(at: Array) -> Array:
        return sees(positions_kept(position, at, size))

    def among_kept(at: Array) -> Array:
        return sees(positions_kept(position + count, at, size))

    # The last of several new positions may take the place of one that the first still sees. Then what was kept is read
    # before it is overwritten, for which XLA copies it: a step must do without.
    pushes_out = config.window is not None and new > max(size - config.window, 0) + 1
    # Of more new positions than there are places the last ones stay.
    stays = (index < count[:, None]) & (index >= count[:, None] - size)
    where = jnp.where(stays, places % size, size)
    outs, keys, values = [x], [], []
    for number, params in enumerate(layers):
        old_keys, old_values = cache.keys[number], cache.values[number]

        def mix(q: Array, k: Array, v: Array, old_keys: Array = old_keys, old_values: Array = old_values) -> Array:
            kept_keys, kept_values = store(old_keys, old_values, k, v, where)
            keys.append(kept_keys)
            values.append(kept_values)
            if not pushes_out:
                read = jnp.max(position + count)
                return attend(
                    q, config.key_heads, lambda q: look_in_blocks(q, kept_keys, kept_values, among_kept, read)
                )
            return attend(
                q,
                config.key_heads,
                lambda q: look_in_blocks(q, old_keys, old_values, among_old, jnp.max(position)),
                lambda q: look(q, *as_stored(k, v), sees(places)),
            )

        x = x if before is None else before(number, x)
        layer: Any = TransformerLayer(config, compute).apply({"params": params}, x, angles, None, mix)
        x = layer
        outs.append(x)
    return outs, Cache(keys=tuple(keys), values=tuple(values))
