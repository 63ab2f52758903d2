"""The step form of the Byte Latent Transformer: one byte, or a part of a prompt, after what was read before.

In go new byte ids of every row and the state; out come the decoder's rows for them, whose logits `logits` gives,
where patches start, the entropies that decided it, and the next state. `decode` calls this, a byte at a time while it
generates and in parts of fixed size for a prompt.

What happens at a new byte t (BLT paper section 3, and which byte reads which patch as in `Patches.decoder_ids`):

1. The entropy model reads it, and the patching rule says whether a patch starts at t + 1.
2. The local encoder reads it; its row goes into the running pool of the open patch, its keys and values for the
   cross-attention into that patch's store, since what a patch asks is only known when it ends.
3. If one starts at t + 1, the open patch ends with t: it is pooled, asks its bytes, and the global model reads it.
   Its latent's keys and values for every decoder layer take the place of those of the patch before.
4. The local decoder reads the byte and the newest latent.

Rows end patches at different bytes. Step 3 is a loop over the patches that end in any row, `GROUP` at a time, with the
rows that have none masked; while generating it runs once or not at all. The room for keys and values is linear in
patches for the global model and constant for the rest, except that of the open patch: without a longest patch it has
room for the whole row, as a patch may be as long as that.
"""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bltjax import vocabulary
from bltjax.blt import embed_bytes
from bltjax.config import BLTConfig, TransformerConfig
from bltjax.cross_attention import attend_to_patches, pool, pool_on, spread_heads
from bltjax.generate import flat
from bltjax.generate.cache import (
    Cache,
    after,
    attend,
    first_of_documents,
    look,
    look_in_blocks,
    read_layers,
    run_part,
    store,
)
from bltjax.generate.state import BEFORE, Latent, LatentState
from bltjax.global_model import latent_inputs
from bltjax.local import byte_logits, cross_attention_of, first_queries, latent_rows
from bltjax.patching import next_byte_entropy
from bltjax.patching.rules import LOOK_BACK, next_starts

GROUP = 32  # patches that the global model reads at once, of those that end in a part of a prompt


@chex.dataclass
class Reading:
    """What was found at new bytes.

    Attributes:
      starts: whether a patch starts after each.
      entropies: of the distribution of the byte after each, nats; None where the rule needs none.
    """

    x: Float[Array, "batch new width"]  # for `logits`
    starts: Bool[Array, "batch new"]
    entropies: Float[Array, "batch new"] | None


def read(
    model: Latent,
    params: Any,
    state: LatentState,
    ids: Int[Array, "batch new"],
    position: Int[Array, "batch"],
    count: Int[Array, "batch"],
    threshold: Float[Array, ""],
) -> tuple[Reading, LatentState]:
    """Reads `count` new bytes of each row.

    Args:
      params: from `prepare`.
      ids: what comes after the first `count` of a row is not read.
      position: of the first new byte in its row.
      threshold: nats, for the entropy rule.
    """
    config, p = model.config, params["blt"]
    index = jnp.arange(ids.shape[1])
    real = index < count[:, None]
    window = jnp.concatenate([state.ids, ids], axis=1)
    starts, changes, entropies = _patch(model, params, state, window, position, count, threshold)
    starts &= real
    is_eos = (ids == vocabulary.EOS) & real

    ends = is_eos & config.document_mask
    first, document = first_of_documents(ends, position, state.document)
    embed = functools.partial(embed_bytes, config, skip=model.tail)
    x = run_part(embed, p, jnp.maximum(window, vocabulary.BOE), model.tail - position)
    outs, encoder = read_layers(
        config.encoder, config.compute, p["encoder"]["layers"], state.encoder, x, position, count, first
    )  # fmt: skip

    bytes_ = _by_patch(model, p, state, outs, starts, real, is_eos)
    newest_keys, newest_values, latents, patch_document = _latents(model, p, state, bytes_)
    places = after(newest_keys[0], bytes_.places)  # the patch that was open has read its bytes by then
    open_keys, open_values = (
        tuple(store(old, new, places) for old, new in zip(*pair, strict=True))
        for pair in ((state.open_keys, bytes_.keys), (state.open_values, bytes_.values))
    )

    read_ids = jnp.cumsum(starts, axis=1, dtype=jnp.int32)

    def ask(layer: int, h: Array) -> Array:
        if layer >= model.askers:
            return h
        keys, values = (spread_heads(kept[layer], config.cross_heads) for kept in (newest_keys, newest_values))

        def find(q: Array) -> Array:
            found: Any = attend_to_patches(q, keys, values, read_ids)
            return found

        return _cross(config, config.decoder, p["decoder"]["cross_attention"][layer], "ask", h, find)

    decoded, decoder = read_layers(
        config.decoder, config.compute, p["decoder"]["layers"], state.decoder, outs[-1], position, count, first, ask
    )
    ended = bytes_.ended
    row = jnp.arange(ids.shape[0])
    tail = count[:, None] + jnp.arange(model.tail)
    state = LatentState(
        ids=jnp.take_along_axis(window, tail, axis=1),
        **changes,
        document=document,
        encoder=encoder,
        open_bytes=bytes_.open_bytes,
        open_pool=bytes_.pooled[row, ended],
        open_keys=open_keys,
        open_values=open_values,
        open_ends=bytes_.has_eos[row, ended],
        patches=state.patches + ended,
        patch_document=patch_document,
        latents=latents,
        newest_keys=tuple(kept[row, ended] for kept in newest_keys),
        newest_values=tuple(kept[row, ended] for kept in newest_values),
        decoder=decoder,
    )
    return Reading(x=decoded[-1], starts=starts, entropies=entropies), state


