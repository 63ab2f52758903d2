"""Byte Latent Transformers in pure Flax: the models and what makes them comparable.

The names here need neither Grain, Orbax nor Optax. Data, training, scaling studies and checkpoints of other projects
are subpackages to be imported by name: `bltjax.data`, `bltjax.train`, `bltjax.scaling`, `bltjax.interop.huggingface`.
"""

from bltjax import config, families, flops, hashing, patching, presets, vocabulary
from bltjax.blt import BLT
from bltjax.config import BLTConfig, EntropyModelConfig
from bltjax.entropy_model import EntropyModel
from bltjax.patching import Patches

__all__ = [
    "BLT",
    "BLTConfig",
    "EntropyModel",
    "EntropyModelConfig",
    "Patches",
    "config",
    "families",
    "flops",
    "hashing",
    "patching",
    "presets",
    "vocabulary",
]
