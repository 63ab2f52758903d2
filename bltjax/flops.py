"""Analytic FLOPs and parameters by group, without building a model.

Two accountings, both per byte of raw text, one multiply-add being two FLOPs:

- `paper` is BLT paper eq. 13-17 to the letter: five terms, attention halved for causality as (m + 1) / 2 keys with m
  the window or the context, a feed-forward of four widths, an output over 256 values, no patch projections, no
  entropy model, no padding.
  Of MEGABYTE and SpaceByte it has the towers by the same formulas, MEGABYTE's local one with keys within a patch.
- `full` counts every matrix product of this package: patch and input projections, hidden widths and key heads as
  configured, the mean number of keys min(window, position), the output over the whole vocabulary, padded positions,
  the entropy model's inference, and the entropy model's training divided over the runs that share it.

Neither counts look-ups (byte and hash embeddings), norms, softmax, rotary or the optimiser, nor products that a back
end computes and then masks.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from bltjax.config import (
    VOCABULARY_SIZE,
    BLTConfig,
    EntropyModelConfig,
    LanguageModelConfig,
    MegabyteConfig,
    ModelConfig,
    SpaceByteConfig,
    TokenTransformerConfig,
    TransformerConfig,
)

Accounting = Literal["paper", "full"]
ACCOUNTING_VERSIONS: dict[str, str] = {"paper": "paper-v1", "full": "full-v1"}

# Dense bfloat16 peaks of one chip in FLOP/s, as their makers state them; noted 2026-11-22, check before booking.
# One v5p chip is two TensorCores: a slice "v5p-256" has 128 chips.
PEAKS: dict[str, float] = {
    "tpu-v4": 275e12,
    "tpu-v5e": 197e12,
    "tpu-v5p": 459e12,
    "tpu-v6e": 918e12,
    "nvidia-a100": 312e12,
    "nvidia-h100": 989e12,
}

_PATCHER_PARTS = ("patcher_inference", "patcher_training")


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """FLOPs per byte of raw text, by part.

    `parts` holds the forward pass of each part of the model and, in the full accounting with a patcher,
    "patcher_inference" (one forward pass of the entropy model) and "patcher_training" (its share of that training).
    """

    accounting: str  # "paper-v1" or "full-v1"
    parts: Mapping[str, float]

    @property
    def model(self) -> float:
        """Forward FLOPs per byte of the model alone."""
        return math.fsum(value for name, value in self.parts.items() if name not in _PATCHER_PARTS)

    @property
    def forward(self) -> float:
        """FLOPs per byte at inference: the model and, if counted, the entropy model that patches for it."""
        return self.model + self.parts.get("patcher_inference", 0.0)

    @property
    def training(self) -> float:
        """FLOPs per byte in training: three forward passes of the model; the patcher scores each byte once."""
        return 3 * self.model + math.fsum(self.parts.get(name, 0.0) for name in _PATCHER_PARTS)


def _paper_attention(layers: int, width: int, keys: float) -> float:
    return 4 * layers * width * (keys + 1) / 2


def _paper_qkvo(layers: int, width: int, keys_per_query: float) -> float:
    return (2 * keys_per_query + 2) * 2 * layers * width**2


def _paper_transformer(tower: TransformerConfig, context: float, vocabulary_size: int) -> float:
    keys = context if tower.window is None else min(tower.window, context)
    feed_forward = 2 * tower.layers * 2 * 4 * tower.width**2
    attention = _paper_attention(tower.layers, tower.width, keys)
    return feed_forward + _paper_qkvo(tower.layers, tower.width, 1) + attention + 2 * tower.width * vocabulary_size


def _paper_cross(layers: int, width: int, keys: float, keys_per_query: float) -> float:
    return _paper_attention(layers, width, keys) + _paper_qkvo(layers, width, keys_per_query)


def _paper_parts(config: ModelConfig, patch_size: float, context_bytes: int) -> dict[str, float]:
    if isinstance(config, MegabyteConfig):
        size, local = config.patch_bytes, dataclasses.replace(config.local_model, window=_reach(config))
        latent = _paper_transformer(config.global_model, context_bytes / size, 0) / size
        return _passes(config, {"global": latent, "local": _paper_transformer(local, context_bytes, 256)})
    if isinstance(config, SpaceByteConfig):
        return {
            "encoder": _paper_transformer(config.encoder, context_bytes, 0),
            "global": _paper_transformer(config.global_model, context_bytes / patch_size, 0) / patch_size,
            "decoder": _paper_transformer(config.decoder, context_bytes, 256),
        }
    if not isinstance(config, BLTConfig):
        # The paper writes 256 for the output over bytes.
        outputs = config.vocabulary_size if _is_token(config) else 256
        return {"tower": _paper_transformer(config.tower, context_bytes / patch_size, outputs) / patch_size}
    k = config.cross_attention.k
    encoder, decoder = config.encoder, config.decoder
    encoder_layers, decoder_layers = cross_layers(config)  # the paper writes l_E and l_D: it has them in all layers
    encoder_cross = _paper_cross(encoder_layers, encoder.width, patch_size, patch_size / k)
    return {
        "encoder": _paper_transformer(encoder, context_bytes, 0),
        "encoder_cross": encoder_cross * k / patch_size,
        "global": _paper_transformer(config.global_model, context_bytes / patch_size, 0) / patch_size,
        "decoder_cross": _paper_cross(decoder_layers, decoder.width, k, k / patch_size),
        "decoder": _paper_transformer(decoder, context_bytes, 256),
    }


def _reach(config: MegabyteConfig) -> int:
    """A window m with as many keys in the mean, (m + 1) / 2, as MEGABYTE's bytes have in their patch and before it."""
    return config.patch_bytes + 2 * config.cross_patch_bytes