def logits(model: Latent, params: Any, x: Float[Array, "batch new width"]) -> Float[Array, "batch new vocabulary"]:
    """Scores of the byte that comes next, float32."""
    return run_part(functools.partial(byte_logits, model.config), params["blt"]["decoder"], x)


def _cross(config: BLTConfig, local: TransformerConfig, params: Any, method: str, *arguments: Any) -> Any:
    return cross_attention_of(config, local).apply({"params": params}, *arguments, method=method)


def _patch(
    model: Latent,
    params: Any,
    state: LatentState,
    window: Array,
    position: Array,
    count: Array,
    threshold: Array,
) -> tuple[Array, dict[str, Any], Array | None]:
    """Whether a patch starts after each new byte, what that changes of the state, and the entropies."""
    ids = window[:, model.tail :]
    entropies = known = entropy = None
    if model.entropy is not None:
        assert state.entropy is not None and state.entropies is not None
        x, entropy = flat.read(model.entropy, params["entropy"], state.entropy, ids, position, count)
        entropies = next_byte_entropy(flat.logits(model.entropy, params["entropy"], x))
        known = jnp.concatenate([state.entropies, entropies], axis=1)
    seen = window[:, model.tail - LOOK_BACK :]
    seen = jnp.where(seen == BEFORE, vocabulary.EOS, seen)  # a document begins with the row, as after an EOS
    starts, distance = next_starts(model.patcher, seen, known, state.since, threshold)
    newest = count[:, None]
    distances = jnp.concatenate([state.since[:, None], distance], axis=1)
    changes: dict[str, Any] = {
        "since": jnp.take_along_axis(distances, newest, axis=1)[:, 0],
        "entropy": entropy,
        "entropies": known if known is None else jnp.take_along_axis(known, newest + jnp.arange(LOOK_BACK), axis=1),
    }
    return starts, changes, entropies


@dataclasses.dataclass(frozen=True)
class _Bytes:
    """New bytes as the patches see them; patch 0 is the one that was open, and byte t lies in patch lies_in[t]."""

    lies_in: Array  # [batch, new]; that of a byte that is not there is beyond all others
    ended: Array  # [batch], patches that end with new bytes
    pooled: Array  # [batch, new + 1, width], by patch
    has_eos: Array  # [batch, new + 1], by patch
    keys: list[Array]  # [batch, new, key_heads, head_width], by cross-attention of the encoder
    values: list[Array]
    open_bytes: Array  # [batch], of the patch that is open after them
    places: Array  # [batch, new], where the keys and values of that patch's bytes are stored


def _by_patch(
    model: Latent, p: Any, state: LatentState, outs: list[Array], starts: Array, real: Array, is_eos: Array
) -> _Bytes:
    config, new = model.config, starts.shape[1]
    batch, row = starts.shape[0], jnp.arange(starts.shape[0])
    ended = jnp.sum(starts, axis=1, dtype=jnp.int32)
    lies_in = jnp.where(real, jnp.cumsum(starts, axis=1, dtype=jnp.int32) - starts, new + 1)
    h = outs[1 + model.pooled_layer]
    how = config.cross_attention.pooling
    pooled = pool(h, lies_in, new + 2, how)[:, : new + 1]
    in_first = jnp.sum(lies_in == 0, axis=1)
    pooled = pooled.at[:, 0].set(pool_on(pooled[:, 0], in_first, state.open_pool, state.open_bytes, how))
    has_eos = jnp.zeros((batch, new + 2), bool).at[row[:, None], lies_in].max(is_eos)[:, : new + 1]
    has_eos = has_eos.at[:, 0].max(state.open_ends)

    cross = p["encoder"]["cross_attention"]
    kept = [_cross(config, config.encoder, cross[number], "read", outs[1 + layer]) for number, layer in model.readers]
    keys, values = [pair[0] for pair in kept], [pair[1] for pair in kept]
    # Bytes of the patch that stays open go behind those that it has, or to the beginning if it is a new one.
    base = jnp.where(ended > 0, 0, state.open_bytes)
    is_open = lies_in == ended[:, None]
    places = base[:, None] + jnp.cumsum(is_open, axis=1) - 1
    return _Bytes(
        lies_in=lies_in,
        ended=ended,
        pooled=pooled,
        has_eos=has_eos,
        keys=keys,
        values=values,
        open_bytes=base + jnp.sum(is_open, axis=1, dtype=jnp.int32),
        places=jnp.where(is_open, places, model.open_places),
    )


