"""The config.json of `BltForCausalLM`, read into configurations and written from them.

Nothing that would compute something else is passed over: what one side says and the other cannot express is an error
that names the key or field. The exceptions are listed in `bltjax.interop.huggingface`.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bltjax.config import (
    VOCABULARY_SIZE,
    BLTConfig,
    CrossAttentionConfig,
    EntropyModelConfig,
    HashConfig,
    TransformerConfig,
)

Params = dict[str, Any]
ShapeOf = Callable[[str], tuple[int, ...] | None]  # of a tensor in the file, if it is there


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its weights and, if it has one, the entropy model and threshold that cut its patches."""

    config: BLTConfig
    params: Params  # float32
    entropy_config: EntropyModelConfig | None = None
    entropy_params: Params | None = None  # float32
    threshold: float | None = None  # nats, of the global entropy rule
    max_patch_length: int | None = None  # bytes


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      FileNotFoundError, ValueError: naming the file, where it is missing or holds something else.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: it says what the tensors mean.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON text ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return values


@dataclasses.dataclass(frozen=True)
class _Section:
    """One object of config.json; its errors name the file and the key."""

    where: str
    values: dict[str, Any]

    def read(self, key: str, kind: Any, *default: Any) -> Any:
        if key not in self.values and default:
            return default[0]
        if key not in self.values:
            raise ValueError(f"{self.where} lacks the key {key}.")
        value = self.values[key]
        if kind in (float, float | None) and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{self.where}.{key}={value!r}: must be {getattr(kind, '__name__', kind)}.")
        return value

    def section(self, key: str) -> "_Section":
        return _Section(f"{self.where}: {key}", self.read(key, dict))

    def integers(self, key: str) -> tuple[int, ...]:
        values = self.read(key, list)
        if not all(type(value) is int for value in values):
            raise ValueError(f"{self.where}.{key}={values!r}: must be a list of whole numbers.")
        return tuple(values)

    def expect(self, key: str, expected: Any, advice: str) -> None:
        value = self.values.get(key)
        if value is not None and value != expected:
            raise ValueError(f"{self.where}.{key}={value!r}: {advice}")


def read_config(path: Path, shape_of: ShapeOf, windows: bool) -> Pretrained:
    """What a config.json says, still without params.

    Args:
      shape_of: the shape of a tensor in the checkpoint, which settles what the file leaves open.
      windows: False: full causal attention whatever the file says.

    Raises:
      ValueError: for a key that is missing, of the wrong type, or means something this project does not compute.
    """
    top = _Section(str(path), read_json(path))
    top.expect("model_type", "blt", 'only "blt" can be read.')
    top.read("model_type", str)
    top.expect("tie_word_embeddings", False, "tied embeddings are not supported; untie the output first.")
    top.expect("quantization_config", None, "quantised weights are not supported.")
    encoder, decoder, latent = (top.section(f"{name}_config") for name in ("encoder", "decoder", "global"))
    for section in (top, encoder, decoder):
        section.expect("vocab_size", VOCABULARY_SIZE, f"a byte model has {VOCABULARY_SIZE}.")
    k = top.read("cross_attn_k", int)
    for section in (encoder, decoder):
        section.expect("cross_attn_k", k, f"must equal the cross_attn_k={k} of the whole model.")
    window = top.read("local_attention_window_len", int | None, 512) if windows else None
    tower = _read_tower(encoder, "model.local_encoder", shape_of, window, 500_000.0)
    latent_tower = _read_tower(latent, "model.global_transformer", shape_of, None, 500_000.0)
    decoder_tower = _read_tower(decoder, "model.local_decoder", shape_of, window, 500_000.0)
    decoder.expect("hidden_size_global", latent_tower.width, f"must equal the global width, {latent_tower.width}.")
    for key, theirs, ours in (
        ("num_attention_heads", decoder_tower.heads, tower.heads),
        ("num_key_value_heads", decoder_tower.key_heads, tower.key_heads),
    ):
        if theirs != ours:
            advice = f"must equal encoder_config.{key}={ours}, since both cross-attentions have the same heads here."
            raise ValueError(f"{decoder.where}.{key}={theirs}: {advice}")
    every_encoder_layer = encoder.read("cross_attn_all_layers", bool) and tower.layers > 1
    every_decoder_layer = decoder.read("cross_attn_all_layers", bool)
    sizes = top.integers("encoder_hash_byte_group_size")
    buckets = top.read("encoder_hash_byte_group_vocab", int)
    functions = top.read("encoder_hash_byte_group_nb_functions", int)
    try:
        config = BLTConfig(
            encoder=tower,
            global_model=latent_tower,
            decoder=decoder_tower,
            cross_attention=CrossAttentionConfig(
                k=k,
                kv_heads=tower.kv_heads,
                encoder="all_repool" if every_encoder_layer else "last",
                decoder="all" if every_decoder_layer else "first",
            ),
            hash=HashConfig(sizes, buckets, functions),
            document_mask=False,
        )
    except ValueError as error:
        raise ValueError(f"{top.where}: {error}") from error
    max_patch_length = top.read("max_patch_length", int | None, None)
    if max_patch_length is not None and max_patch_length < 1:
        raise ValueError(f"{top.where}.max_patch_length={max_patch_length}: must be at least 1 byte, or null.")
    entropy_config = None
    entropy_rule = top.read("patching_mode", str | None, "entropy") == "entropy"
    if top.read("patch_in_forward", bool):
        top.expect("patching_mode", "entropy", 'transformers computes no other rule than "entropy".')
        for key, value in (("monotonicity", False), ("patching_threshold_add", None)):
            top.expect(key, value, "transformers ignores this rule, and a threshold alone cannot stand for it.")
        patcher = top.section("patcher_config")
        patcher.expect("vocab_size", VOCABULARY_SIZE, f"a byte model has {VOCABULARY_SIZE}.")
        window = patcher.read("sliding_window", int | None, 512) if windows else None
        tower = _read_tower(patcher, "model.patcher", shape_of, window, 10_000.0)
        entropy_config = EntropyModelConfig(tower, document_mask=False)
    return Pretrained(
        config,
        params={},
        entropy_config=entropy_config,
        threshold=top.read("patching_threshold", float | None, None) if entropy_rule else None,
        max_patch_length=max_patch_length,
    )


