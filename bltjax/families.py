"""From a model configuration to its module, and to the shapes of its parameters without allocating any."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bltjax.baselines.byte_transformer import ByteTransformer
from bltjax.baselines.megabyte import Megabyte
from bltjax.baselines.spacebyte import SpaceByte
from bltjax.baselines.token_transformer import TokenTransformer
from bltjax.blt import BLT
from bltjax.config import (
    BLTConfig,
    ByteTransformerConfig,
    EntropyModelConfig,
    MegabyteConfig,
    ModelConfig,
    SpaceByteConfig,
    TokenTransformerConfig,
)
from bltjax.entropy_model import EntropyModel
from bltjax.patching.patches import Patches

MODULES: dict[type, type[nn.Module]] = {
    BLTConfig: BLT,
    EntropyModelConfig: EntropyModel,
    ByteTransformerConfig: ByteTransformer,
    TokenTransformerConfig: TokenTransformer,
    MegabyteConfig: Megabyte,
    SpaceByteConfig: SpaceByte,
}


def build(config: ModelConfig) -> nn.Module:
    """The module of a configuration: `build(config).apply({"params": p}, ids, patches)` for every family."""
    if type(config) not in MODULES:
        raise ValueError(f"config={config!r}: there is no family for a {type(config).__name__}.")
    return MODULES[type(config)](config)  # pyright: ignore[reportCallIssue]


def initialize(config: ModelConfig, key: jax.Array) -> Any:
    """Fresh float32 parameters, a plain nested dict. Shapes do not depend on the length of a row."""
    ids = jnp.zeros((1, 8), jnp.int32)
    patches = Patches.from_starts(jnp.ones((1, 9), bool), 8) if config.reads_patches else None
    return build(config).init(key, ids, patches)["params"]


def abstract_params(config: ModelConfig) -> Any:
    """The tree of jax.ShapeDtypeStruct that `initialize` would fill."""
    return jax.tree.map(lambda leaf: leaf, _shapes(config))  # dicts of its own: the caller may change them


@functools.cache
def _shapes(config: ModelConfig) -> Any:
    made = jax.eval_shape(lambda key: initialize(config, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), made)