def _latents(
    model: Latent, p: Any, state: LatentState, bytes_: _Bytes
) -> tuple[tuple[Array, ...], tuple[Array, ...], Cache, Array]:
    """Runs the global model over the patches that end.

    Returns:
      Keys and values for each decoder layer: of the newest latent before, then of those of the patches that end
      [batch, 1 + new, k, key_heads, head_width]; the global model's cache; and where the next patch's document begins.
    """
    config, new = model.config, bytes_.lies_in.shape[1]
    group = min(GROUP, new)
    slots = -(-new // group) * group  # room for whole groups

    def widened(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, slots + 1 - x.shape[1]), *(((0, 0),) * (x.ndim - 2))))

    patch = jnp.arange(slots)
    ends_document = widened(bytes_.has_eos)[:, :slots] & (patch < bytes_.ended[:, None]) & config.document_mask
    first, patch_document = first_of_documents(ends_document, state.patches, state.patch_document)
    pooled = widened(bytes_.pooled)
    cross = p["encoder"]["cross_attention"]
    stored_bytes = state.open_bytes

    def one_group(number: Array, carry: Any) -> Any:
        newest_keys, newest_values, cache = carry
        begin = number * group

        def part(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, begin, group, 1)

        rows = first_queries(config, part(pooled), p["encoder"]["patch_projection"]["kernel"])
        # Each patch has k queries; those of the patch that was open see its earlier bytes too.
        whose = jnp.repeat(begin + jnp.arange(group), config.cross_attention.k)[None, :, None]
        among_new = whose == bytes_.lies_in[:, None, :]

        def among_stored(places: Array) -> Array:
            return (whose == 0) & (places[None, None, :] < stored_bytes[:, None, None])

        for each, (which, _) in enumerate(model.readers):

            def find(q: Array, each: int = each) -> Array:
                found = attend(
                    q.reshape(q.shape[0], -1, *q.shape[3:]),
                    config.cross_key_heads,
                    lambda q: look_in_blocks(
                        q, state.open_keys[each], state.open_values[each], among_stored, jnp.max(stored_bytes)
                    ),
                    lambda q: look(
                        q, jnp.swapaxes(bytes_.keys[each], 1, 2), jnp.swapaxes(bytes_.values[each], 1, 2), among_new
                    ),
                )
                return found.reshape(q.shape)

            rows = _cross(config, config.encoder, cross[which], "ask", rows, find)
        rows = rows.reshape(*rows.shape[:2], config.patch_width)
        x = run_part(functools.partial(latent_inputs, config), p["global_model"], rows)
        count = jnp.clip(bytes_.ended - begin, 0, group)
        layers = p["global_model"].get("layers", ())
        outs, cache = read_layers(
            config.global_model, config.compute, layers, cache, x, state.patches + begin, count, part(first)
        )
        rows = run_part(functools.partial(latent_rows, config), p["decoder"], outs[-1])

        def put(kept: Array, found: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(kept, found.astype(kept.dtype), 1 + begin, 1)

        for layer in range(model.askers):
            keys, values = _cross(config, config.decoder, p["decoder"]["cross_attention"][layer], "read", rows)
            newest_keys = (*newest_keys[:layer], put(newest_keys[layer], keys), *newest_keys[layer + 1 :])
            newest_values = (*newest_values[:layer], put(newest_values[layer], values), *newest_values[layer + 1 :])
        return newest_keys, newest_values, cache

    newest_keys, newest_values = (
        tuple(widened(x[:, None]) for x in kept) for kept in (state.newest_keys, state.newest_values)
    )
    groups = (jnp.max(bytes_.ended) + group - 1) // group
    newest_keys, newest_values, latents = jax.lax.fori_loop(
        0, groups, one_group, (newest_keys, newest_values, state.latents)
    )
    return newest_keys, newest_values, latents, patch_document
