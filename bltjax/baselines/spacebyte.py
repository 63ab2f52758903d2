"""SpaceByte (Slagle 2024, arXiv 2404.14408): global layers for the last byte of each patch, amid local ones for all.

Patches end with the first of one or more space-like bytes (`bltjax.patching.space_starts`), and with BOS; any other
rule will do as well, as in the paper's comparison with patches of equal length. Where a patch ends its last byte goes
through the global layers, widened by zeros, and what comes out is added to it. The paper fixes the number of patches of
a row and leaves bytes beyond it out of the loss; here rows are cut so that their patches fit, and none is left out.
Positions are rotary in both models, where the paper learns them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bltjax.config import VOCABULARY_SIZE, ComputeConfig, SpaceByteConfig, TransformerConfig
from bltjax.cross_attention import patch_gather
from bltjax.layers import Embedding
from bltjax.local import byte_logits
from bltjax.parallel import joined, per_device, summed_part
from bltjax.patching.patches import Patches, byte_documents, patch_documents
from bltjax.sharding import constrain, split_axis
from bltjax.transformer import tower

_WHOLE, _BYTES, _PATCHES = ("batch", None), ("batch", "bytes", None), ("batch", "patches", None)


class Layers(nn.Module):
    """The layers of a tower, as params "layers" of this module."""

    config: TransformerConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch positions width"], documents: Int[Array, "batch positions"] | None
    ) -> Float[Array, "batch positions width"]:
        return tower(self.config, self.compute, x, documents)


class Decoder(nn.Module):
    """The local layers after the global ones, then the output."""

    config: SpaceByteConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch bytes width"], documents: Int[Array, "batch bytes"] | None
    ) -> Float[Array, "batch bytes 260"]:
        return byte_logits(self.config, tower(self.config.decoder, self.config.compute, x, documents))


def last_rows(
    h: Float[Array, "batch bytes width"], last: Int[Array, "batch patches"]
) -> Float[Array, "batch patches width"]:
    """The rows at positions `last`, which rise along the row."""
    parts = split_axis("bytes")

    def pick(h: Array, last: Array) -> Array:
        if parts is None:
            return patch_gather(h, last)
        local = last - jax.lax.axis_index(parts) * h.shape[1]
        here = (local >= 0) & (local < h.shape[1])
        rows = patch_gather(h, jnp.clip(local, 0, h.shape[1] - 1))
        return summed_part(jnp.where(here[..., None], rows, 0), parts, 1)

    return per_device(pick, [_BYTES, _WHOLE], _PATCHES)(h, last)


def added(
    h: Float[Array, "batch bytes width"],
    y: Float[Array, "batch patches width"],
    ids: Int[Array, "batch bytes"],
    ends: Array,
) -> Float[Array, "batch bytes width"]:
    """h, and at bytes where a patch ends the row of y of that patch.

    Args:
      ids: the patch that each byte lies in.
      ends: whether it is the last of that patch.
    """
    parts = split_axis("patches")

    def add(h: Array, y: Array, ids: Array, ends: Array) -> Array:
        return h + jnp.where(ends[..., None], patch_gather(joined(y, parts, 1), ids), 0)

    by_byte = ("batch", "bytes")
    return per_device(add, [_BYTES, _PATCHES, by_byte, by_byte], _BYTES)(h, y, ids, ends)


class SpaceByte(nn.Module):
    """Bytes -> local layers -> global layers where patches end -> local layers -> logits of the next byte."""

    config: SpaceByteConfig

    @nn.compact
    def __call__(
        self, ids: Int[Array | np.ndarray, "batch bytes"], patches: Patches
    ) -> Float[Array, "batch bytes 260"]:
        """Logits, float32; those at byte t predict byte t + 1 and depend on bytes 0 .. t alone.

        Args:
          ids: byte ids of the row, special ids included.
          patches: of the same rows. A row with more patches than slots comes out as NaN: a compiled program can't
            raise, and must not be wrong in silence.

        Raises:
          ValueError: where ids and patches are of different rows.
        """
        config, compute = self.config, self.config.compute
        if patches.encoder_ids.shape != ids.shape:
            raise ValueError(
                f"patches are of rows {patches.encoder_ids.shape}, ids are {ids.shape}: make them from the same bytes."
            )
        slots = patches.valid.shape[1]

        def prepare(ids: Array, encoder_ids: Array, decoder_ids: Array, valid: Array) -> list[Array]:
            broken = encoder_ids[:, -1:] >= slots
            own = jnp.clip(encoder_ids, 0, slots - 1)
            # A patch that the row ends within has no last byte, nor has an empty slot: nothing reads their rows.
            rows, places = jnp.arange(ids.shape[0])[:, None], jnp.arange(ids.shape[1], dtype=jnp.int32)
            last = jnp.zeros((ids.shape[0], slots), jnp.int32).at[rows, own].max(places[None])
            last = jax.lax.cummax(last, axis=1)
            kept = Patches(encoder_ids=own, decoder_ids=decoder_ids, valid=valid)
            ends = decoder_ids == encoder_ids
            return [own, ends, last, broken, byte_documents(ids), patch_documents(ids, kept)]

        ids = jnp.asarray(ids, jnp.int32)
        own, ends, last, broken, of_bytes, of_patches = per_device(prepare, [_WHOLE] * 4, [_WHOLE] * 6)(
            ids, patches.encoder_ids, patches.decoder_ids, patches.valid
        )
        if not config.document_mask:
            of_bytes, of_patches = None, None
        width, wide = config.encoder.width, config.global_model.width
        embedding = Embedding(VOCABULARY_SIZE, width, width**-0.5, compute.dtype, name="byte_embedding")
        h = Layers(config.encoder, compute, name="encoder")(embedding(ids), of_bytes)
        y = jnp.pad(last_rows(h, last), ((0, 0), (0, 0), (wide - width, 0)))
        y: Any = constrain(y, _PATCHES)
        y = Layers(config.global_model, compute, name="global_model")(y, of_patches)
        h = added(h, y[..., wide - width :], own, ends)
        logits = Decoder(config, name="decoder")(h, of_bytes)
        return jnp.where(broken[:, :, None], jnp.nan, logits)
