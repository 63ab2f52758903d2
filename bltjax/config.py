"""Every configuration: frozen dataclasses, validated, hashable, with a JSON round trip.

Widths are numbers of features, windows and rows are numbers of bytes (or of patches for the global model),
thresholds are nats. A derived value is a property and is never stored.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from typing import Any, Literal, TypeVar

VOCABULARY_SIZE = 260  # 256 byte values and 4 special ids: see bltjax.vocabulary

T = TypeVar("T")


def _require(condition: bool, argument: str, value: Any, advice: str) -> None:
    if not condition:
        raise ValueError(f"{argument}={value!r}: {advice}")


def _one_of(argument: str, value: Any, choices: tuple[Any, ...]) -> None:
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    _require(value in choices, argument, value, f"choose one of {', '.join(map(repr, choices))}.{hint}")


def swiglu_width(width: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    """Hidden width of the SwiGLU feed-forward: 8/3 of the width, rounded up (blt reference a.3)."""
    hidden = int(multiplier * int(2 * 4 * width / 3))
    return -(-hidden // multiple_of) * multiple_of


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How a model is computed; none of it changes what is computed beyond rounding."""

    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and products; parameters are float32
    unroll: bool = False  # write the layers of a stack out one by one instead of scanning over them
    remat: Literal["none", "full", "dots"] = "none"  # what a layer recomputes in the backward pass
    attention: Literal["reference"] = "reference"  # back end of bltjax.attention

    def __post_init__(self) -> None:
        _one_of("compute.dtype", self.dtype, ("float32", "bfloat16"))
        _one_of("compute.remat", self.remat, ("none", "full", "dots"))
        _one_of("compute.attention", self.attention, ("reference",))


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """One tower of Llama-style layers."""

    width: int
    layers: int
    heads: int
    kv_heads: int | None = None  # None: as many as heads (multi-head attention); fewer: grouped queries
    hidden: int | None = None  # feed-forward width; None: swiglu_width(width)
    window: int | None = None  # positions visible to a query, itself included; None: all earlier ones
    rope_theta: float = 500_000.0
    norm_epsilon: float = 1e-5
    init_std: float | None = None  # None: width ** -0.5 and hidden ** -0.5 (blt reference a.14)
    init_factor: Literal["none", "depth", "width"] = "none"  # divides the std: sqrt(2 (layers + 1)), or width / 4096

    def __post_init__(self) -> None:
        for name in ("width", "heads"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1.")
        _require(self.layers >= 0, "layers", self.layers, "must not be negative.")
        _require(self.width % self.heads == 0, "heads", self.heads, f"must divide the width, {self.width}.")
        _require(self.head_width % 2 == 0, "heads", self.heads, f"width {self.width} / heads must be even for rotary.")
        _require(
            self.kv_heads is None or (self.kv_heads >= 1 and self.heads % self.kv_heads == 0),
            "kv_heads", self.kv_heads, f"must divide heads, {self.heads}.",
        )  # fmt: skip
        _require(self.hidden is None or self.hidden >= 1, "hidden", self.hidden, "must be at least 1.")
        _require(self.window is None or self.window >= 1, "window", self.window, "must be at least 1, or None.")
        _require(self.rope_theta > 1, "rope_theta", self.rope_theta, "must be greater than 1.")
        _one_of("init_factor", self.init_factor, ("none", "depth", "width"))

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def hidden_width(self) -> int:
        return swiglu_width(self.width) if self.hidden is None else self.hidden


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
        _require(all(n >= 1 for n in self.sizes), "hash.sizes", self.sizes, "every n-gram length must be at least 1.")
        _require(len(set(self.sizes)) == len(self.sizes), "hash.sizes", self.sizes, "must not repeat a length.")
        _require(1 <= self.buckets < 2**31, "hash.buckets", self.buckets, "must lie in 1 .. 2^31 - 1.")
        _require(1 <= self.functions <= 11, "hash.functions", self.functions, "must lie in 1 .. 11.")
        _one_of("hash.power_order", self.power_order, ("code", "paper"))
        _one_of("hash.short_ngrams", self.short_ngrams, ("zeros", "omit"))

    @property
    def tables(self) -> int:
        return len(self.sizes) * self.functions


@dataclasses.dataclass(frozen=True)
class CrossAttentionConfig:
    """Cross-attention between bytes and patches."""

    k: int = 2  # latents per patch: how many local rows one patch is cut into
    heads: int | None = None  # None: as many as the local encoder has
    kv_heads: int | None = None  # None: as many as heads; fewer: grouped queries, as in the Hugging Face port
    encoder: Literal["last", "all", "all_repool"] = "last"  # all_repool: pool the bytes anew at every layer
    decoder: Literal["first", "all"] = "all"
    residual: Literal["double", "single"] = "double"  # code: 2 x + attention; paper: x + attention
    pooling: Literal["max", "mean", "min"] = "max"  # how the bytes of a patch make its first query

    def __post_init__(self) -> None:
        _require(self.k >= 1, "cross_attention.k", self.k, "must be at least 1.")
        _one_of("cross_attention.encoder", self.encoder, ("last", "all", "all_repool"))
        _one_of("cross_attention.decoder", self.decoder, ("first", "all"))
        _one_of("cross_attention.residual", self.residual, ("double", "single"))
        _one_of("cross_attention.pooling", self.pooling, ("max", "mean", "min"))


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

    def __post_init__(self) -> None:
        _require(
            self.encoder.width == self.decoder.width,
            "decoder.width", self.decoder.width, f"must equal encoder.width, {self.encoder.width}.",
        )  # fmt: skip
        _require(self.encoder.layers >= 1, "encoder.layers", self.encoder.layers, "must be at least 1.")
        _require(self.decoder.layers >= 1, "decoder.layers", self.decoder.layers, "must be at least 1.")
        _require(
            self.encoder.width % self.cross_heads == 0,
            "cross_attention.heads", self.cross_heads, f"must divide the local width, {self.encoder.width}.",
        )  # fmt: skip
        _require(
            self.cross_key_heads >= 1 and self.cross_heads % self.cross_key_heads == 0,
            "cross_attention.kv_heads", self.cross_key_heads, f"must divide its heads, {self.cross_heads}.",
        )  # fmt: skip

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
    def has_input_projection(self) -> bool:
        return self.patch_width != self.global_model.width


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """A flat decoder-only Transformer with its own embedding and output."""

    tower: TransformerConfig
    vocabulary_size: int = VOCABULARY_SIZE
    document_mask: bool = True
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        _require(self.vocabulary_size >= 5, "vocabulary_size", self.vocabulary_size, "needs 4 special ids and more.")


@dataclasses.dataclass(frozen=True)
class EntropyModelConfig(LanguageModelConfig):
    """The small byte model whose uncertainty sets the patches (blt reference a.12); the released sizes."""

    tower: TransformerConfig = TransformerConfig(width=768, layers=14, heads=12, window=512, rope_theta=10_000.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.vocabulary_size == VOCABULARY_SIZE,
            "vocabulary_size", self.vocabulary_size, f"a byte model has {VOCABULARY_SIZE}.",
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ByteTransformerConfig(LanguageModelConfig):
    """Baseline: a flat Transformer over bytes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.vocabulary_size == VOCABULARY_SIZE,
            "vocabulary_size", self.vocabulary_size, f"a byte model has {VOCABULARY_SIZE}.",
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TokenTransformerConfig(LanguageModelConfig):
    """Baseline: a flat Transformer over the tokens of a byte-level BPE; vocabulary_size counts the 4 special ids."""


ModelConfig = BLTConfig | EntropyModelConfig | ByteTransformerConfig | TokenTransformerConfig

FAMILIES: dict[str, type] = {
    "blt": BLTConfig,
    "entropy": EntropyModelConfig,
    "byte": ByteTransformerConfig,
    "token": TokenTransformerConfig,
}


def family_of(model: ModelConfig) -> str:
    """The short name of a model configuration's family: a key of FAMILIES."""
    return next(name for name, cls in FAMILIES.items() if type(model) is cls)


@dataclasses.dataclass(frozen=True)
class PatcherConfig:
    """How a text is cut into patches."""

    rule: Literal["entropy", "space", "strided", "byte", "bpe"] = "entropy"
    variant: Literal["global", "monotonic", "add"] = "global"  # of the entropy rule
    threshold: float | None = None  # nats; None: calibrated to mean_patch_bytes on the training split
    threshold_add: float | None = None  # nats; the rise that the variant "add" asks for besides
    size: int = 4  # bytes per patch of the strided rule
    max_patch_length: int | None = None  # bytes; longer patches are cut into pieces of this length
    mean_patch_bytes: float = 4.5  # what a threshold of None is calibrated to

    def __post_init__(self) -> None:
        _one_of("patcher.rule", self.rule, ("entropy", "space", "strided", "byte", "bpe"))
        _one_of("patcher.variant", self.variant, ("global", "monotonic", "add"))
        _require(
            self.rule != "entropy" or self.variant != "add" or self.threshold_add is not None,
            "patcher.threshold_add", self.threshold_add, 'the variant "add" needs it, in nats.',
        )  # fmt: skip
        _require(self.size >= 1, "patcher.size", self.size, "must be at least 1 byte.")
        _require(
            self.max_patch_length is None or self.max_patch_length >= 1,
            "patcher.max_patch_length", self.max_patch_length, "must be at least 1 byte, or None.",
        )  # fmt: skip
        _require(
            self.mean_patch_bytes > 1, "patcher.mean_patch_bytes", self.mean_patch_bytes, "must be more than 1 byte."
        )


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """The shape of a training batch, and the order in which rows are drawn."""

    bytes: int = 1024  # positions of a byte row, BOS and EOS included; the context of every family
    slots: int | None = None  # patches of a BLT row, or tokens of a token row; None: from the measured mean
    batch: int = 8  # rows in a global batch
    seed: int = 0  # of the order of rows

    def __post_init__(self) -> None:
        _require(self.bytes >= 2, "rows.bytes", self.bytes, "must be at least 2.")
        _require(self.slots is None or self.slots >= 2, "rows.slots", self.slots, "must be at least 2, or None.")
        _require(self.batch >= 1, "rows.batch", self.batch, "must be at least 1.")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up and a schedule. Defaults: the paper's (section 4.8), except for the length."""

    peak_rate: float = 4e-4
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.0  # of the peak rate, at the last step
    decay_fraction: float = 0.2  # wsd: share of all steps spent cooling down, as 1 - sqrt
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # on the global norm, after accumulation

    def __post_init__(self) -> None:
        _one_of("optim.schedule", self.schedule, ("cosine", "wsd", "constant"))
        _require(self.peak_rate > 0, "optim.peak_rate", self.peak_rate, "must be positive.")
        _require(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "must not be negative.")
        _require(0 <= self.final_fraction <= 1, "optim.final_fraction", self.final_fraction, "must lie in 0 .. 1.")
        _require(0 < self.decay_fraction <= 1, "optim.decay_fraction", self.decay_fraction, "must lie in (0, 1].")
        _require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "must lie in [0, 1).")
        _require(0 <= self.beta2 < 1, "optim.beta2", self.beta2, "must lie in [0, 1).")
        _require(self.epsilon > 0, "optim.epsilon", self.epsilon, "must be positive.")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must not be negative.")
        _require(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "must be positive.")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 (at most one) fills with the devices that are left."""

    replica: int = 1
    data: int = -1
    model: int = 1
    sequence: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        _require(all(s == -1 or s >= 1 for s in sizes), "mesh", sizes, "axis sizes are positive, or -1 to fill.")
        _require(sizes.count(-1) <= 1, "mesh", sizes, "only one axis may be -1.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run: what is trained, on which rows, for how long."""

    model: ModelConfig
    steps: int
    patcher: PatcherConfig | None = None  # for BLT
    rows: RowsConfig = RowsConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    accumulation: int = 1  # micro-batches a step; must divide rows.batch
    seed: int = 0  # of the initial parameters
    log_every: int = 10  # steps
    checkpoint_every: int = 200  # steps

    def __post_init__(self) -> None:
        for name in ("steps", "accumulation", "log_every", "checkpoint_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1.")
        _require(
            self.rows.batch % self.accumulation == 0,
            "accumulation", self.accumulation, f"must divide rows.batch, {self.rows.batch}.",
        )  # fmt: skip
        _require(
            self.optim.warmup_steps <= self.steps,
            "optim.warmup_steps", self.optim.warmup_steps, f"must not exceed steps, {self.steps}.",
        )  # fmt: skip
        is_blt = isinstance(self.model, BLTConfig)
        _require(is_blt == (self.patcher is not None), "patcher", self.patcher, "a BLT needs one, others take none.")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values; a model carries its family's name under "family"."""
    out: dict[str, Any] = {}
    if type(config) in FAMILIES.values():
        out["family"] = family_of(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        out[field.name] = list(value) if isinstance(value, tuple) else value
    return out


def _from_value(annotation: Any, value: Any, where: str) -> Any:
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    classes = [o for o in options if dataclasses.is_dataclass(o)]
    if isinstance(value, dict) and classes:
        if len(classes) > 1:
            _one_of(f"{where}.family", value.get("family"), tuple(FAMILIES))
            return from_dict(FAMILIES[value["family"]], value, where)
        return from_dict(classes[0], value, where)
    return tuple(value) if isinstance(value, list) else value


def from_dict(cls: type[T], values: dict[str, Any], where: str = "config") -> T:
    """The inverse of to_dict.

    Raises:
      ValueError: for an unknown key, naming the nearest known ones, or a value that a field refuses.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    arguments = {}
    for key, value in values.items():
        if key == "family" and cls in FAMILIES.values():
            if FAMILIES.get(value) is not cls:
                raise ValueError(f"{where}.family={value!r}: a {cls.__name__} was expected here.")
            continue
        if key not in names:
            near = difflib.get_close_matches(key, names, n=3, cutoff=0.4) or names
            raise ValueError(f"{where}.{key} is not a known key of {cls.__name__}; the nearest are: {', '.join(near)}.")
        arguments[key] = _from_value(hints[key], value, f"{where}.{key}")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"{where}: {error}.") from error


def config_hash(config: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the canonical JSON of a configuration."""
    canonical = json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
