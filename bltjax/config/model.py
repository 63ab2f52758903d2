"""The families of models."""

import dataclasses
from typing import ClassVar, Literal

from bltjax.config.checks import at_least, check_choices, require
from bltjax.config.tower import ComputeConfig, TransformerConfig

VOCABULARY_SIZE = 260  # 256 byte values and 4 special ids: see bltjax.vocabulary


@dataclasses.dataclass(frozen=True)
class HashConfig:
    """Byte n-gram hash embeddings. The defaults follow the released code; the paper differs in three places."""

    sizes: tuple[int, ...] = (3, 4, 5, 6, 7, 8)  # n-gram lengths in bytes; () switches hash embeddings off
    buckets: int = 500_002  # rows of each table
    functions: int = 1  # hash functions per length, at most 11
    normalize: bool = False  # paper: divide the summed embedding by the number of n-gram sizes + 1
    power_order: Literal["code", "paper"] = "code"  # code: oldest byte gets a^0; paper: newest byte gets a^0
    short_ngrams: Literal["zeros", "omit"] = "zeros"  # code: missing bytes hash as id 0; paper: no embedding

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        require(all(n >= 1 for n in self.sizes), "hash.sizes", self.sizes, "every n-gram length must be at least 1.")
        require(len(set(self.sizes)) == len(self.sizes), "hash.sizes", self.sizes, "must not repeat a length.")
        require(1 <= self.buckets < 2**31, "hash.buckets", self.buckets, "must lie in 1 .. 2^31 - 1.")
        require(1 <= self.functions <= 11, "hash.functions", self.functions, "must lie in 1 .. 11.")
        check_choices(self, "hash.")

    @property
    def tables(self) -> int:
        return len(self.sizes) * self.functions


@dataclasses.dataclass(frozen=True)
class CrossAttentionConfig:
    """Cross-attention between bytes and patches."""

    k: int = 2  # latents per patch: how many local rows one patch is cut into
    heads: int | None = None  # None: as many as the local encoder has
    kv_heads: int | None = None  # None: as many as heads; fewer: grouped queries, as in the Hugging Face port
    # Layers that have it. all_repool: pool the bytes anew at every layer; none: patches are what their bytes pool to.
    encoder: Literal["last", "all", "all_repool", "none"] = "last"
    decoder: Literal["first", "all", "none"] = "all"  # none: a projection of its patch is added to each byte
    residual: Literal["double", "single"] = "double"  # code: 2 x + attention; paper: x + attention
    # How the bytes of a patch make its first queries; none: these are learned, the same for all patches.
    pooling: Literal["max", "mean", "min", "none"] = "max"

    def __post_init__(self) -> None:
        at_least(self, "cross_attention.", k=1, heads=1, kv_heads=1)
        check_choices(self, "cross_attention.")
        pooled = self.encoder in ("none", "all_repool")
        advice = f"does not go with encoder={self.encoder!r}, which pools: choose max, mean or min."
        require(self.pooling != "none" or not pooled, "cross_attention.pooling", "none", advice)


@dataclasses.dataclass(frozen=True)
class BLTConfig:
    """The assembled Byte Latent Transformer."""

    encoder: TransformerConfig  # over bytes
    global_model: TransformerConfig  # over patches
    decoder: TransformerConfig  # over bytes, as wide as the encoder
    cross_attention: CrossAttentionConfig = CrossAttentionConfig()
    hash: HashConfig = HashConfig()
    document_mask: bool = True  # attention stops at EOS; False: as in the Hugging Face port
    compute: ComputeConfig = ComputeConfig()
    reads_patches: ClassVar[bool] = True  # whether the family is called with Patches, which a PatcherConfig cuts

    def __post_init__(self) -> None:
        width, heads, key_heads = self.encoder.width, self.cross_heads, self.cross_key_heads
        require(self.decoder.width == width, "decoder.width", self.decoder.width, f"must equal encoder's, {width}.")
        at_least(self.encoder, "encoder.", layers=1)
        at_least(self.decoder, "decoder.", layers=1)
        require(width % heads == 0, "cross_attention.heads", heads, f"must divide the local width, {width}.")
        require(heads % key_heads == 0, "cross_attention.kv_heads", key_heads, f"must divide its heads, {heads}.")

    @property
    def cross_heads(self) -> int:
        return self.encoder.heads if self.cross_attention.heads is None else self.cross_attention.heads

    @property
    def cross_key_heads(self) -> int:
        return self.cross_heads if self.cross_attention.kv_heads is None else self.cross_attention.kv_heads

    @property
    def patch_width(self) -> int:
        """Features of one patch as the local encoder hands it on: k rows of the local width."""
        return self.cross_attention.k * self.encoder.width

    @property
    def read_width(self) -> int:
        """Features of one patch as the local decoder reads it: k rows, or one where it is added to bytes."""
        return self.encoder.width if self.cross_attention.decoder == "none" else self.patch_width

    @property
    def has_input_projection(self) -> bool:
        return self.patch_width != self.global_model.width


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """A flat decoder-only Transformer with its own embedding and output."""

    tower: TransformerConfig
    vocabulary_size: int = VOCABULARY_SIZE
    document_mask: bool = True
    compute: ComputeConfig = ComputeConfig()
    bytes_only: ClassVar[bool] = False  # whether the family reads nothing but bytes
    reads_patches: ClassVar[bool] = False

    def __post_init__(self) -> None:
        size, wrong = self.vocabulary_size, self.bytes_only and self.vocabulary_size != VOCABULARY_SIZE
        require(size >= 5, "vocabulary_size", size, "needs 4 special ids and more.")
        require(not wrong, "vocabulary_size", size, f"a byte model has {VOCABULARY_SIZE}.")


