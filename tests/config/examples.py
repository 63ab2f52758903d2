"""A configuration of every family, and of a run, with no value at its default that has another."""

import dataclasses

from bltjax.config import (
    BLTConfig,
    ByteTransformerConfig,
    ComputeConfig,
    CrossAttentionConfig,
    EntropyModelConfig,
    HashConfig,
    MegabyteConfig,
    MeshConfig,
    OptimConfig,
    PatcherConfig,
    RowsConfig,
    SpaceByteConfig,
    TokenTransformerConfig,
    TrainConfig,
    TransferConfig,
    TransformerConfig,
)

LOCAL = TransformerConfig(
    width=16, layers=2, heads=4, kv_heads=2, hidden=40, window=9, rope_theta=7e4, norm_epsilon=1e-6, init_factor="depth"
)
LATENT = TransformerConfig(width=48, layers=3, heads=2, init_std=0.02)
BLT = BLTConfig(
    encoder=LOCAL,
    global_model=LATENT,
    decoder=dataclasses.replace(LOCAL, layers=5),
    cross_attention=CrossAttentionConfig(4, 8, 2, "all_repool", "first", "single", "mean"),
    hash=HashConfig((2, 7), 101, 3, True, "paper", "omit"),
    document_mask=False,
    compute=ComputeConfig("bfloat16", True, "dots"),
)
MODELS = {
    "blt": BLT,
    "entropy": EntropyModelConfig(),
    "byte": ByteTransformerConfig(LATENT),
    "token": TokenTransformerConfig(LATENT, vocabulary_size=999),
    "megabyte": MegabyteConfig(
        LATENT, TransformerConfig(16, 2, 4), 6, 300, "convolution", 3, False, "strided", ComputeConfig("bfloat16")
    ),
    "spacebyte": SpaceByteConfig(LOCAL, LATENT, LOCAL, False, ComputeConfig("bfloat16")),
}
SMALLER = dataclasses.replace(BLT, global_model=dataclasses.replace(LATENT, width=24))
TRAIN = TrainConfig(
    model=BLT,
    steps=50,
    patcher=PatcherConfig("space", "add", 1.5, 0.25, 3, 24, 6.0),
    rows=RowsConfig(512, 100, 6, 1),
    optim=OptimConfig(
        1e-3, "wsd", 5, 0.1, 0.3, 0.8, 0.99, 1e-9, 0.2, 0.5, "bfloat16", 6.0, 64, TransferConfig("width", SMALLER)
    ),
    mesh=MeshConfig(2, 2, 2, 3),
    accumulation=3,
    seed=4,
    log_every=2,
    checkpoint_every=7,
    keep_every=21,
    max_skips=2,
)