def _passes(config: MegabyteConfig, parts: dict[str, float]) -> dict[str, float]:
    return {name: value * (2 if config.inference == "strided" else 1) for name, value in parts.items()}


def _is_token(config: ModelConfig) -> bool:
    return isinstance(config, TokenTransformerConfig)


def mean_keys(window: int | None, length: float) -> float:
    """Mean over the positions of a row of `length` of the keys a causal query sees: min(window, position + 1)."""
    if window is None or length <= window:
        return (length + 1) / 2
    return (window * (window + 1) / 2 + (length - window) * window) / length


def _full_tower(tower: TransformerConfig, length: float, keys: float | None = None) -> float:
    """Forward FLOPs of one row of `length` positions, each of which sees so many keys in the mean."""
    key_width = tower.key_heads * tower.head_width
    projections = 2 * tower.width * (2 * tower.width + 2 * key_width)
    attention = 4 * (mean_keys(tower.window, length) if keys is None else keys) * tower.width
    feed_forward = 3 * 2 * tower.width * tower.hidden_width
    return tower.layers * length * (projections + attention + feed_forward)


def _full_parts(
    config: ModelConfig, patch_size: float, context_bytes: int, byte_fill: float, patch_fill: float
) -> dict[str, float]:
    raw = context_bytes * byte_fill  # bytes of raw text in a row
    slots = raw / patch_size / patch_fill  # patches or tokens in a row, empty ones included
    if isinstance(config, MegabyteConfig):
        return _passes(config, {name: value / raw for name, value in _full_megabyte(config, context_bytes).items()})
    if isinstance(config, SpaceByteConfig):
        parts = {
            "encoder": _full_tower(config.encoder, context_bytes),
            "global": _full_tower(config.global_model, slots),
            "decoder": _full_tower(config.decoder, context_bytes),
            "output": context_bytes * 2 * config.decoder.width * VOCABULARY_SIZE,
        }
        return {name: value / raw for name, value in parts.items()}
    if not isinstance(config, BLTConfig):
        length = slots if _is_token(config) else context_bytes
        output = 2 * config.tower.width * config.vocabulary_size * length
        return {"tower": _full_tower(config.tower, length) / raw, "output": output / raw}
    cross, width, global_width = config.cross_attention, config.encoder.width, config.global_model.width
    rows = slots * cross.k
    encoder_layers, decoder_layers = cross_layers(config)
    square = 2 * width**2  # queries and output; keys and values may have fewer heads
    narrow = square * config.cross_key_heads // config.cross_heads
    products = 4 * context_bytes * cross.k * width  # each byte meets the k rows of one patch, twice
    pools = 0 if cross.pooling == "none" else encoder_layers if cross.encoder == "all_repool" else 1
    parts = {
        "encoder": _full_tower(config.encoder, context_bytes),
        "encoder_projection": pools * slots * 2 * width * config.patch_width,
        "encoder_cross": encoder_layers * (2 * rows * square + 2 * context_bytes * narrow + products),
        "global": _full_tower(config.global_model, slots),
        "decoder_projection": slots * 2 * global_width * config.read_width,
        "decoder_cross": decoder_layers * (2 * context_bytes * square + 2 * rows * narrow + products),
        "decoder": _full_tower(config.decoder, context_bytes),
        "output": context_bytes * 2 * width * VOCABULARY_SIZE,
    }
    if config.has_input_projection:
        parts["global_projection"] = slots * 2 * config.patch_width * global_width
    return {name: value / raw for name, value in parts.items()}


