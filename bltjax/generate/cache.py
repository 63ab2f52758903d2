"""Keys and values of what a tower has read, and attention to them: the step form of `bltjax.attention`.

In go some new positions of every row, as many as the row has of them, and the cache of those before; out come the
tower's rows for the new ones, and the cache with them in it. One new position is a step of generation, many are a
part of a prompt. `flat` and `latent` call this for every tower. Layers are those of `bltjax.transformer`: only what
they attend to is given here.

A cache is a ring: position t of a row lies at place t modulo the number of places. A window of w positions needs
w places, whatever the length of the row; without a window there are places for the whole row. They lie in pieces, of
which only those in use are read: room for a long row costs a short one little but memory. (A part of one array would be
copied before it is read.)

The pieces of a window are each as long as all before it, up to `LONGEST`. Those of whole rows are of `LONGEST`
places, since XLA on a CPU has one core multiply what is shorter, and two what is not. So that a row does not read one
for a few places, the first half of the piece that is being filled lies in short pieces besides (`Kept.newest`), which
are read in its place as long as they hold all that it has. Past the first short piece such a row reads at most twice
what it has, and at most half of `LONGEST` beyond it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int

from bltjax.attention import HIDDEN
from bltjax.config import ComputeConfig, TransformerConfig
from bltjax.layers import rotation_at
from bltjax.sharding import constrain
from bltjax.transformer import TransformerLayer

BLOCK = 256  # places that many queries read at once; even, since the first short piece has half as many
LONGEST = 1024  # places of a piece

NOWHERE = np.iinfo(np.int32).max  # the place of what is not to be stored

# How pieces lie in memory. Left to itself, XLA for a TPU puts the heads of a batch of one row innermost, where eight of
# them are padded to 128: sixteen times the memory, and the traffic, of all that is kept.
AS_WRITTEN = Layout((0, 1, 2, 3))

Rows = Float[Array, "batch key_heads _ head_width"]
Piece = tuple[Rows, Rows]  # keys and values of some places
Found = tuple[Array, Array, Array]  # largest score, sum of weights, weighed values: what a softmax is put together from
Lookup = Callable[[Array], Found]  # from queries [batch, key_heads, group, queries, head_width]


@chex.dataclass
class Kept:
    """Keys and values of one layer.

    Attributes:
      pieces: of all places, one piece after another.
      newest: of the first places of the piece that is being filled, once more; () where pieces are short.
    """

    pieces: tuple[Piece, ...]
    newest: tuple[Piece, ...] = ()


@chex.dataclass
class Cache:
    """Keys and values of one tower."""

    layers: tuple[Kept, ...]


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


def empty_kept(batch: int, key_heads: int, head_width: int, places: int, dtype: Any, overwritten: bool = False) -> Kept:
    """Room for keys and values of so many positions, or some more.

    Args:
      overwritten: positions may go to places that others have. Otherwise, and but for up to half of `LONGEST` that are
        taken back, they go to places behind those of the row, or begin anew with the first.
    """
    places = max(places, 1) if places <= BLOCK else -(-places // BLOCK) * BLOCK

    def zeros(sizes: Sequence[int]) -> tuple[Piece, ...]:
        def one(size: int) -> Rows:
            rows = jnp.zeros((batch, key_heads, size, head_width), dtype)
            return jnp.asarray(constrain(rows, ("batch", "heads", None, None)))

        return tuple((one(size), one(size)) for size in sizes)

    if overwritten or places <= LONGEST // 2:
        return Kept(pieces=zeros(_doubling(places)))
    whole, rest = divmod(places, LONGEST)
    return Kept(pieces=zeros([LONGEST] * whole + [rest] * (rest > 0)), newest=zeros(_doubling(LONGEST // 2)))


def _doubling(places: int) -> list[int]:
    """Sizes of pieces, each as long as all before it up to `LONGEST`."""
    sizes = [min(places, BLOCK // 2)]
    while sum(sizes) < places:
        sizes.append(min(sum(sizes), LONGEST, places - sum(sizes)))
    return sizes


def places_of(kept: Kept) -> int:
    """How many positions there is room for."""
    return sum(values.shape[2] for _, values in kept.pieces)


def empty_cache(config: TransformerConfig, compute: ComputeConfig, batch: int, positions: int, ahead: int = 0) -> Cache:
    """A cache for rows of up to `positions` positions, none of which has been read.

    Args:
      ahead: how many of the positions that were read may be taken back: the next ones go to their places, and what the
        window still reaches has not been overwritten.
    """
    places = min(config.window + ahead, positions) if config.window is not None else positions
    # What is taken back may have begun the next piece, and so `newest` anew: then that is not to be read.
    overwritten = config.window is not None or ahead > LONGEST // 2
    one = batch, config.key_heads, config.head_width, places, compute.dtype, overwritten
    return Cache(layers=tuple(empty_kept(*one) for _ in range(config.layers)))


def look(q: Array, keys: Rows, values: Rows, visible: Bool[Array, "batch queries places"]) -> Found:
    """What queries find among keys, all at once."""
    scale = q.shape[-1] ** -0.5
    scores = _product("bhgqd,bhpd->bhgqp", q, keys) * scale
    visible = visible[:, None, None]
    scores = jnp.where(visible, scores, HIDDEN)
    peak = jnp.max(scores, axis=-1, initial=HIDDEN / 2)  # so that what is hidden weighs nothing, even if all is
    weights = jnp.exp(scores - peak[..., None])
    found = _product("bhgqp,bhpd->bhgqd", weights.astype(values.dtype), values)
    return peak, jnp.sum(weights, axis=-1), found


def _product(axes: str, x: Array, rows: Rows) -> Array:
    """An einsum in float32."""
    if x.shape[2] * x.shape[3] > 1:
        return jnp.einsum(axes, x, rows, preferred_element_type=jnp.float32)
    # With axes of length one written out, XLA on a CPU makes a product of matrices of it and copies the rows for that.
    found = jnp.einsum(axes.replace("gq", ""), x[:, :, 0, 0], rows, preferred_element_type=jnp.float32)
    return found[:, :, None, None]


def look_kept(
    q: Array, kept: Kept, visible: Callable[[Array], Bool[Array, "batch queries places"]], filled: Int[Array, ""]
) -> Found:
    """What queries find among keys that are kept, of which the first `filled` places are in use.

    Args:
      visible: from places, an array of some of them, to who sees them.
    """
    one_query = q.shape[3] == 1
    peak = jnp.full(q.shape[:-1], HIDDEN, jnp.float32)
    found = peak, jnp.zeros_like(peak), jnp.zeros(q.shape, jnp.float32)
    # In place of the last piece, as long as they hold all that it has. Many queries read that in blocks anyway.
    short = kept.newest if one_query else ()
    last = (filled - 1) // LONGEST * LONGEST
    few = filled - last <= LONGEST // 2

    def read(piece: Piece, begin: Int[Array, ""], alone: bool, before: Found) -> Found:
        keys, values = piece
        if one_query or values.shape[2] <= BLOCK:
            seen = look(q, keys, values, visible(begin + jnp.arange(values.shape[2])))
            return seen if alone else merge(before, seen)

        def block(j: Array, before: Found) -> Found:
            some_keys = jax.lax.dynamic_slice_in_dim(keys, j * BLOCK, BLOCK, 2)
            some_values = jax.lax.dynamic_slice_in_dim(values, j * BLOCK, BLOCK, 2)
            places = begin + j * BLOCK + jnp.arange(BLOCK)
            return merge(before, look(q, some_keys, some_values, visible(places)))

        used = jnp.minimum(filled - begin, values.shape[2])
        return jax.lax.fori_loop(0, (used + BLOCK - 1) // BLOCK, block, before)

    def read_if(wanted: Array, piece: Piece, begin: Array, alone: bool, before: Found) -> Found:
        # A branch even where the first piece is always read: without one XLA writes new keys twice, once for those that
        # are kept and once as the product reads them, and copies all that is kept for it.
        found: Any = jax.lax.cond(wanted, functools.partial(read, piece, begin, alone), lambda before: before, before)
        return found

    begin = 0
    for piece in kept.pieces:
        wanted = (filled > begin) & ~(few & (last == begin)) if short else filled > begin
        found = read_if(wanted, piece, jnp.int32(begin), begin == 0, found)
        begin += piece[1].shape[2]
    begin = 0
    for piece in short:
        found = read_if(few & (filled - last > begin), piece, last + begin, False, found)
        begin += piece[1].shape[2]
    return found


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
    kept: Kept,
    new_keys: Float[Array, "batch new key_heads head_width"],
    new_values: Float[Array, "batch new key_heads head_width"],
    places: Int[Array, "batch new"],
) -> Kept:
    """What is kept, with the new at their places; what has none (`NOWHERE`) is not kept."""
    rows, new = jnp.arange(len(places))[:, None], (new_keys, new_values)

    def put(pieces: tuple[Piece, ...], places: Array) -> tuple[Piece, ...]:
        found, begin = [], 0
        for piece in pieces:
            size = piece[1].shape[2]
            at = jnp.where(places >= begin, places - begin, size)
            stored = [
                old.at[rows, :, at].set(x.astype(old.dtype), mode="drop") for old, x in zip(piece, new, strict=True)
            ]
            found.append(tuple(with_layout_constraint(x, AS_WRITTEN) for x in stored))
            begin += size
        return tuple(found)

    pieces = put(kept.pieces, places)
    if not kept.newest:
        return Kept(pieces=pieces)
    # Of new positions on both sides of the end of a piece, those behind it.
    piece = jnp.where(places == NOWHERE, -1, places // LONGEST)
    is_last = (piece == jnp.max(piece, axis=1, keepdims=True)) & (piece >= 0)
    return Kept(pieces=pieces, newest=put(kept.newest, jnp.where(is_last, places % LONGEST, NOWHERE)))


def as_stored(keys: Array, values: Array) -> tuple[Rows, Rows]:
    """Keys and values [batch, new, key_heads, head_width] as they would lie if they were kept."""
    return keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3)


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
    new, size = x.shape[1], places_of(cache.layers[0]) if cache.layers else 1
    index = jnp.arange(new)
    places = position[:, None] + index
    window = config.window or jnp.iinfo(jnp.int32).max
    # Once: XLA would have every layer work out all cosines again, for queries and for keys.
    angles = jax.lax.optimization_barrier(rotation_at(places, config.head_width, config.rope_theta))

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
    where = jnp.where(stays, places % size, NOWHERE)
    outs, kept_layers = [x], []
    for number, params in enumerate(layers):
        old = cache.layers[number]

        def mix(q: Array, k: Array, v: Array, old: Kept = old) -> Array:
            kept = store(old, k, v, where)
            kept_layers.append(kept)
            if not pushes_out:
                read = jnp.max(position + count)
                return attend(q, config.key_heads, lambda q: look_kept(q, kept, among_kept, read))
            return attend(
                q,
                config.key_heads,
                lambda q: look_kept(q, old, among_old, jnp.max(position)),
                lambda q: look(q, *as_stored(k, v), sees(places)),
            )

        x = x if before is None else before(number, x)
        layer: Any = TransformerLayer(config, compute).apply({"params": params}, x, angles, None, mix)
        x = layer
        outs.append(x)
    return outs, Cache(layers=tuple(kept_layers))
