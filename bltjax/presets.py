"""The named sizes: the paper's Table 10, the released models, the baselines of its scaling study, a CPU ladder.

Every preset is a model configuration; patchers, rows and optimisers are chosen where a run is planned.

- `blt-400m` .. `blt-8b`: BLT paper Table 10, with the released code's windows and hash tables. The table's 400M row
  has 10 cross-attention heads, which do not divide its local width of 768: here it has 12. Its 1B row is the released
  1B; its 8B row is the released 7B, so that `blt-7b` is another name of `blt-8b`.
- `entropy-100m`: the released entropy model, 14 x 768 (the paper's text says 512, which would be 44M parameters).
- `token-470m` .. `token-3.9b`: Llama-style models of the two inference classes of BLT paper Table 2;
  `byte-450m` is a flat byte model with the tower of the smaller class.
- `megabyte-1.3b` and `spacebyte-793m` have the parameters that their papers name, 1.3B + 218M and 793M + 184M; of
  MEGABYTE's towers the widths and layers are a guess.
- `<family>-cpu-0` .. `<family>-cpu-4` and `entropy-cpu`: small enough for a study on two cores. Feed-forward widths
  are 8/3 of the width exactly, since the usual rounding to 256 would more than double the smallest. MEGABYTE's
  patches have 4 bytes, about as many as those of the others; the paper's, of 8, suit larger models.
- `blt-bench`: the configuration of the benchmark table. `*-tiny`: for tests.
"""

import difflib

from bltjax.config import (
    BLTConfig,
    ByteTransformerConfig,
    CrossAttentionConfig,
    EntropyModelConfig,
    HashConfig,
    MegabyteConfig,
    ModelConfig,
    SpaceByteConfig,
    TokenTransformerConfig,
    TransformerConfig,
    swiglu_width,
)

CPU_TOKENS = 2048 + 4  # vocabulary of the token family on the CPU: 512 and 1,024 did worse at 2e11 FLOPs


def _tower(width: int, layers: int, heads: int, window: int | None = None) -> TransformerConfig:
    return TransformerConfig(width=width, layers=layers, heads=heads, window=window)


def _blt(
    local: tuple[int, int], encoder_layers: int, decoder_layers: int, latent: tuple[int, int, int], k: int
) -> BLTConfig:
    """A BLT from (width, heads) of the local models and (width, layers, heads) of the global one."""
    width, heads = local
    return BLTConfig(
        encoder=_tower(width, encoder_layers, heads, window=512),
        global_model=_tower(*latent),
        decoder=_tower(width, decoder_layers, heads, window=512),
        cross_attention=CrossAttentionConfig(k=k),
    )


