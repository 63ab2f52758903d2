"""The global latent Transformer over patches (BLT paper section 3.1)."""

from flax import linen as nn
from jaxtyping import Array, Float, Int

from bltjax.config import BLTConfig
from bltjax.layers import Projection
from bltjax.transformer import tower


class GlobalModel(nn.Module):
    """Block-causal layers over patches; no embedding, no final norm, no output layer."""

    config: BLTConfig

    @nn.compact
    def __call__(
        self, rows: Float[Array, "batch patches patch_width"], documents: Int[Array, "batch patches"] | None
    ) -> Float[Array, "batch patches width"]:
        """Latents from the encoder's patches, projected first where the widths differ."""
        config = self.config
        if config.has_input_projection:
            rows = Projection(
                (config.patch_width,), (config.global_model.width,), ("shard", "width"), config.patch_width**-0.5,
                config.compute.dtype, name="input_projection",
            )(rows)  # fmt: skip
        return tower(config.global_model, config.compute, rows, documents)
