"""New bytes as patches see them, and the global model over the patches that end with them.

In go the encoder's rows of new bytes and where patches start among them; out come the running pool of the patch that
stays open, and for those that end the keys and values that the decoder reads of their latents. `latent` calls this.

Rows end patches at different bytes. The global model runs over the patches that end in any row, `GROUP` at a time, with
the rows that have none masked; for a single new byte it runs once or not at all.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bltjax import vocabulary
from bltjax.config import BLTConfig, TransformerConfig
from bltjax.cross_attention import pool, pool_on
from bltjax.generate.cache import (
    NOWHERE,
    Cache,
    as_stored,
    attend,
    first_of_documents,
    look,
    look_kept,
    read_layers,
    run_part,
)
from bltjax.generate.state import Latent, LatentState
from bltjax.global_model import latent_inputs
from bltjax.local import cross_attention_of, first_queries, latent_rows, learned_queries

GROUP = 32  # patches that the global model reads at once, of those that end in a part of a prompt

Heads = tuple[Array, ...]  # of latents, by decoder layer: [batch, latents, k, key_heads, head_width]


def cross(config: BLTConfig, local: TransformerConfig, params: Any, method: str, *arguments: Any) -> Any:
    """A method of the cross-attention of one of the local models."""
    return cross_attention_of(config, local).apply({"params": params}, *arguments, method=method)


def ends_document(model: Latent, window: Array, count: Array) -> Array:
    """Which of the new bytes end a document."""
    ids = window[:, model.tail :]
    return (ids == vocabulary.EOS) & (jnp.arange(ids.shape[1]) < count[:, None])


@dataclasses.dataclass(frozen=True)
class Pieces:
    """New bytes as the patches see them; patch 0 is the one that was open, and byte t lies in patch lies_in[t]."""

    lies_in: Array  # [batch, new]; that of a byte that is not there is beyond all others
    ended: Array  # [batch], patches that end with new bytes
    pooled: Array  # [batch, new + 1, width], by patch
    has_eos: Array  # [batch, new + 1], by patch
    open_bytes: Array  # [batch], of the patch that is open after them
    places: Array  # [batch, new], where the keys and values of that patch's bytes are stored


def by_patch(model: Latent, state: LatentState, h: Array, window: Array, starts: Array, count: Array) -> Pieces:
    """The first `count` new bytes, with the encoder rows h that a patch begins with."""
    new, row = starts.shape[1], jnp.arange(len(count))
    real = jnp.arange(new) < count[:, None]
    starts = starts & real
    ended = jnp.sum(starts, axis=1, dtype=jnp.int32)
    lies_in = jnp.where(real, jnp.cumsum(starts, axis=1, dtype=jnp.int32) - starts, new + 1)
    how = model.config.cross_attention.pooling
    how = "max" if how == "none" else how  # nobody asks for it then
    pooled = pool(h, lies_in, new + 2, how)[:, : new + 1]
    in_first = jnp.sum(lies_in == 0, axis=1)
    pooled = pooled.at[:, 0].set(pool_on(pooled[:, 0], in_first, state.open_pool, state.open_bytes, how))
    has_eos = jnp.zeros((len(count), new + 2), bool)
    has_eos = has_eos.at[row[:, None], lies_in].max(ends_document(model, window, count))[:, : new + 1]
    has_eos = has_eos.at[:, 0].max(state.open_ends)
    # Bytes of the patch that stays open go behind those that it has, or to the beginning if it is a new one.
    base = jnp.where(ended > 0, 0, state.open_bytes)
    is_open = lies_in == ended[:, None]
    places = base[:, None] + jnp.cumsum(is_open, axis=1) - 1
    return Pieces(
        lies_in=lies_in,
        ended=ended,
        pooled=pooled,
        has_eos=has_eos,
        open_bytes=base + jnp.sum(is_open, axis=1, dtype=jnp.int32),
        places=jnp.where(is_open, places, NOWHERE),
    )


def patch_documents(model: Latent, state: LatentState, pieces: Pieces) -> tuple[Array, Array]:
    """The patch with which the document of each new patch begins, and that of the patch after those that end."""
    ends = pieces.has_eos & (jnp.arange(pieces.has_eos.shape[1]) < pieces.ended[:, None]) & model.config.document_mask
    return first_of_documents(ends, state.patches, state.patch_document)


def run_patches(
    model: Latent, p: Any, state: LatentState, pieces: Pieces, new_keys: Heads, new_values: Heads
) -> tuple[Heads, Heads, Cache]:
    """Runs the global model over the patches that end.

    Returns:
      Keys and values for each decoder layer, of the newest latent before, then of those of the patches that end; and
      the global model's cache.
    """
    config, new = model.config, pieces.lies_in.shape[1]
    group = min(GROUP, new)
    slots = -(-new // group) * group  # room for whole groups

    def widened(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, slots + 1 - x.shape[1]), *(((0, 0),) * (x.ndim - 2))))

    first, pooled = (widened(x) for x in (patch_documents(model, state, pieces)[0], pieces.pooled))
    readers = p["encoder"].get("cross_attention", ())
    stored_bytes = state.open_bytes

    def one_group(number: Array, carry: Any) -> Any:
        newest_keys, newest_values, cache = carry
        begin = number * group

        def part(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, begin, group, 1)

        if config.cross_attention.pooling == "none":
            rows = run_part(functools.partial(learned_queries, config), p["encoder"], pooled.shape[0], group)
        else:
            rows = first_queries(config, part(pooled), p["encoder"]["patch_projection"]["kernel"])
        # Each patch has k queries; those of the patch that was open see its earlier bytes too.
        whose = jnp.repeat(begin + jnp.arange(group), config.cross_attention.k)[None, :, None]
        among_new = whose == pieces.lies_in[:, None, :]

        def among_stored(places: Array) -> Array:
            return (whose == 0) & (places[None, None, :] < stored_bytes[:, None, None])

        for each, (which, _) in enumerate(model.readers):

            def find(q: Array, each: int = each) -> Array:
                found = attend(
                    q.reshape(q.shape[0], -1, *q.shape[3:]),
                    config.cross_key_heads,
                    lambda q: look_kept(q, state.open_kept[each], among_stored, jnp.max(stored_bytes)),
                    lambda q: look(q, *as_stored(new_keys[each], new_values[each]), among_new),
                )
                return found.reshape(q.shape)

            rows = cross(config, config.encoder, readers[which], "ask", rows, find)
        rows = rows.reshape(*rows.shape[:2], config.patch_width)
        x = run_part(functools.partial(latent_inputs, config), p["global_model"], rows)
        count = jnp.clip(pieces.ended - begin, 0, group)
        layers = p["global_model"].get("layers", ())
        outs, cache = read_layers(
            config.global_model, config.compute, layers, cache, x, state.patches + begin, count, part(first)
        )
        rows = run_part(functools.partial(latent_rows, config), p["decoder"], outs[-1])

        def put(kept: Array, found: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(kept, found.astype(kept.dtype), 1 + begin, 1)

        if not model.askers:
            newest_keys = (put(newest_keys[0], rows[..., None, :]),)
        for layer in range(model.askers):
            keys, values = cross(config, config.decoder, p["decoder"]["cross_attention"][layer], "read", rows)
            newest_keys = (*newest_keys[:layer], put(newest_keys[layer], keys), *newest_keys[layer + 1 :])
            newest_values = (*newest_values[:layer], put(newest_values[layer], values), *newest_values[layer + 1 :])
        return newest_keys, newest_values, cache

    kept = (tuple(widened(x[:, None]) for x in kept) for kept in (state.newest_keys, state.newest_values))
    groups = (jnp.max(pieces.ended) + group - 1) // group
    return jax.lax.fori_loop(0, groups, one_group, (*kept, state.latents))
