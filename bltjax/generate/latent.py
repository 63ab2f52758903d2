"""The step form of the Byte Latent Transformer: one byte, or a part of a prompt, after what was read before.

In go new byte ids of every row and the state; out come the decoder's rows for them, whose logits `logits` gives,
where patches start, the entropies that decided it, and the next state. `decode` calls this, a byte at a time while it
generates and in parts of fixed size for a prompt, and `speculation` with what it has guessed.

What happens at a new byte t (BLT paper section 3, and which byte reads which patch as in `Patches.decoder_ids`):

1. `decide`: the entropy model reads it, and the patching rule says whether a patch starts at t + 1.
2. `take`: the local encoder reads it; its row goes into the running pool of the open patch, its keys and values for
   the cross-attention into that patch's store, since what a patch asks is only known when it ends.
3. If a patch starts at t + 1, the open one ends with t: it is pooled, asks its bytes, and the global model reads it.
   Its latent's keys and values for every decoder layer take the place of those of the patch before.
4. The local decoder reads the byte and the newest latent.
5. `settle`: of the bytes that were taken, so many stay. All of them do, unless they were guesses.

The room for keys and values is linear in patches for the global model and constant for the rest, except that of the
open patch: without a longest patch it has room for the whole row, as a patch may be as long as that.
"""

import dataclasses
import functools
from typing import Any

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bltjax import vocabulary
from bltjax.blt import embed_bytes
from bltjax.cross_attention import attend_to_patches, spread_heads
from bltjax.generate import flat
from bltjax.generate.cache import Cache, after, first_of_documents, read_layers, run_part, store
from bltjax.generate.pieces import Heads, by_patch, cross, ends_document, patch_documents, run_patches
from bltjax.generate.spacebyte import SpaceByteState, Spaced
from bltjax.generate.state import BEFORE, Latent, LatentState
from bltjax.local import byte_logits, per_patch
from bltjax.patching import next_byte_entropy
from bltjax.patching.rules import LOOK_BACK, next_starts


@chex.dataclass
class Decision:
    """What the patching rule says of new bytes."""

    starts: Bool[Array, "batch new"]  # whether a patch starts after each
    entropies: Float[Array, "batch new"] | None  # nats, of the byte after each; None where the rule needs none
    known: Float[Array, "batch known"] | None  # those before too
    since: Int[Array, "batch since"]  # see patching.rules.next_starts; before the first new byte too
    entropy: flat.FlatState | None  # the entropy model's, after all new bytes


@chex.dataclass
class Taken:
    """New bytes that all parts of the model have read."""

    x: Float[Array, "batch new width"]  # for `logits`
    window: Int[Array, "batch window"]  # their ids, and those before them
    starts: Bool[Array, "batch new"]
    pooled: Float[Array, "batch new width"]  # encoder rows that a patch begins with
    keys: tuple[Array, ...]  # [batch, new, key_heads, head_width], by cross-attention of the encoder
    values: tuple[Array, ...]
    newest_keys: Heads  # of the newest latent before them, then of those of the patches that end with them
    newest_values: Heads
    encoder: Cache
    latents: Cache
    decoder: Cache


def read(
    model: Latent, params: Any, state: LatentState, ids: Int[Array, "batch new"], position: Int[Array, "batch"],
    count: Int[Array, "batch"], threshold: Float[Array, ""],
) -> tuple[Float[Array, "batch new width"], Decision, LatentState]:  # fmt: skip
    """Reads `count` new bytes of each row.

    Args:
      params: from `prepare`.
      ids: what comes after the first `count` of a row is not read.
      position: of the first new byte in its row.
      threshold: nats, for the entropy rule.

    Returns:
      Rows for `logits`, what was decided, and the next state.
    """
    decision = decide(model, params, state, ids, position, count, threshold)
    taken = take(model, params, state, ids, decision.starts, position, count)
    state = decided(model, state, decision, ids, position, count)
    return taken.x, decision, settle(model, state, taken, position, count)


def logits(model: Latent, params: Any, x: Float[Array, "batch new width"]) -> Float[Array, "batch new vocabulary"]:
    """Scores of the byte that comes next, float32."""
    return run_part(functools.partial(byte_logits, model.config), params["blt"]["decoder"], x)


