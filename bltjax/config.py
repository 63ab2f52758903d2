"""Every configuration: frozen dataclasses, validated, hashable, with a JSON round trip.

Widths are numbers of features, windows and rows are numbers of bytes (or of patches for the global model),
thresholds are nats. A derived value is a property and is never stored.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from typing import Any, ClassVar, Literal, TypeVar

VOCABULARY_SIZE = 260  # 256 byte values and 4 special ids: see bltjax.vocabulary

T = TypeVar("T")


def _require(condition: bool, argument: str, value: Any, advice: str) -> None:
    if not condition:
        raise ValueError(f"{argument}={value!r}: {advice}")


def _check_choices(config: Any, prefix: str = "") -> None:
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            _one_of(f"{prefix}{name}", getattr(config, name), typing.get_args(hint))


def _at_least(config: Any, prefix: str = "", **bounds: int) -> None:
    """Every named field is None or no less than its bound."""
    for name, bound in bounds.items():
        value = getattr(config, name)
        _require(value is None or value >= bound, f"{prefix}{name}", value, f"must be at least {bound}.")


def _one_of(argument: str, value: Any, choices: tuple[Any, ...]) -> None:
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    _require(value in choices, argument, value, f"choose one of {', '.join(map(repr, choices))}.{hint}")


def swiglu_width(width: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    """Hidden width of the SwiGLU feed-forward: 8/3 of the width, rounded up, as in the released code."""
    hidden = int(multiplier * int(2 * 4 * width / 3))
    return -(-hidden // multiple_of) * multiple_of


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How a model is computed; none of it changes what is computed beyond rounding."""

    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and products; parameters are float32
    unroll: bool = False  # write the layers of a stack out one by one instead of scanning over them
    remat: Literal["none", "full", "dots"] = "none"  # what a layer recomputes in the backward pass
    attention: Literal["auto", "reference", "splash", "cudnn"] = "auto"  # back end of bltjax.attention

    def __post_init__(self) -> None:
        _check_choices(self, "compute.")


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
    init_std: float | None = None  # None: width ** -0.5 and hidden ** -0.5, as released
    # Divides that std: sqrt(2 (layers + 1)); in layer l, counted from 0, sqrt(2 (l + 1)); width / 4096.
    init_factor: Literal["none", "depth", "current_depth", "width"] = "none"

    def __post_init__(self) -> None:
        _at_least(self, width=1, layers=0, heads=1, kv_heads=1, hidden=1, window=1)
        _require(self.width % self.heads == 0, "heads", self.heads, f"must divide the width, {self.width}.")
        _require(self.head_width % 2 == 0, "heads", self.heads, f"width {self.width} / heads must be even for rotary.")
        _require(self.heads % self.key_heads == 0, "kv_heads", self.kv_heads, f"must divide heads, {self.heads}.")
        _require(self.rope_theta > 1, "rope_theta", self.rope_theta, "must be greater than 1.")
        _require(self.norm_epsilon > 0, "norm_epsilon", self.norm_epsilon, "must be positive.")
        _require(self.init_std is None or self.init_std > 0, "init_std", self.init_std, "must be positive.")
        _check_choices(self)

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
        _check_choices(self, "hash.")

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
        _at_least(self, "cross_attention.", k=1, heads=1, kv_heads=1)
        _check_choices(self, "cross_attention.")


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
        width, heads, key_heads = self.encoder.width, self.cross_heads, self.cross_key_heads
        _require(self.decoder.width == width, "decoder.width", self.decoder.width, f"must equal encoder's, {width}.")
        _at_least(self.encoder, "encoder.", layers=1)
        _at_least(self.decoder, "decoder.", layers=1)
        _require(width % heads == 0, "cross_attention.heads", heads, f"must divide the local width, {width}.")
        _require(heads % key_heads == 0, "cross_attention.kv_heads", key_heads, f"must divide its heads, {heads}.")

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
    bytes_only: ClassVar[bool] = False  # whether the family reads nothing but bytes

    def __post_init__(self) -> None:
        size, wrong = self.vocabulary_size, self.bytes_only and self.vocabulary_size != VOCABULARY_SIZE
        _require(size >= 5, "vocabulary_size", size, "needs 4 special ids and more.")
        _require(not wrong, "vocabulary_size", size, f"a byte model has {VOCABULARY_SIZE}.")


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


ModelConfig = BLTConfig | EntropyModelConfig | ByteTransformerConfig | TokenTransformerConfig