def _read_tower(
    section: _Section, prefix: str, shape_of: ShapeOf, window: int | None, theta: float
) -> TransformerConfig:
    section.expect("hidden_act", "silu", 'only "silu" (SwiGLU) is computed.')
    section.expect("dropout", 0.0, "dropout is not supported; set it to 0.")
    width, heads = section.read("hidden_size", int), section.read("num_attention_heads", int)
    section.expect("head_dim", width // max(1, heads), f"must be hidden_size / num_attention_heads, {width} / {heads}.")
    epsilon = section.read("rms_norm_eps", float, 1e-5)
    section.expect("norm_eps", epsilon, f"transformers reads rms_norm_eps only, which is {epsilon}; make them agree.")
    kv_heads, hidden = (section.read(key, int | None, None) for key in ("num_key_value_heads", "intermediate_size"))
    if hidden is None:
        # Releases of transformers differ in the default of this key; the weights know.
        hidden = (shape_of(f"{prefix}.layers.0.mlp.gate_proj.weight") or (None,))[0]
    try:
        return TransformerConfig(
            width=width,
            layers=section.read("num_hidden_layers", int),
            heads=heads,
            kv_heads=None if kv_heads == heads else kv_heads,
            hidden=hidden,
            window=window,
            rope_theta=_read_theta(section, theta),
            norm_epsilon=epsilon,
        )
    except ValueError as error:
        raise ValueError(f"{section.where}: {error}") from error


def _read_theta(section: _Section, default: float) -> float:
    """The base of rotary embedding, which newer releases of transformers write inside `rope_parameters`."""
    found = {section.read("rope_theta", float | None, None)}
    for key in ("rope_parameters", "rope_scaling"):
        values = section.read(key, dict | None, None) or {}
        kind = values.get("rope_type", values.get("type", "default"))
        if kind != "default" or values.keys() - {"rope_type", "type", "rope_theta"}:
            raise ValueError(f"{section.where}.{key}={values!r}: only the default rotary embedding is computed.")
        found.add(_Section(f"{section.where}.{key}", values).read("rope_theta", float | None, None))
    stated = sorted(theta for theta in found if theta is not None)
    if len(stated) > 1:
        raise ValueError(f"{section.where}: rope_theta and rope_parameters disagree ({stated}); correct one.")
    return stated[0] if stated else default


def write_config(pretrained: Pretrained, one_document_rows: bool) -> dict[str, Any]:
    """The values of config.json.

    Raises:
      ValueError: for a field with which `BltForCausalLM` would compute something else.
    """
    config, entropy = pretrained.config, pretrained.entropy_config
    cross, ngrams = config.cross_attention, config.hash
    masked = config.document_mask or (entropy is not None and entropy.document_mask)
    if masked and not one_document_rows:
        raise ValueError(
            "document_mask=True: transformers has no document masks and computes the same for rows of one document "
            "only. Pass one_document_rows=True if the checkpoint will be used on such rows."
        )
    local_heads = (config.encoder.heads, config.encoder.key_heads)
    for field, value, possible in (
        ("cross_attention.residual", cross.residual, cross.residual == "double"),
        ("cross_attention.pooling", cross.pooling, cross.pooling == "max"),
        ("cross_attention.encoder", cross.encoder, cross.encoder != "none"),
        ("cross_attention.encoder", cross.encoder, cross.encoder != "all" or config.encoder.layers == 1),
        ("cross_attention.decoder", cross.decoder, cross.decoder != "none"),
        ("cross_attention.heads", cross.heads, config.cross_heads == local_heads[0]),
        ("cross_attention.kv_heads", cross.kv_heads, config.cross_key_heads == local_heads[1]),
        ("decoder.heads", config.decoder.heads, config.decoder.heads == local_heads[0]),
        ("decoder.kv_heads", config.decoder.kv_heads, config.decoder.key_heads == local_heads[1]),
        ("decoder.window", config.decoder.window, config.decoder.window == config.encoder.window),
        ("global_model.window", config.global_model.window, config.global_model.window is None),
        ("hash.sizes", ngrams.sizes, bool(ngrams.sizes)),
        ("hash.normalize", ngrams.normalize, not ngrams.normalize),
        ("hash.power_order", ngrams.power_order, ngrams.power_order == "code"),
        ("hash.short_ngrams", ngrams.short_ngrams, ngrams.short_ngrams == "zeros"),
    ):
        if not possible:
            raise ValueError(f"{field}={value!r}: BltForCausalLM cannot express this; it would compute something else.")
    shared = {"cross_attn_k": cross.k, "vocab_size": VOCABULARY_SIZE, "hidden_size_global": config.global_model.width}
    values: dict[str, Any] = {
        "architectures": ["BltForCausalLM"],
        "model_type": "blt",
        "dtype": "float32",
        "use_cache": False,  # with a cache transformers computes something else: it hashes and patches new bytes alone
        "tie_word_embeddings": False,
        "vocab_size": VOCABULARY_SIZE,
        "cross_attn_k": cross.k,
        "local_attention_window_len": config.encoder.window,
        "encoder_hash_byte_group_size": list(ngrams.sizes),
        "encoder_hash_byte_group_vocab": ngrams.buckets,
        "encoder_hash_byte_group_nb_functions": ngrams.functions,
        "patch_in_forward": entropy is not None,
        "patching_mode": "entropy",
        "patching_threshold": pretrained.threshold,
        "max_patch_length": pretrained.max_patch_length,
        "encoder_config": _write_tower(config.encoder, "blt_local_encoder")
        | shared
        | {"cross_attn_all_layers": cross.encoder != "last", "sliding_window": config.encoder.window},
        "decoder_config": _write_tower(config.decoder, "blt_local_decoder")
        | shared
        | {"cross_attn_all_layers": cross.decoder == "all"},
        "global_config": _write_tower(config.global_model, "blt_global_transformer"),
    }
    if entropy is not None:
        values["patcher_config"] = _write_tower(entropy.tower, "blt_patcher") | {
            "vocab_size": VOCABULARY_SIZE,
            "sliding_window": entropy.tower.window,
        }
    return values


def _write_tower(tower: TransformerConfig, kind: str) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "num_key_value_heads": tower.key_heads,
        "intermediate_size": tower.hidden_width,
        "hidden_act": "silu",
        "dropout": 0.0,
        "rms_norm_eps": tower.norm_epsilon,
        # In both spellings: older releases read the first alone, newer ones write the second.
        "rope_theta": tower.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": tower.rope_theta},
    }
