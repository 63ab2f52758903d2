"""The step form of MEGABYTE: one byte, or a part of a prompt, after what was read before.

In go new byte ids of every row and the state; out come the local model's rows for them, whose logits `logits` gives,
and the next state. `decode` calls this, by way of `kinds`.

What happens at a new byte t (numbers as in `bltjax.baselines.megabyte`, P bytes a patch):

1. If P divides t, it is the last byte that the global model reads of patch t / P: with the P - 1 before it, with the
   pads in place of those of another document or before the row. What comes out is cut into a slice for each byte that
   the patch is to predict.
2. The local model reads the slice of t, and byte t, or its pad where P divides t. It sees what it has read since then,
   and of the patch before as many bytes as attend across patches.

So the local model needs room for a patch, whatever the length of the row, and the global one for a position a patch.
The position table ends somewhere, so no row may be longer than `MegabyteConfig.longest_row`.
"""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bltjax import vocabulary
from bltjax.baselines.megabyte import bytes_before, for_bytes, local_embedding, slot_rows, tied_logits, with_pads
from bltjax.config import MegabyteConfig, TransformerConfig
from bltjax.generate import flat
from bltjax.generate.cache import Cache, empty_cache, read_layers, run_part
from bltjax.generate.state import BEFORE
from bltjax.layers import RMSNorm
from bltjax.patching.patches import byte_documents


@chex.dataclass
class MegabyteState:
    """What a MEGABYTE remembers of its rows."""

    ids: Int[Array, "batch tail"]  # the newest that the global model has yet to read, or its filters; BEFORE for none
    document: Int[Array, "batch"]  # position where the document of the next byte begins
    latents: Cache  # the global model's
    slices: Float[Array, "batch patch_bytes local_width"]  # what it says of each byte of the patch that is predicted
    local: Cache


def prepare(params: Any) -> Any:
    """Params as `read` takes them: those of each layer apart."""
    return {**params, **{name: flat.prepare(params[name]) for name in ("global_model", "local_model")}}