FAMILIES: dict[str, type] = {
    "blt": BLTConfig, "entropy": EntropyModelConfig, "byte": ByteTransformerConfig, "token": TokenTransformerConfig
}  # fmt: skip


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
        _check_choices(self, "patcher.")
        adds, rise = self.rule == "entropy" and self.variant == "add", self.threshold_add
        _require(not adds or rise is not None, "patcher.threshold_add", rise, 'the variant "add" needs it, in nats.')
        for name, nats in (("threshold", self.threshold), ("threshold_add", rise)):
            _require(nats is None or math.isfinite(nats), f"patcher.{name}", nats, "must be a finite number of nats.")
        _at_least(self, "patcher.", size=1, max_patch_length=1)
        _require(self.mean_patch_bytes > 1, "patcher.mean_patch_bytes", self.mean_patch_bytes, "must exceed 1 byte.")


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """The shape of a training batch, and the order in which rows are drawn."""

    bytes: int = 1024  # positions of a byte row, BOS and EOS included; the context of every family
    slots: int | None = None  # patches of a BLT row, or tokens of a token row; None: from the measured mean
    batch: int = 8  # rows in a global batch
    seed: int = 0  # of the order of rows

    def __post_init__(self) -> None:
        _at_least(self, "rows.", bytes=2, slots=2, batch=1)


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
    first_moment: Literal["float32", "bfloat16"] = "float32"  # how it is kept between steps
    spike_deviations: float | None = None  # a loss or gradient norm so far above the mean is skipped; None: none is
    spike_steps: int = 128  # over how many steps mean and deviation are taken

    def __post_init__(self) -> None:
        _check_choices(self, "optim.")
        for name in ("peak_rate", "epsilon", "clip_norm", "spike_deviations"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"optim.{name}", value, "must be positive.")
        _at_least(self, "optim.", warmup_steps=0, weight_decay=0, spike_steps=2)
        _require(0 <= self.final_fraction <= 1, "optim.final_fraction", self.final_fraction, "must lie in 0 .. 1.")
        _require(0 < self.decay_fraction <= 1, "optim.decay_fraction", self.decay_fraction, "must lie in (0, 1].")
        _require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "must lie in [0, 1).")
        _require(0 <= self.beta2 < 1, "optim.beta2", self.beta2, "must lie in [0, 1).")


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
    checkpoint_every: int = 200  # steps; the newest two of these are kept
    keep_every: int | None = None  # steps; a checkpoint that is kept for good
    max_skips: int = 3  # steps in a row without an update, at which the run ends

    def __post_init__(self) -> None:
        _at_least(self, steps=1, accumulation=1, log_every=1, checkpoint_every=1, keep_every=1, max_skips=1)
        batch, pieces, warmup = self.rows.batch, self.accumulation, self.optim.warmup_steps
        _require(batch % pieces == 0, "accumulation", pieces, f"must divide rows.batch, {batch}.")
        _require(warmup <= self.steps, "optim.warmup_steps", warmup, f"must not exceed steps, {self.steps}.")
        is_blt = isinstance(self.model, BLTConfig)
        _require(is_blt == (self.patcher is not None), "patcher", self.patcher, "a BLT needs one, others take none.")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values; a model carries its family's name under "family"."""
    out: dict[str, Any] = {"family": family_of(config)} if type(config) in FAMILIES.values() else {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        plain = to_dict(value) if dataclasses.is_dataclass(value) else value
        out[field.name] = list(plain) if isinstance(plain, tuple) else plain
    return out


def _from_value(annotation: Any, value: Any, where: str) -> Any:
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    classes: list[Any] = [o for o in options if dataclasses.is_dataclass(o)]
    if isinstance(value, dict) and classes:
        if len(classes) > 1:
            _one_of(f"{where}.family", value.get("family"), tuple(FAMILIES))
            return from_dict(FAMILIES[value["family"]], value, where)
        return from_dict(classes[0], value, where)
    value = tuple(value) if isinstance(value, list) else value
    if not any(_fits(option, value) for option in options):
        names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
        raise ValueError(f"{where}={value!r}: must be a value of type {names}.")
    return value


def _fits(option: Any, value: Any) -> bool:
    if typing.get_origin(option) is Literal:
        return True  # the configuration itself names the choices
    if typing.get_origin(option) is tuple:
        return isinstance(value, tuple) and all(type(item) is int for item in value)
    return type(value) is option or (option is float and type(value) is int)


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
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def config_hash(config: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the canonical JSON of a configuration."""

    def number(text: str) -> float:  # 10000.0 and 10000 make equal configurations, so they are written alike
        return int(float(text)) if float(text).is_integer() else float(text)

    values = json.loads(json.dumps(to_dict(config)), parse_float=number)
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