def decide(
    model: Latent | Spaced, params: Any, state: LatentState | SpaceByteState, ids: Int[Array, "batch new"],
    position: Int[Array, "batch"], count: Int[Array, "batch"], threshold: Float[Array, ""],
) -> Decision:  # fmt: skip
    """Whether a patch starts after each new byte, of any model that is patched by a rule; arguments as for `read`."""
    entropies = known = entropy = None
    if model.entropy is not None:
        assert state.entropy is not None and state.entropies is not None
        x, entropy = flat.read(model.entropy, params["entropy"], state.entropy, ids, position, count)
        entropies = next_byte_entropy(flat.logits(model.entropy, params["entropy"], x))
        known = jnp.concatenate([state.entropies, entropies], axis=1)
    seen = jnp.concatenate([state.ids[:, model.tail - LOOK_BACK :], ids], axis=1)
    seen = jnp.where(seen == BEFORE, vocabulary.EOS, seen)  # a document begins with the row, as after an EOS
    starts, distance = next_starts(model.patcher, seen, known, state.since, threshold)
    return Decision(
        starts=starts & (jnp.arange(ids.shape[1]) < count[:, None]),
        entropies=entropies,
        known=known,
        since=jnp.concatenate([state.since[:, None], distance], axis=1),
        entropy=entropy,
    )


def decided(
    model: Latent | Spaced, state: LatentState | SpaceByteState, decision: Decision, ids: Int[Array, "batch new"],
    position: Int[Array, "batch"], count: Int[Array, "batch"],
) -> Any:  # fmt: skip
    """The state with what was decided of the first `count` new bytes."""
    newest, entropy, entropies = count[:, None], decision.entropy, decision.known
    if model.entropy is not None:
        assert state.entropy is not None and entropy is not None and entropies is not None
        document = flat.documents(model.entropy, state.entropy.document, ids, position, count)[1]
        entropy = dataclasses.replace(entropy, document=document)
        entropies = jnp.take_along_axis(entropies, newest + jnp.arange(LOOK_BACK), axis=1)
    since = jnp.take_along_axis(decision.since, newest, axis=1)[:, 0]
    return dataclasses.replace(state, entropy=entropy, entropies=entropies, since=since)


def take(
    model: Latent, params: Any, state: LatentState, ids: Int[Array, "batch new"], starts: Bool[Array, "batch new"],
    position: Int[Array, "batch"], count: Int[Array, "batch"],
) -> Taken:  # fmt: skip
    """Encoder, global model and decoder for `count` new bytes of each row.

    Args:
      starts: whether a patch starts after each.
      others: as for `read`.
    """
    config, p = model.config, params["blt"]
    real = jnp.arange(ids.shape[1]) < count[:, None]
    window = jnp.concatenate([state.ids, ids], axis=1)
    starts &= real
    outs, encoder, first = _encode(model, p, state, window, position, count)
    readers = p["encoder"].get("cross_attention", ())
    kept = [cross(config, config.encoder, readers[number], "read", outs[1 + layer]) for number, layer in model.readers]
    keys, values = tuple(pair[0] for pair in kept), tuple(pair[1] for pair in kept)
    pieces = by_patch(model, state, outs[1 + model.pooled_layer], window, starts, count)
    newest_keys, newest_values, latents = run_patches(model, p, state, pieces, keys, values)
    newest = jnp.cumsum(starts, axis=1, dtype=jnp.int32)
    x, decoder = _decode(model, p, state, outs[-1], newest_keys, newest_values, newest, position, count, first)
    return Taken(
        x=x,
        window=window,
        starts=starts,
        pooled=outs[1 + model.pooled_layer],
        keys=keys,
        values=values,
        newest_keys=newest_keys,
        newest_values=newest_values,
        encoder=encoder,
        latents=latents,
        decoder=decoder,
    )


