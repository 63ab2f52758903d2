"""The local encoder, from bytes to patches, and the local decoder, from patches back to bytes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bltjax.config import VOCABULARY_SIZE, BLTConfig, TransformerConfig
from bltjax.cross_attention import CrossAttention, pool
from bltjax.layers import Projection, RMSNorm, Rotation, layer_factors, matrix_std, product, rotation
from bltjax.patching.patches import Patches
from bltjax.sharding import constrain
from bltjax.transformer import TransformerLayer, stacked, tower

Documents = Int[Array, "batch bytes"] | None
Carry = tuple[Array, Array, Array]


def _cross_attention(config: BLTConfig, local: TransformerConfig) -> CrossAttention:
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
        # Only its kernel: the scan over layers may use it, but not a module from outside the scan.
        axes = ("shard", "width")
        kernel = Projection(
            (local.width,), (config.patch_width,), axes, local.width**-0.5, name="patch_projection"
        ).kernel()  # fmt: skip

        def query_rows(h: Array, kernel: Array) -> Array:
            pooled: Any = product(pool(h, ids, slots, cross.pooling), kernel, axes)
            return pooled.reshape(h.shape[0], slots, cross.k, local.width)

        if cross.encoder == "last":
            h = tower(local, compute, x, documents)

            def attend(modules: Sequence[nn.Module], rows: Array, h: Array) -> Array:
                return modules[0](rows, h, ids)

            rows = stacked(
                [_cross_attention(config, local)], attend, 1, compute, query_rows(h, kernel), h, init_factors=factors
            )
            return h, rows.reshape(h.shape[0], slots, config.patch_width)

        def layer_then_attend(modules: Sequence[nn.Module], carry: Carry, kernel: Array, angles: Rotation) -> Carry:
            h, rows, is_first = carry
            h = modules[0](h, angles, documents)
            if cross.encoder == "all_repool":
                rows = query_rows(h, kernel)
            else:
                rows = jax.lax.cond(is_first, query_rows, lambda h, kernel: rows, h, kernel)
            return h, modules[1](rows, h, ids), jnp.zeros_like(is_first)

        modules = [TransformerLayer(local, compute, name="layers"), _cross_attention(config, local)]
        nothing = jnp.zeros((x.shape[0], slots, cross.k, local.width), x.dtype)
        nothing = constrain(nothing, ("batch", "patches", None, None))
        angles = rotation(x.shape[1], local.head_width, local.rope_theta)
        start = (x, nothing, jnp.ones((), bool))
        h, rows, _ = stacked(
            modules, layer_then_attend, local.layers, compute, start, kernel, angles, init_factors=factors
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
        ids, slots = patches.decoder_ids, patches.valid.shape[1]
        factors = layer_factors(local)
        rows = Projection(
            (config.global_model.width,), (config.patch_width,), ("shard", "width"), config.global_model.width**-0.5,
            compute.dtype, name="patch_projection",
        )(latents).reshape(h.shape[0], slots, cross.k, local.width)  # fmt: skip

        if cross.decoder == "first":

            def attend(modules: Sequence[nn.Module], h: Array, rows: Array) -> Array:
                return modules[0](h, rows, ids)

            h = stacked([_cross_attention(config, local)], attend, 1, compute, h, rows, init_factors=factors)
            h = tower(local, compute, h, documents)
        else:
            angles = rotation(h.shape[1], local.head_width, local.rope_theta)
            modules = [_cross_attention(config, local), TransformerLayer(local, compute, name="layers")]

            def attend_then_layer(modules: Sequence[nn.Module], h: Array, rows: Array, angles: Rotation) -> Array:
                return modules[1](modules[0](h, rows, ids), angles, documents)

            h = stacked(modules, attend_then_layer, local.layers, compute, h, rows, angles, init_factors=factors)
        h = RMSNorm(local.width, local.norm_epsilon, compute.dtype, name="norm")(h)
        axes, std = ("shard", "vocabulary"), local.width**-0.5
        logits = Projection((local.width,), (VOCABULARY_SIZE,), axes, std, compute.dtype, name="output")(h)
        return logits.astype(jnp.float32)
