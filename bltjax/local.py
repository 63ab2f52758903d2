"""The local encoder, from bytes to patches, and the local decoder, from patches back to bytes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bltjax.config import VOCABULARY_SIZE, BLTConfig, SpaceByteConfig, TransformerConfig
from bltjax.cross_attention import CrossAttention, patch_gather, pool
from bltjax.layers import Embedding, Projection, RMSNorm, Rotation, layer_factors, matrix_std, product, rotation
from bltjax.parallel import joined, per_device
from bltjax.patching.patches import Patches
from bltjax.sharding import constrain, split_axis
from bltjax.transformer import TransformerLayer, stacked, tower

Documents = Int[Array, "batch bytes"] | None
Carry = tuple[Array, Array, Array]


def cross_attention_of(config: BLTConfig, local: TransformerConfig) -> CrossAttention:
    """The cross-attention of one of the local models; there is one for every layer that has any."""
    return CrossAttention(
        local.width,
        config.cross_heads,
        config.cross_key_heads,
        config.cross_attention.residual,
        local.norm_epsilon,
        config.compute.dtype,
        matrix_std(local, local.width),
        name="cross_attention",
    )


def first_queries(
    config: BLTConfig, pooled: Float[Array, "batch patches width"], kernel: Float[Array, "width patch_width"]
) -> Float[Array, "batch patches k width"]:
    """The rows with which patches begin to ask for their bytes, from what these were pooled to."""
    rows: Any = product(pooled, kernel, ("shard", "width"))
    return rows.reshape(*pooled.shape[:2], config.cross_attention.k, config.encoder.width)


def learned_queries(config: BLTConfig, batch: int, patches: int) -> Float[Array, "batch patches k width"]:
    """The same where nothing is pooled; with params "first_query" of the encoder that calls this.

    The paper does not say what asks in its Table 7 without pooling; these are learned, as in Perceiver.
    """
    k, width = config.cross_attention.k, config.encoder.width
    table = Embedding(k, width, width**-0.5, config.compute.dtype, name="first_query")
    rows = table(jnp.broadcast_to(jnp.arange(k), (batch, k)))
    return constrain(jnp.broadcast_to(rows[:, None], (batch, patches, k, width)), ("batch", "patches", None, None))


def latent_rows(
    config: BLTConfig, latents: Float[Array, "batch patches global_width"]
) -> Float[Array, "batch patches k width"]:
    """What bytes read of patches; with params "patch_projection" of the decoder that calls this.

    It is one row, not k, where bytes have no cross-attention to it.
    """
    inputs, outputs = config.global_model.width, config.read_width
    axes, dtype = ("shard", "width"), config.compute.dtype
    rows = Projection((inputs,), (outputs,), axes, inputs**-0.5, dtype, name="patch_projection")(latents)
    return rows.reshape(*latents.shape[:2], outputs // config.decoder.width, config.decoder.width)


def per_patch(
    rows: Float[Array, "batch patches 1 width"], ids: Int[Array, "batch bytes"]
) -> Float[Array, "batch bytes width"]:
    """For each byte the row of the patch that it may read, where there is no cross-attention."""
    parts = split_axis("patches")

    def spread(rows: Array, ids: Array) -> Array:
        return patch_gather(joined(rows, parts, 1), ids)[:, :, 0]

    axes = [("batch", "patches", None, None), ("batch", "bytes")]
    return per_device(spread, axes, ("batch", "bytes", None))(rows, ids)


def byte_logits(
    config: BLTConfig | SpaceByteConfig, h: Float[Array, "batch bytes width"]
) -> Float[Array, "batch bytes vocabulary"]:
    """Logits, float32; with params "norm" and "output" of the decoder that calls this."""
    local, dtype = config.decoder, config.compute.dtype
    h = RMSNorm(local.width, local.norm_epsilon, dtype, name="norm")(h)
    axes, std = ("shard", "vocabulary"), local.width**-0.5
    return Projection((local.width,), (VOCABULARY_SIZE,), axes, std, dtype, "float32", name="output")(h)


class LocalEncoder(nn.Module):
    """Transformer layers over bytes, then pooling and cross-attention into k rows per patch (paper section 3.2)."""

    config: BLTConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch bytes width"], patches: Patches, documents: Documents
    ) -> tuple[Float[Array, "batch bytes width"], Float[Array, "batch patches patch_width"]]:
        """The bytes after the last layer, for the decoder, and the patches, for the global model."""
        config, cross = self.config, self.config.cross_attention
        local, compute = config.encoder, config.compute
        ids, slots = patches.encoder_ids, patches.valid.shape[1]
        factors = layer_factors(local)
        # Rows, or the kernel alone: the scan over layers may use it, but not a module from outside the scan.
        if cross.pooling == "none":
            origin = learned_queries(config, x.shape[0], slots)
        else:
            axes, std = ("shard", "width"), local.width**-0.5
            origin: Any = Projection((local.width,), (config.patch_width,), axes, std, name="patch_projection").kernel()

        def query_rows(h: Array, origin: Array) -> Array:
            if cross.pooling == "none":
                return origin
            return first_queries(config, pool(h, ids, slots, cross.pooling), origin)

        if cross.encoder in ("last", "none"):
            h = tower(local, compute, x, documents)
            rows = query_rows(h, origin)
            if cross.encoder == "none":
                return h, rows.reshape(h.shape[0], slots, config.patch_width)

            def attend(modules: Sequence[nn.Module], rows: Array, h: Array) -> Array:
                return modules[0](rows, h, ids)

            rows = stacked([cross_attention_of(config, local)], attend, 1, compute, rows, h, init_factors=factors)
            return h, rows.reshape(h.shape[0], slots, config.patch_width)

        def layer_then_attend(modules: Sequence[nn.Module], carry: Carry, origin: Array, angles: Rotation) -> Carry:
            h, rows, is_first = carry
            h = modules[0](h, angles, documents)
            if cross.encoder == "all_repool":
                rows = query_rows(h, origin)
            else:
                rows = jax.lax.cond(is_first, query_rows, lambda h, origin: rows, h, origin)
            return h, modules[1](rows, h, ids), jnp.zeros_like(is_first)

        modules = [TransformerLayer(local, compute, name="layers"), cross_attention_of(config, local)]
        nothing = jnp.zeros((x.shape[0], slots, cross.k, local.width), x.dtype)
        nothing = constrain(nothing, ("batch", "patches", None, None))
        angles = rotation(x.shape[1], local.head_width, local.rope_theta)
        start = (x, nothing, jnp.ones((), bool))
        h, rows, _ = stacked(
            modules, layer_then_attend, local.layers, compute, start, origin, angles, init_factors=factors
        )
        return h, rows.reshape(h.shape[0], slots, config.patch_width)


class LocalDecoder(nn.Module):
    """Cross-attention to patches and Transformer layers over bytes, then the output (paper section 3.3)."""

    config: BLTConfig

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "batch bytes width"],
        latents: Float[Array, "batch patches global_width"],
        patches: Patches,
        documents: Documents,
    ) -> Float[Array, "batch bytes vocabulary"]:
        """Logits, float32, from the encoder's bytes and the global model's patches."""
        config, cross = self.config, self.config.cross_attention
        local, compute = config.decoder, config.compute
        ids, factors = patches.decoder_ids, layer_factors(local)
        rows = latent_rows(config, latents)

        if cross.decoder == "none":
            h = tower(local, compute, h + per_patch(rows, ids), documents)
        elif cross.decoder == "first":

            def attend(modules: Sequence[nn.Module], h: Array, rows: Array) -> Array:
                return modules[0](h, rows, ids)

            h = stacked([cross_attention_of(config, local)], attend, 1, compute, h, rows, init_factors=factors)
            h = tower(local, compute, h, documents)
        else:
            angles = rotation(h.shape[1], local.head_width, local.rope_theta)
            modules = [cross_attention_of(config, local), TransformerLayer(local, compute, name="layers")]

            def attend_then_layer(modules: Sequence[nn.Module], h: Array, rows: Array, angles: Rotation) -> Array:
                return modules[1](modules[0](h, rows, ids), angles, documents)

            h = stacked(modules, attend_then_layer, local.layers, compute, h, rows, angles, init_factors=factors)
        return byte_logits(config, h)
