"""What a Byte Latent Transformer remembers of the bytes it has read: one pytree, whose shapes never change.

In goes a model's configuration and how much room there is; out comes the state before the first byte, and the params
as the step form takes them. `latent` makes the next state of it, byte by byte.
"""

import dataclasses
import functools
from typing import Any

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bltjax.config import BLTConfig, EntropyModelConfig, PatcherConfig
from bltjax.flops import cross_layers
from bltjax.generate import flat
from bltjax.generate.cache import Cache, Kept, empty_cache, empty_kept, split_layers
from bltjax.patching.rules import LOOK_BACK, longest_patches

BEFORE = -1  # stands for ids before the row


@dataclasses.dataclass(frozen=True)
class Latent:
    """What is static about a model that reads patches; hashable.

    Attributes:
      patcher: its threshold is not looked at, so that one program serves all: `read` is given one.
      entropy: None where the rule needs no entropies.
      positions: room for byte ids, special ones included.
      patches: room for patches.
      ahead: how many of the bytes that were read may be taken back (`read` with a `keep`).
    """

    config: BLTConfig
    patcher: PatcherConfig
    entropy: EntropyModelConfig | None
    positions: int
    patches: int
    ahead: int = 0

    @property
    def tail(self) -> int:
        """Ids before a byte that hashes and rules look at."""
        return max(LOOK_BACK, *(size - 1 for size in self.config.hash.sizes), 0)

    @property
    def readers(self) -> list[tuple[int, int]]:
        """For each cross-attention of the encoder that matters: its number, and the layer whose rows it reads."""
        layers, kind = self.config.encoder.layers, self.config.cross_attention.encoder
        if kind == "none":
            return []
        if kind == "all":
            return [(layer, layer) for layer in range(layers)]
        return [(0 if kind == "last" else layers - 1, layers - 1)]

    @property
    def pooled_layer(self) -> int:
        """The encoder layer whose rows a patch begins with."""
        return 0 if self.config.cross_attention.encoder == "all" else self.config.encoder.layers - 1

    @property
    def askers(self) -> int:
        """Cross-attentions of the decoder."""
        return cross_layers(self.config)[1]

    @property
    def open_places(self) -> int:
        """Room for the bytes of a patch that has not ended."""
        return min([self.positions, *longest_patches(self.patcher)])


@chex.dataclass
class LatentState:
    """What a Byte Latent Transformer remembers of its rows, and the model that patches for it."""

    ids: Int[Array, "batch tail"]  # the newest; BEFORE where there was none
    entropies: Float[Array, "batch look_back"] | None  # of the newest ids, nats
    since: Int[Array, "batch"]  # see patching.rules.next_starts
    entropy: flat.FlatState | None
    document: Int[Array, "batch"]  # position where the document of the next byte begins
    encoder: Cache
    open_bytes: Int[Array, "batch"]  # of the patch that has not ended
    open_pool: Float[Array, "batch width"]
    open_kept: tuple[Kept, ...]  # keys and values of its bytes, by cross-attention of the encoder
    open_ends: Bool[Array, "batch"]  # whether an EOS is among its bytes
    patches: Int[Array, "batch"]  # that have ended
    patch_document: Int[Array, "batch"]  # patch with which the document of the next patch begins
    latents: Cache  # the global model's
    newest_keys: tuple[Float[Array, "batch j heads features"], ...]  # of the newest latent, by decoder layer
    newest_values: tuple[Float[Array, "batch j heads features"], ...]
    decoder: Cache


def prepare(params: Any, entropy_params: Any | None) -> Any:
    """Params as `read` takes them: those of each layer apart."""

    def apart(tower: Any) -> Any:
        names = {"layers", "cross_attention"} & set(tower)
        return {**tower, **{name: split_layers(tower[name]) for name in names}}

    # Without layers and without a projection a global model has no params.
    towers = {name: apart(params.get(name, {})) for name in ("encoder", "global_model", "decoder")}
    return {"blt": {**params, **towers}, "entropy": None if entropy_params is None else flat.prepare(entropy_params)}


def empty(model: Latent, batch: int) -> LatentState:
    """The state before the first byte."""
    config, dtype = model.config, model.config.compute.dtype
    number = functools.partial(jnp.zeros, batch, jnp.int32)
    head_width, key_heads = config.encoder.width // config.cross_heads, config.cross_key_heads

    def rows(count: int, *shape: int) -> tuple[Array, ...]:
        return tuple(jnp.zeros((batch, *shape), dtype) for _ in range(count))

    # Without cross-attention what bytes read of a latent is one row, which has the place of a key; it has no values.
    row = (1, 1, 1, config.decoder.width)
    newest_shape = (model.askers, config.cross_attention.k, key_heads, head_width)
    entropy = model.entropy
    return LatentState(
        ids=jnp.full((batch, model.tail), BEFORE, jnp.int32),
        entropies=None if entropy is None else jnp.zeros((batch, LOOK_BACK)),
        since=number(),
        entropy=None if entropy is None else flat.empty(entropy, batch, model.positions, model.ahead),
        document=number(),
        encoder=empty_cache(config.encoder, config.compute, batch, model.positions, model.ahead),
        open_bytes=number(),
        open_pool=jnp.zeros((batch, config.encoder.width), dtype),
        open_kept=tuple(empty_kept(batch, key_heads, head_width, model.open_places, dtype) for _ in model.readers),
        open_ends=jnp.zeros(batch, bool),
        patches=number(),
        patch_document=number(),
        latents=empty_cache(config.global_model, config.compute, batch, model.patches + model.ahead, model.ahead),
        newest_keys=rows(*newest_shape) if model.askers else rows(*row),
        newest_values=rows(*newest_shape),
        decoder=empty_cache(config.decoder, config.compute, batch, model.positions, model.ahead),
    )
