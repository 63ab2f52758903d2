"""The step form of SpaceByte: one byte, or a part of a prompt, after what was read before.

In go new byte ids of every row, where patches start among them (`latent.decide`) and the state; out come the decoder's
rows for them, whose logits `logits` gives, and the next state. `decode` calls this, by way of `kinds`.

Every byte goes through the encoder and the decoder. The last byte of a patch goes through the global model in between,
and nothing else does: no later byte reads what came out but by way of the decoder's cache.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bltjax import vocabulary
from bltjax.config import VOCABULARY_SIZE, EntropyModelConfig, PatcherConfig, SpaceByteConfig
from bltjax.generate import flat
from bltjax.generate.cache import Cache, empty_cache, first_of_documents, read_layers, run_part
from bltjax.generate.pieces import GROUP
from bltjax.generate.state import BEFORE
from bltjax.layers import Embedding
from bltjax.local import byte_logits
from bltjax.patching.rules import LOOK_BACK


@dataclasses.dataclass(frozen=True)
class Spaced:
    """What is static about a SpaceByte; hashable; attributes as those of `state.Latent`."""

    config: SpaceByteConfig
    patcher: PatcherConfig
    entropy: EntropyModelConfig | None
    positions: int
    patches: int
    tail: ClassVar[int] = LOOK_BACK


@chex.dataclass
class SpaceByteState:
    """What a SpaceByte remembers of its rows, and the model that patches for it; the latter as in `LatentState`."""

    ids: Int[Array, "batch tail"]
    entropies: Float[Array, "batch look_back"] | None
    since: Int[Array, "batch"]
    entropy: flat.FlatState | None
    document: Int[Array, "batch"]  # position where the document of the next byte begins
    encoder: Cache
    patches: Int[Array, "batch"]  # that have ended
    patch_document: Int[Array, "batch"]  # patch with which the document of the next patch begins
    latents: Cache  # the global model's
    decoder: Cache


def prepare(params: Any, entropy_params: Any | None) -> Any:
    """Params as `read` and `latent.decide` take them: those of each layer apart."""
    towers = {name: flat.prepare(params.get(name, {})) for name in ("encoder", "global_model", "decoder")}
    entropy = None if entropy_params is None else flat.prepare(entropy_params)
    return {"spacebyte": {**params, **towers}, "entropy": entropy}


def empty(model: Spaced, batch: int) -> SpaceByteState:
    """The state before the first byte."""
    config, entropy = model.config, model.entropy
    number = functools.partial(jnp.zeros, batch, jnp.int32)
    return SpaceByteState(
        ids=jnp.full((batch, model.tail), BEFORE, jnp.int32),
        entropies=None if entropy is None else jnp.zeros((batch, LOOK_BACK)),
        since=number(),
        entropy=None if entropy is None else flat.empty(entropy, batch, model.positions),
        document=number(),
        encoder=empty_cache(config.encoder, config.compute, batch, model.positions),
        patches=number(),
        patch_document=number(),
        latents=empty_cache(config.global_model, config.compute, batch, model.patches),
        decoder=empty_cache(config.decoder, config.compute, batch, model.positions),
    )


def read(
    model: Spaced, params: Any, state: SpaceByteState, ids: Int[Array, "batch new"], starts: Bool[Array, "batch new"],
    position: Int[Array, "batch"], count: Int[Array, "batch"],
) -> tuple[Float[Array, "batch new width"], SpaceByteState]:  # fmt: skip
    """Reads `count` new bytes of each row.

    Args:
      starts: whether a patch starts after each; others: as for `latent.read`.
    """
    config, p = model.config, params["spacebyte"]
    real = jnp.arange(ids.shape[1]) < count[:, None]
    starts &= real
    ends = (ids == vocabulary.EOS) & real & config.document_mask
    first, document = first_of_documents(ends, position, state.document)
    x = run_part(functools.partial(_embedded, config), p, ids)

    def through(tower: Any, name: str, x: Array, cache: Cache) -> tuple[Array, Cache]:
        outs, cache = read_layers(tower, config.compute, p[name]["layers"], cache, x, position, count, first)
        return outs[-1], cache

    x, encoder = through(config.encoder, "encoder", x, state.encoder)
    ended = jnp.sum(starts, axis=1, dtype=jnp.int32)
    x, patch_document, latents = _through_global(model, p, state, x, starts, ended, ends)
    x, decoder = through(config.decoder, "decoder", x, state.decoder)
    window = jnp.concatenate([state.ids, ids], axis=1)
    return x, dataclasses.replace(
        state,
        ids=jnp.take_along_axis(window, count[:, None] + jnp.arange(model.tail), axis=1),
        document=document,
        encoder=encoder,
        patches=state.patches + ended,
        patch_document=patch_document,
        latents=latents,
        decoder=decoder,
    )


def logits(model: Spaced, params: Any, x: Float[Array, "batch new width"]) -> Float[Array, "batch new 260"]:
    """Scores of the byte that comes next, float32."""
    return run_part(functools.partial(byte_logits, model.config), params["spacebyte"]["decoder"], x)


def _embedded(config: SpaceByteConfig, ids: Array) -> Array:
    width, dtype = config.encoder.width, config.compute.dtype
    found: Any = Embedding(VOCABULARY_SIZE, width, width**-0.5, dtype, name="byte_embedding")(ids)
    return found


def _through_global(
    model: Spaced, p: Any, state: SpaceByteState, x: Array, starts: Array, ended: Array, ends: Array
) -> tuple[Array, Array, Cache]:
    """New bytes with what the global model makes of those that a patch ends with.

    Args:
      ended: how many patches do; ends: which of the bytes end a document.

    Returns:
      The bytes, the patch with which the document of the next patch begins, and the global model's cache.
    """
    config, new, row = model.config, x.shape[1], jnp.arange(len(x))[:, None]
    wide, width = config.global_model.width, x.shape[2]
    group = min(GROUP, new)
    slots = -(-new // group) * group
    number = jnp.cumsum(starts, axis=1, dtype=jnp.int32) - 1  # of the patch that ends with each byte, where one does
    last = jnp.zeros((len(x), slots), jnp.int32)
    last = last.at[row, jnp.where(starts, number, slots)].set(jnp.arange(new, dtype=jnp.int32), mode="drop")
    # Every rule starts a patch after an EOS: so a document ends with the last byte of a patch.
    of_last = ends[row, last] & (jnp.arange(slots) < ended[:, None])
    first, document = first_of_documents(of_last, state.patches, state.patch_document)

    def one_group(j: Array, carry: tuple[Array, Cache]) -> tuple[Array, Cache]:
        found, cache = carry
        begin = j * group
        mine, of_mine = (jax.lax.dynamic_slice_in_dim(each, begin, group, 1) for each in (last, first))
        rows = jnp.pad(x[row, mine], ((0, 0), (0, 0), (wide - width, 0)))
        count = jnp.clip(ended - begin, 0, group)
        layers = p["global_model"]["layers"]
        outs, cache = read_layers(
            config.global_model, config.compute, layers, cache, rows, state.patches + begin, count, of_mine
        )
        return jax.lax.dynamic_update_slice_in_dim(found, outs[-1][..., wide - width :], begin, 1), cache

    nothing = jnp.zeros((len(x), slots, width), x.dtype)
    groups = (jnp.max(ended) + group - 1) // group
    found, cache = jax.lax.fori_loop(0, groups, one_group, (nothing, state.latents))
    return x + jnp.where(starts[..., None], found[row, number], 0), document, cache