def empty(config: MegabyteConfig, batch: int, positions: int) -> MegabyteState:
    """The state before the first byte, for rows of up to `positions` bytes."""
    size, local, compute = config.patch_bytes, _local(config), config.compute
    patches = -(-min(positions, config.longest_row) // size)
    return MegabyteState(
        ids=jnp.full((batch, _tail(config)), BEFORE, jnp.int32),
        document=jnp.zeros(batch, jnp.int32),
        latents=empty_cache(config.global_model, compute, batch, patches),
        slices=jnp.zeros((batch, size, local.width), compute.dtype),
        local=empty_cache(local, compute, batch, positions),
    )


def starts(
    config: MegabyteConfig, ids: Int[Array, "batch new"], position: Int[Array, "batch"], count: Int[Array, "batch"]
) -> Bool[Array, "batch new"]:
    """Whether a patch ends with each of `count` new bytes, so that the global model runs; arguments as for `read`."""
    index = jnp.arange(ids.shape[1])
    return ((position[:, None] + index) % config.patch_bytes == 0) & (index < count[:, None])


def read(
    config: MegabyteConfig,
    params: Any,
    state: MegabyteState,
    ids: Int[Array, "batch new"],
    position: Int[Array, "batch"],
    count: Int[Array, "batch"],
) -> tuple[Float[Array, "batch new width"], MegabyteState]:
    """Reads `count` new bytes of each row; arguments as for `cache.read_layers`."""
    size, local = config.patch_bytes, _local(config)
    index, row = jnp.arange(ids.shape[1]), jnp.arange(len(ids))
    first, document = flat.documents(config, state.document, ids, position, count)
    window = jnp.concatenate([state.ids, ids], axis=1)
    slices, latents = _run_patches(config, params, state, window, first, position, count)

    places = position[:, None] + index
    in_patch, done = places % size, _patches_before(config, position)
    begin = places - in_patch
    own = slices[row[:, None], begin // size - done[:, None] + 1, in_patch]
    x = jnp.where((first <= begin)[..., None], own, 0)
    x = x + run_part(lambda: bytes_before(config, local_embedding(config), ids, in_patch), params)
    seen = jnp.maximum(first, begin - config.cross_patch_bytes)
    layers = params["local_model"]["layers"]
    outs, cache = read_layers(local, config.compute, layers, state.local, x, position, count, seen)
    return outs[-1], MegabyteState(
        ids=jnp.take_along_axis(window, count[:, None] + jnp.arange(_tail(config)), axis=1),
        document=document,
        latents=latents,
        slices=slices[row, _patches_before(config, position + count) - done],
        local=cache,
    )


def logits(config: MegabyteConfig, params: Any, x: Float[Array, "batch new width"]) -> Float[Array, "batch new 260"]:
    """Scores of the bytes that come next, float32."""
    x = _normed(config, config.local_model, params["local_model"], x)
    return run_part(lambda: tied_logits(local_embedding(config), x), params)


def _tail(config: MegabyteConfig) -> int:
    """Ids before a byte that the patch which ends with it consists of, and that their filters see."""
    return config.patch_bytes - 1 + _look_back(config)


def _look_back(config: MegabyteConfig) -> int:
    return sum(length - 1 for length in config.filters)


def _local(config: MegabyteConfig) -> TransformerConfig:
    """The local model with a window as wide as anything in it sees, so that its cache needs no more room."""
    return dataclasses.replace(config.local_model, window=config.patch_bytes + config.cross_patch_bytes)


def _patches_before(config: MegabyteConfig, position: Array) -> Array:
    """Patches that the global model reads with the bytes before a position: one with each that P divides."""
    return -(-position // config.patch_bytes)


def _normed(config: MegabyteConfig, tower: TransformerConfig, params: Any, x: Array) -> Array:
    norm: Any = RMSNorm(tower.width, tower.norm_epsilon, config.compute.dtype).apply({"params": params["norm"]}, x)
    return norm


def _run_patches(
    config: MegabyteConfig, params: Any, state: MegabyteState, window: Array, first: Array, position: Array,
    count: Array,
) -> tuple[Array, Cache]:  # fmt: skip
    """Runs the global model over the patches that end with new bytes, if any does in any row.

    Args:
      window: the new bytes, and those before them; first: where the document of each new one begins.

    Returns:
      Slices [batch, 1 + patches, patch_bytes, local width] of the newest patch before, then of those; and the cache.
    """
    size, back, batch, new = config.patch_bytes, _look_back(config), *first.shape
    slots, done = -(-new // size), _patches_before(config, position)
    ended = _patches_before(config, position + count) - done
    numbers = done[:, None] + jnp.arange(slots)
    last = jnp.minimum(numbers * size - position[:, None], new - 1)  # that each patch ends with, among the new bytes

    def run(_: Array, carry: tuple[Array, Cache]) -> tuple[Array, Cache]:
        slices, cache = carry
        documents = byte_documents(window) if config.document_mask else jnp.zeros_like(window)
        documents = jnp.where(window == BEFORE, -1, documents)
        # The first byte of a row has no position; what comes after the last byte is not read, and need not have one.
        places = (position - _tail(config) - 1)[:, None] + jnp.arange(window.shape[1])
        places = jnp.clip(places, -1, config.context_bytes - 1)
        embed = functools.partial(slot_rows, config, jnp.maximum(window, vocabulary.BOE), documents, places)
        x = run_part(embed, params)[:, back:]

        in_patch = jnp.arange(size)
        chosen = (last[:, :, None] + in_patch).reshape(batch, slots * size)
        x, documents, places = (
            jnp.take_along_axis(each, chosen.reshape(*chosen.shape, *(1,) * (each.ndim - 2)), axis=1)
            for each in (x, documents[:, back:], places[:, back:])
        )
        own = documents == jnp.repeat(documents[:, size - 1 :: size], size, axis=1)
        in_patches = jnp.broadcast_to(jnp.tile(in_patch, slots), chosen.shape)
        x = run_part(functools.partial(with_pads, config, x, own, places, in_patches), params)
        x = x.reshape(batch, slots, config.global_model.width)

        # A patch is of the document of its last byte, and sees those before it from the first that ends in it.
        of_patches = _patches_before(config, jnp.take_along_axis(first, last, axis=1))
        tower = params["global_model"]
        outs, cache = read_layers(
            config.global_model, config.compute, tower["layers"], cache, x, done, ended, of_patches
        )
        x = _normed(config, config.global_model, tower, outs[-1]).reshape(batch, slots * size, config.embedding_width)
        x = run_part(functools.partial(for_bytes, config, x), params).reshape(batch, slots, *slices.shape[2:])
        return slices.at[:, 1:].set(x.astype(slices.dtype)), cache

    slices = jnp.pad(state.slices[:, None], ((0, 0), (0, slots), (0, 0), (0, 0)))
    return jax.lax.fori_loop(0, jnp.any(ended > 0).astype(jnp.int32), run, (slices, state.latents))
