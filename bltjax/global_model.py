"""The global latent Transformer over patches (BLT paper section 3.1)."""

from flax import linen as nn
from jaxtyping import Array, Float, Int

from bltjax.config import BLTConfig
from bltjax.layers import Projection
from bltjax.transformer import tower


def latent_inputs(
    config: BLTConfig, rows: Float[Array, "batch patches patch_width"]
) -> Float[Array, "batch patches width"]:
    """The encoder's patches, projected where the widths differ; with params "input_projection" of what calls this."""
    if not config.has_input_projection:
        return rows
    inputs, outputs = config.patch_width, config.global_model.width
    axes, dtype = ("shard", "width"), config.compute.dtype
    return Projection((inputs,), (outputs,), axes, inputs**-0.5, dtype, name="input_projection")(rows)


class GlobalModel(nn.Module):
    """Block-causal layers over patches; no embedding, no final norm, no output layer."""

    config: BLTConfig

    @nn.compact
    def __call__(
        self, rows: Float[Array, "batch patches patch_width"], documents: Int[Array, "batch patches"] | None
    ) -> Float[Array, "batch patches width"]:
        """Latents from the encoder's patches."""
        config = self.config
        return tower(config.global_model, config.compute, latent_inputs(config, rows), documents)