def _small(width: int, layers: int, head_width: int = 16, window: int | None = None) -> TransformerConfig:
    hidden = swiglu_width(width, multiple_of=8)
    return TransformerConfig(width=width, layers=layers, heads=width // head_width, hidden=hidden, window=window)


def _small_blt(
    local_width: int, encoder_layers: int, decoder_layers: int, width: int, layers: int, buckets: int
) -> BLTConfig:
    return BLTConfig(
        encoder=_small(local_width, encoder_layers, window=128),
        global_model=_small(width, layers),
        decoder=_small(local_width, decoder_layers, window=128),
        hash=HashConfig(buckets=buckets),
    )


def _small_megabyte(local: tuple[int, int], latent: tuple[int, int], context_bytes: int) -> MegabyteConfig:
    return MegabyteConfig(_small(*latent), _small(*local), patch_bytes=4, context_bytes=context_bytes)


def _small_spacebyte(local: tuple[int, int], latent: tuple[int, int]) -> SpaceByteConfig:
    width, layers = local
    return SpaceByteConfig(
        encoder=_small(width, layers // 2, window=128),
        global_model=_small(*latent),
        decoder=_small(width, layers - layers // 2, window=128),
    )


# (width, layers) of the flat towers, and of BLT (local width, decoder layers, global width, global layers), whose
# widths MEGABYTE and SpaceByte have too.
_FLAT_LADDER = ((16, 1), (32, 1), (48, 2), (64, 3), (96, 4))
_BLT_LADDER = ((16, 1, 32, 1), (24, 1, 48, 1), (32, 1, 96, 2), (48, 2, 128, 3), (64, 2, 192, 4))

PRESETS: dict[str, ModelConfig] = {
    "blt-400m": _blt((768, 12), 1, 7, (1280, 24, 10), k=2),
    "blt-1b": _blt((1024, 16), 1, 9, (2048, 25, 16), k=2),
    "blt-2b": _blt((1024, 16), 1, 9, (2560, 26, 20), k=3),
    "blt-4b": _blt((1024, 16), 1, 9, (3072, 36, 24), k=3),
    "blt-8b": _blt((1280, 20), 1, 6, (4096, 32, 32), k=4),
    "blt-7b": _blt((1280, 20), 1, 6, (4096, 32, 32), k=4),
    "entropy-100m": EntropyModelConfig(),
    "token-470m": TokenTransformerConfig(_tower(1280, 24, 10), vocabulary_size=32_000),
    "token-450m": TokenTransformerConfig(_tower(1280, 24, 10), vocabulary_size=128_256),
    "token-3.6b": TokenTransformerConfig(_tower(3072, 32, 24), vocabulary_size=32_000),
    "token-3.9b": TokenTransformerConfig(_tower(3072, 36, 24), vocabulary_size=128_256),
    "byte-450m": ByteTransformerConfig(_tower(1280, 24, 10)),
    "megabyte-1.3b": MegabyteConfig(_tower(2048, 24, 16), _tower(1024, 17, 16), patch_bytes=8),
    "spacebyte-793m": SpaceByteConfig(
        _tower(768, 13, 12, window=768), _tower(1536, 28, 24), _tower(768, 13, 12, window=768)
    ),
    "blt-bench": BLTConfig(
        encoder=_tower(256, 1, 4, window=512),
        global_model=_tower(512, 12, 8),
        decoder=_tower(256, 6, 4, window=512),
        hash=HashConfig(buckets=20_002),
    ),
    "entropy-cpu": EntropyModelConfig(TransformerConfig(48, 1, 3, hidden=128, window=64, rope_theta=10_000.0)),
    "blt-tiny": _small_blt(16, 1, 1, 32, 1, buckets=101),
    "byte-tiny": ByteTransformerConfig(_small(16, 1)),
    "token-tiny": TokenTransformerConfig(_small(16, 1), vocabulary_size=300),
    "megabyte-tiny": _small_megabyte((16, 1), (32, 1), context_bytes=512),
    "spacebyte-tiny": _small_spacebyte((16, 2), (32, 1)),
    "entropy-tiny": EntropyModelConfig(TransformerConfig(16, 1, 1, hidden=32, window=32, rope_theta=10_000.0)),
}
for _index, (_width, _layers) in enumerate(_FLAT_LADDER):
    PRESETS[f"byte-cpu-{_index}"] = ByteTransformerConfig(_small(_width, _layers))
    PRESETS[f"token-cpu-{_index}"] = TokenTransformerConfig(_small(_width, _layers), vocabulary_size=CPU_TOKENS)
for _index, (_local, _decoder, _width, _layers) in enumerate(_BLT_LADDER):
    PRESETS[f"blt-cpu-{_index}"] = _small_blt(_local, 1, _decoder, _width, _layers, buckets=4096)
    _around, _latent = (_local, 1 + _decoder), (_width, _layers)
    PRESETS[f"megabyte-cpu-{_index}"] = _small_megabyte(_around, _latent, context_bytes=2048)
    PRESETS[f"spacebyte-cpu-{_index}"] = _small_spacebyte(_around, _latent)


def preset(name: str) -> ModelConfig:
    """The model configuration of a name.

    Raises:
      ValueError: for an unknown name, with the nearest known ones.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3) or sorted(PRESETS)
        raise ValueError(f"preset={name!r}: no such preset; the nearest are: {', '.join(near)}.")
    return PRESETS[name]
