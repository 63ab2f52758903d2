"""Every configuration: frozen dataclasses, validated, hashable, with a JSON round trip.

Widths are numbers of features, windows and rows are numbers of bytes (or of patches for the global model),
thresholds are nats. A derived value is a property and is never stored.
"""

from bltjax.config.model import (
    FAMILIES,
    VOCABULARY_SIZE,
    BLTConfig,
    ByteTransformerConfig,
    CrossAttentionConfig,
    EntropyModelConfig,
    HashConfig,
    LanguageModelConfig,
    MegabyteConfig,
    ModelConfig,
    SpaceByteConfig,
    TokenTransformerConfig,
    family_of,
)
from bltjax.config.run import (
    MeshConfig,
    OptimConfig,
    PatcherConfig,
    RowsConfig,
    TrainConfig,
    TransferConfig,
    usual_patcher,
)
from bltjax.config.tower import ComputeConfig, TransformerConfig, swiglu_width
from bltjax.config.values import config_hash, from_dict, to_dict

__all__ = [
    "FAMILIES",
    "VOCABULARY_SIZE",
    "BLTConfig",
    "ByteTransformerConfig",
    "ComputeConfig",
    "CrossAttentionConfig",
    "EntropyModelConfig",
    "HashConfig",
    "LanguageModelConfig",
    "MegabyteConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "PatcherConfig",
    "RowsConfig",
    "SpaceByteConfig",
    "TokenTransformerConfig",
    "TrainConfig",
    "TransferConfig",
    "TransformerConfig",
    "config_hash",
    "family_of",
    "from_dict",
    "swiglu_width",
    "to_dict",
    "usual_patcher",
]