def _full_megabyte(config: MegabyteConfig, context_bytes: int) -> dict[str, float]:
    """Forward FLOPs of one row, by part."""
    size, width, local = config.patch_bytes, config.embedding_width, config.local_model
    patches = -(-context_bytes // size)
    length = patches * size
    keys = (size + 1) / 2 + config.cross_patch_bytes * (patches - 1) / patches
    return {
        "patch_encoder": length * sum(config.filters) * 2 * width**2,
        "global": _full_tower(config.global_model, patches),
        "global_projection": length * 2 * width * local.width,
        "local": _full_tower(local, length, keys),
        "output": length * 2 * local.width * VOCABULARY_SIZE,
    }


def cross_layers(config: BLTConfig) -> tuple[int, int]:
    """How many layers of the local encoder and of the local decoder have cross-attention."""
    cross = config.cross_attention
    every = {"none": 0, "last": 1, "first": 1}
    return every.get(cross.encoder, config.encoder.layers), every.get(cross.decoder, config.decoder.layers)


def _check(condition: bool, argument: str, value: object, advice: str) -> None:
    if not condition:
        raise ValueError(f"{argument}={value!r}: {advice}")


def flops_per_byte(
    config: ModelConfig,
    patch_size: float,
    context_bytes: int,
    accounting: Accounting = "paper",
    *,
    byte_fill: float = 1.0,
    patch_fill: float = 1.0,
    patcher: EntropyModelConfig | None = None,
    patcher_context_bytes: int | None = None,
    patcher_training_bytes: float = 0.0,
    patcher_runs: int = 1,
    run_bytes: float | None = None,
) -> Breakdown:
    """FLOPs per byte of raw text of one model (BLT paper section 4.5 and eq. 13-17, or everything).

    Args:
      config: the model.
      patch_size: mean bytes per patch (BLT, SpaceByte) or per token (token family) as measured; 1 for models of bytes,
        MEGABYTE among them, whose patches are its configuration's.
      context_bytes: byte positions of a row.
      accounting: "paper" or "full"; the arguments below belong to "full" alone.
      byte_fill: bytes of raw text per byte position; the others are padding and document marks. For the token
        family, whose rows hold no byte positions, it only scales the context.
      patch_fill: patches (or tokens) that hold text per patch (or token) slot.
      patcher: the entropy model that cuts the patches, if there is one.
      patcher_context_bytes: its row; by default context_bytes.
      patcher_training_bytes: bytes it was trained on; its training FLOPs are divided by patcher_runs * run_bytes.
      patcher_runs: number of runs among which its training is shared.
      run_bytes: bytes this run trains on; needed if patcher_training_bytes is given.

    Raises:
      ValueError: for a value out of range, or a full-accounting argument with the paper accounting.
    """
    _check(accounting in ACCOUNTING_VERSIONS, "accounting", accounting, 'choose "paper" or "full".')
    _check(patch_size >= 1, "patch_size", patch_size, "a patch or token holds at least 1 byte on average.")
    _check(context_bytes >= patch_size, "context_bytes", context_bytes, "must hold at least one patch.")
    is_bytes = not config.reads_patches and not _is_token(config)
    _check(not is_bytes or patch_size == 1, "patch_size", patch_size, "is 1 for a model that reads bytes alone.")
    for name, value in (("byte_fill", byte_fill), ("patch_fill", patch_fill)):
        _check(0 < value <= 1, name, value, "is a share: more than 0, at most 1.")
    _check(patcher_training_bytes >= 0, "patcher_training_bytes", patcher_training_bytes, "must not be negative.")
    _check(patcher_runs >= 1, "patcher_runs", patcher_runs, "must be at least 1.")
    _check(run_bytes is None or run_bytes > 0, "run_bytes", run_bytes, "must be positive.")
    _check(
        patcher is not None or not patcher_training_bytes,
        "patcher_training_bytes", patcher_training_bytes, "name the patcher that was trained.",
    )  # fmt: skip
    _check(not patcher_training_bytes or run_bytes is not None, "run_bytes", run_bytes, "say how long this run is.")
    if accounting == "paper":
        _check(patcher is None, "patcher", patcher, "the paper's accounting has none; use accounting='full'.")
        _check(byte_fill == patch_fill == 1, "byte_fill", byte_fill, "the paper's accounting has no padding.")
        return Breakdown(ACCOUNTING_VERSIONS["paper"], _paper_parts(config, patch_size, context_bytes))
    parts = _full_parts(config, patch_size, context_bytes, byte_fill, patch_fill)
    if patcher is not None:
        once = math.fsum(_full_parts(patcher, 1, patcher_context_bytes or context_bytes, 1.0, 1.0).values())
        parts["patcher_inference"] = once
        if run_bytes is not None:
            parts["patcher_training"] = 3 * once * patcher_training_bytes / (patcher_runs * run_bytes)
    return Breakdown(ACCOUNTING_VERSIONS["full"], parts)


def _tower_parameters(tower: TransformerConfig) -> int:
    key_width = tower.key_heads * tower.head_width
    attention = 2 * tower.width**2 + 2 * tower.width * key_width
    return tower.layers * (attention + 3 * tower.width * tower.hidden_width + 2 * tower.width)


def parameters(config: ModelConfig) -> dict[str, int]:
    """Number of parameters of each group of a model; the sum of the values is the whole model.

    The groups of a BLT: byte_embedding, hash_embedding, encoder, encoder_cross (with its patch projection, or the
    queries that are learned, and the input projection of the global model), global, decoder_cross (with its patch
    projection), decoder, output. Of a flat model: embedding, tower, output. An output includes the norm before it. Of
    MEGABYTE: global_embedding, position_embedding, pad_embedding, patch_encoder, global (with its norm),
    global_projection, local, output (which is the local embedding too). Of SpaceByte: byte_embedding, encoder, global,
    decoder, output.
    """
    if isinstance(config, MegabyteConfig):
        size, width, local_width = config.patch_bytes, config.embedding_width, config.local_model.width
        return {
            "global_embedding": VOCABULARY_SIZE * width,
            "position_embedding": config.context_bytes * width,
            "pad_embedding": size * width + local_width,
            "patch_encoder": sum(config.filters) * width**2,
            "global": _tower_parameters(config.global_model) + config.global_model.width,
            "global_projection": width * local_width,
            "local": _tower_parameters(config.local_model),
            "output": local_width + VOCABULARY_SIZE * local_width,
        }
    if isinstance(config, SpaceByteConfig):
        width = config.encoder.width
        return {
            "byte_embedding": VOCABULARY_SIZE * width,
            "encoder": _tower_parameters(config.encoder),
            "global": _tower_parameters(config.global_model),
            "decoder": _tower_parameters(config.decoder),
            "output": width + width * VOCABULARY_SIZE,
        }
    if isinstance(config, LanguageModelConfig):
        width = config.tower.width
        return {
            "embedding": config.vocabulary_size * width,
            "tower": _tower_parameters(config.tower),
            "output": width + width * config.vocabulary_size,
        }
    width, global_width = config.encoder.width, config.global_model.width
    encoder_layers, decoder_layers = cross_layers(config)
    cross = 2 * width**2 + 2 * width**2 * config.cross_key_heads // config.cross_heads + 2 * width
    input_projection = config.patch_width * global_width if config.has_input_projection else 0
    learned = config.cross_attention.pooling == "none"
    first = config.cross_attention.k * width if learned else width * config.patch_width
    return {
        "byte_embedding": VOCABULARY_SIZE * width,
        "hash_embedding": config.hash.tables * config.hash.buckets * width,
        "encoder": _tower_parameters(config.encoder),
        "encoder_cross": first + encoder_layers * cross + input_projection,
        "global": _tower_parameters(config.global_model),
        "decoder_cross": global_width * config.read_width + decoder_layers * cross,
        "decoder": _tower_parameters(config.decoder),
        "output": width + width * VOCABULARY_SIZE,
    }


def non_embedding_parameters(config: ModelConfig) -> int:
    """Parameters that multiply: everything but the byte, token and hash look-up tables. The N of this package."""
    return sum(count for name, count in parameters(config).items() if not name.endswith("embedding"))


def mfu(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation: the share of `peak` (FLOP/s of all chips together) that a computation reached."""
    for name, value in (("flops", flops), ("seconds", seconds), ("peak", peak)):
        _check(value > 0, name, value, "must be positive.")
    return flops / seconds / peak
