"""The assembled Byte Latent Transformer (Pagnoni et al. 2024, arXiv 2412.09871)."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bltjax.config import VOCABULARY_SIZE, BLTConfig
from bltjax.global_model import GlobalModel
from bltjax.hashing import HashEmbedding
from bltjax.layers import Embedding
from bltjax.local import LocalDecoder, LocalEncoder
from bltjax.parallel import per_device
from bltjax.patching.patches import Patches, byte_documents, patch_documents


def embed_bytes(
    config: BLTConfig, ids: Int[Array, "batch bytes"], first: Int[Array, "batch"] | None = None, skip: int = 0
) -> Float[Array, "batch new width"]:
    """Bytes and the n-grams that end at them; with params "byte_embedding" and "hash_embedding" of what calls this.

    Args:
      first, skip: as `HashEmbedding` takes them.
    """
    dtype, width = config.compute.dtype, config.encoder.width
    x = Embedding(VOCABULARY_SIZE, width, width**-0.5, dtype, name="byte_embedding")(ids[:, skip:])
    if config.hash.sizes:
        x = x + HashEmbedding(config.hash, width, dtype, name="hash_embedding")(ids, first, skip)
        if config.hash.normalize:
            x = x / (len(config.hash.sizes) + 1)
    return x


class BLT(nn.Module):
    """Bytes -> local encoder -> patches -> global model -> local decoder -> logits of the next byte."""

    config: BLTConfig

    @nn.compact
    def __call__(
        self, ids: Int[Array | np.ndarray, "batch bytes"], patches: Patches
    ) -> Float[Array, "batch bytes 260"]:
        """Logits, float32; those at byte t predict byte t + 1 and depend on bytes 0 .. t alone.

        Args:
          ids: byte ids of the row, special ids included.
          patches: of the same rows. A row with more patches than slots, or whose first patch is longer than one
            byte, comes out as NaN: a compiled program can't raise, and must not be wrong in silence.

        Raises:
          ValueError: where ids and patches are of different rows.
        """
        config = self.config
        if patches.encoder_ids.shape != ids.shape:
            raise ValueError(
                f"patches are of rows {patches.encoder_ids.shape}, ids are {ids.shape}: make them from the same bytes."
            )
        ids = jnp.asarray(ids, jnp.int32)
        slots = patches.valid.shape[1]

        def prepare(ids: Array, encoder_ids: Array, decoder_ids: Array, valid: Array) -> list[Array]:
            broken = (encoder_ids[:, -1:] >= slots) | (decoder_ids[:, :1] < 0)
            kept = Patches(
                encoder_ids=jnp.clip(encoder_ids, 0, slots - 1),
                decoder_ids=jnp.clip(decoder_ids, 0, slots - 1),
                valid=valid,
            )
            documents = [byte_documents(ids), patch_documents(ids, kept)]
            return [kept.encoder_ids, kept.decoder_ids, broken, *documents]

        rows = ("batch", None)
        encoder_ids, decoder_ids, broken, of_bytes, of_patches = per_device(prepare, [rows] * 4, [rows] * 5)(
            ids, patches.encoder_ids, patches.decoder_ids, patches.valid
        )
        patches = Patches(encoder_ids=encoder_ids, decoder_ids=decoder_ids, valid=patches.valid)
        if not config.document_mask:
            of_bytes, of_patches = None, None
        x = embed_bytes(config, ids)
        h, rows = LocalEncoder(config, name="encoder")(x, patches, of_bytes)
        latents = GlobalModel(config, name="global_model")(rows, of_patches)
        logits = LocalDecoder(config, name="decoder")(h, latents, patches, of_bytes)
        return jnp.where(broken[:, :, None], jnp.nan, logits)