@dataclasses.dataclass(frozen=True)
class EntropyModelConfig(LanguageModelConfig):
    """The small byte model whose uncertainty sets the patches (BLT paper section 2.3); the released sizes."""

    tower: TransformerConfig = TransformerConfig(width=768, layers=14, heads=12, window=512, rope_theta=10_000.0)
    bytes_only: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class ByteTransformerConfig(LanguageModelConfig):
    """Baseline: a flat Transformer over bytes."""

    bytes_only: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class TokenTransformerConfig(LanguageModelConfig):
    """Baseline: a flat Transformer over the tokens of a byte-level BPE; vocabulary_size counts the 4 special ids."""


@dataclasses.dataclass(frozen=True)
class MegabyteConfig:
    """Baseline: MEGABYTE (Yu et al. 2023), a global model over patches of equal length and a local one within each."""

    global_model: TransformerConfig  # over patches; as wide as the embeddings of a patch's bytes side by side
    local_model: TransformerConfig  # over the bytes of each patch
    patch_bytes: int = 8
    context_bytes: int = 8192  # rows of the global model's table of positions: no row may be longer
    patch_encoder: Literal["embedding", "convolution"] = "embedding"  # convolution: causal, over 3, 5 and 7 bytes
    cross_patch_bytes: int = 0  # last bytes of the patch before that a patch's bytes attend to as well
    document_mask: bool = True  # nothing is read of what an EOS ended; False: as in the paper
    # strided: two passes half a patch apart, of which the first half of each patch counts; for scoring alone.
    inference: Literal["basic", "strided"] = "basic"
    compute: ComputeConfig = ComputeConfig()
    reads_patches: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least(self, patch_bytes=1, context_bytes=1, cross_patch_bytes=0)
        check_choices(self)
        size, width, window = self.patch_bytes, self.global_model.width, self.local_model.window
        require(width % size == 0, "patch_bytes", size, f"must divide the width of the global model, {width}.")
        cross = self.cross_patch_bytes
        require(cross <= size, "cross_patch_bytes", cross, f"must not exceed patch_bytes, {size}.")
        require(window is None, "local_model.window", window, "must be None: a patch is seen whole.")
        strided = self.inference == "strided"
        require(not strided or size % 2 == 0, "patch_bytes", size, "must be even for strided inference.")

    @property
    def longest_row(self) -> int:
        """Bytes of the longest row, a half patch of strided inference included: the last patch needs no positions."""
        return (self.context_bytes // self.patch_bytes + 1) * self.patch_bytes

    @property
    def filters(self) -> tuple[int, ...]:
        """Bytes that the filters of a convolutional patch encoder see, one after the other."""
        return (3, 5, 7) if self.patch_encoder == "convolution" else ()

    @property
    def embedding_width(self) -> int:
        """Features of one byte of a patch as the global model reads it."""
        return self.global_model.width // self.patch_bytes


@dataclasses.dataclass(frozen=True)
class SpaceByteConfig:
    """Baseline: SpaceByte (Slagle 2024), global layers for the last byte of each patch amid local ones for all."""

    encoder: TransformerConfig  # the local layers before the global ones
    global_model: TransformerConfig  # at least as wide as the local ones
    decoder: TransformerConfig  # the local layers after them, as wide as those before
    document_mask: bool = True  # attention stops at EOS
    compute: ComputeConfig = ComputeConfig()
    reads_patches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        width, wide = self.encoder.width, self.global_model.width
        require(self.decoder.width == width, "decoder.width", self.decoder.width, f"must equal encoder's, {width}.")
        require(wide >= width, "global_model.width", wide, f"must be at least the local width, {width}.")


ModelConfig = (
    BLTConfig | EntropyModelConfig | ByteTransformerConfig | TokenTransformerConfig | MegabyteConfig | SpaceByteConfig
)

FAMILIES: dict[str, type] = {
    "blt": BLTConfig, "entropy": EntropyModelConfig, "byte": ByteTransformerConfig, "token": TokenTransformerConfig,
    "megabyte": MegabyteConfig, "spacebyte": SpaceByteConfig,
}  # fmt: skip


def family_of(model: ModelConfig) -> str:
    """The short name of a model configuration's family: a key of FAMILIES."""
    return next(name for name, cls in FAMILIES.items() if type(model) is cls)