def settle(
    model: Latent, state: LatentState, taken: Taken, position: Int[Array, "batch"], count: Int[Array, "batch"]
) -> LatentState:
    """The state after the first `count` of the bytes that were taken.

    Caches hold all that were: the next bytes go to the places of those that do not stay (`Latent.ahead`).
    """
    pieces = by_patch(model, state, taken.pooled, taken.window, taken.starts, count)
    places = after(taken.newest_keys[0], pieces.places)  # the patch that was open has read its bytes by then
    stored = tuple(store(*each, places) for each in zip(state.open_kept, taken.keys, taken.values, strict=True))
    row, ended = jnp.arange(len(count)), pieces.ended
    return dataclasses.replace(
        state,
        ids=jnp.take_along_axis(taken.window, count[:, None] + jnp.arange(model.tail), axis=1),
        document=_documents(model, state, taken.window, position, count)[1],
        encoder=taken.encoder,
        open_bytes=pieces.open_bytes,
        open_pool=pieces.pooled[row, ended],
        open_kept=stored,
        open_ends=pieces.has_eos[row, ended],
        patches=state.patches + ended,
        patch_document=patch_documents(model, state, pieces)[1],
        latents=taken.latents,
        newest_keys=tuple(kept[row, ended] for kept in taken.newest_keys),
        newest_values=tuple(kept[row, ended] for kept in taken.newest_values),
        decoder=taken.decoder,
    )


def guess(
    model: Latent, params: Any, state: LatentState, ids: Int[Array, "batch"], position: Int[Array, "batch"],
    count: Int[Array, "batch"],
) -> tuple[Float[Array, "batch vocabulary"], LatentState]:  # fmt: skip
    """Logits after one more byte of each row as they would be if no patch ended, which takes the local models alone.

    The state is one to guess on from. What it holds besides the caches of the local models is that of the state given.
    """
    p, window = params["blt"], jnp.concatenate([state.ids, ids[:, None]], axis=1)
    outs, encoder, first = _encode(model, p, state, window, position, count)
    newest = tuple(x[:, None] for x in state.newest_keys), tuple(x[:, None] for x in state.newest_values)
    none = jnp.zeros((len(ids), 1), jnp.int32)
    x, decoder = _decode(model, p, state, outs[-1], *newest, none, position, count, first)
    state = dataclasses.replace(
        state,
        ids=jnp.take_along_axis(window, count[:, None] + jnp.arange(model.tail), axis=1),
        document=_documents(model, state, window, position, count)[1],
        encoder=encoder,
        decoder=decoder,
    )
    return logits(model, params, x)[:, 0], state


def _documents(model: Latent, state: LatentState, window: Array, position: Array, count: Array) -> tuple[Array, Array]:
    ends = ends_document(model, window, count)
    return first_of_documents(ends & model.config.document_mask, position, state.document)


def _encode(
    model: Latent, p: Any, state: LatentState, window: Array, position: Array, count: Array
) -> tuple[list[Array], Cache, Array]:
    """What comes out of each layer of the encoder, its cache, and where the document of each new byte begins."""
    config = model.config
    first, _ = _documents(model, state, window, position, count)
    embed = functools.partial(embed_bytes, config, skip=model.tail)
    x = run_part(embed, p, jnp.maximum(window, vocabulary.BOE), model.tail - position)
    layers = p["encoder"]["layers"]
    outs, cache = read_layers(config.encoder, config.compute, layers, state.encoder, x, position, count, first)
    return outs, cache, first


def _decode(
    model: Latent, p: Any, state: LatentState, h: Array, newest_keys: Heads, newest_values: Heads, newest: Array,
    position: Array, count: Array, first: Array,
) -> tuple[Array, Cache]:  # fmt: skip
    """The decoder's rows for new bytes, each of which reads the latent with its number in `newest`."""
    config, params = model.config, p["decoder"]

    def ask(layer: int, h: Array) -> Array:
        if layer == model.askers == 0:
            return h + per_patch(newest_keys[0][:, :, 0], newest)
        if layer >= model.askers:
            return h
        keys, values = (spread_heads(kept[layer], config.cross_heads) for kept in (newest_keys, newest_values))

        def find(q: Array) -> Array:
            found: Any = attend_to_patches(q, keys, values, newest)
            return found

        return cross(config, config.decoder, params["cross_attention"][layer], "ask", h, find)

    decoded, cache = read_layers(
        config.decoder, config.compute, params["layers"], state.decoder, h, position, count, first, ask
    )
    return decoded[-1], cache
