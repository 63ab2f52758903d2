"""config.json of `BltForCausalLM`: every spelling is understood, and nothing that matters is passed over."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bltjax.config import BLTConfig, CrossAttentionConfig, EntropyModelConfig, HashConfig, TransformerConfig
from bltjax.interop.huggingface_config import Pretrained, read_config, write_config
from bltjax.presets import preset

LOCAL = TransformerConfig(width=8, layers=2, heads=2, hidden=12, window=6)
CONFIG = BLTConfig(
    encoder=LOCAL,
    global_model=TransformerConfig(width=12, layers=3, heads=2, hidden=20),
    decoder=LOCAL,
    hash=HashConfig(sizes=(3, 5), buckets=7),
    document_mask=False,
)
ENTROPY = EntropyModelConfig(TransformerConfig(8, 2, 2, hidden=16, window=5, rope_theta=10_000.0), document_mask=False)
PRETRAINED = Pretrained(CONFIG, {}, ENTROPY, {}, 1.25, 9)

# The released 1B as its mirrors describe it, with the keys that matter here.
RELEASED = {
    "model_type": "blt", "vocab_size": 260, "patch_in_forward": True, "patch_size": 4, "patching_mode": "entropy",
    "patching_threshold": 1.335442066192627, "max_patch_length": None, "cross_attn_k": 2, "tie_word_embeddings": False,
    "encoder_hash_byte_group_size": [3, 4, 5, 6, 7, 8], "encoder_hash_byte_group_vocab": 500002,
    "encoder_hash_byte_group_nb_functions": 1,
    "patcher_config": {
        "vocab_size": 260, "hidden_size": 768, "num_hidden_layers": 14, "num_attention_heads": 12,
        "intermediate_size": 2048, "norm_eps": 1e-5, "rope_theta": 10000.0,
    },
    "encoder_config": {
        "vocab_size": 260, "hidden_size": 1024, "hidden_size_global": 2048, "num_hidden_layers": 1,
        "num_attention_heads": 16, "intermediate_size": 2816, "cross_attn_k": 2, "cross_attn_all_layers": False,
        "norm_eps": 1e-5, "rope_theta": 500000.0,
    },
    "decoder_config": {
        "vocab_size": 260, "hidden_size": 1024, "hidden_size_global": 2048, "num_hidden_layers": 9,
        "num_attention_heads": 16, "intermediate_size": 2816, "cross_attn_k": 2, "cross_attn_all_layers": True,
        "norm_eps": 1e-5, "rope_theta": 500000.0,
    },
    "global_config": {
        "hidden_size": 2048, "num_hidden_layers": 25, "num_attention_heads": 16, "intermediate_size": 5632,
        "norm_eps": 1e-5, "rope_theta": 500000.0,
    },
}  # fmt: skip


def changed(values: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """A copy with one key set; where: keys joined by dots. The value "absent" removes it."""
    values = copy.deepcopy(values)
    *outer, last = where.split(".")
    inner = values
    for key in outer:
        inner = inner[key]
    inner[last] = value
    if value == "absent":
        del inner[last]
    return values


def read(tmp_path: Path, values: Any, windows: bool = True, shapes: dict[str, tuple[int, ...]] | None = None):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    return read_config(path, (shapes or {}).get, windows)


def test_the_released_1b(tmp_path: Path):
    found = read(tmp_path, RELEASED)
    released, entropy = preset("blt-1b"), preset("entropy-100m")
    assert isinstance(released, BLTConfig)
    assert isinstance(entropy, EntropyModelConfig)
    assert found.entropy_config is not None
    for ours, theirs in (
        (released.encoder, found.config.encoder),
        (released.global_model, found.config.global_model),
        (released.decoder, found.config.decoder),
        (entropy.tower, found.entropy_config.tower),
    ):
        assert theirs == dataclasses.replace(ours, hidden=ours.hidden_width)
    assert found.config.hash == released.hash
    assert found.config.cross_attention == released.cross_attention
    assert not found.config.document_mask
    assert not found.entropy_config.document_mask
    assert found.threshold == 1.335442066192627


def test_what_is_written_is_read_back(tmp_path: Path):
    assert read(tmp_path, write_config(PRETRAINED, False)) == dataclasses.replace(
        PRETRAINED, params={}, entropy_params=None
    )


@pytest.mark.parametrize(("value", "window"), [("absent", 512), (None, None), (33, 33)])
def test_windows(tmp_path: Path, value: Any, window: int | None):
    values = changed(write_config(PRETRAINED, False), "local_attention_window_len", value)
    values = changed(values, "patcher_config.sliding_window", value)
    found = read(tmp_path, values)
    assert found.entropy_config is not None
    assert (found.config.encoder.window, found.config.decoder.window) == (window, window)
    assert found.entropy_config.tower.window == window
    assert found.config.global_model.window is None
    without = read(tmp_path, values, windows=False)
    assert without.entropy_config is not None
    assert without.config.encoder.window is without.entropy_config.tower.window is None


@pytest.mark.parametrize(
    ("theta", "parameters", "expected"),
    [
        (7e4, "absent", 7e4),
        (7e4, None, 7e4),
        ("absent", {"rope_type": "default", "rope_theta": 7e4}, 7e4),
        (70_000, {"rope_type": "default", "rope_theta": 7e4}, 7e4),
        ("absent", "absent", 5e5),
        ("absent", {"rope_type": "default"}, 5e5),
    ],
)
def test_spellings_of_the_rotary_base(tmp_path: Path, theta: Any, parameters: Any, expected: float):
    values = changed(write_config(PRETRAINED, False), "global_config.rope_theta", theta)
    values = changed(values, "global_config.rope_parameters", parameters)
    assert read(tmp_path, values).config.global_model.rope_theta == expected


@pytest.mark.parametrize("value", ["absent", None])
def test_feed_forward_width_comes_from_the_weights_where_the_file_leaves_it_open(tmp_path: Path, value: Any):
    values = changed(write_config(PRETRAINED, False), "encoder_config.intermediate_size", value)
    shapes = {"model.local_encoder.layers.0.mlp.gate_proj.weight": (21, 8)}
    assert read(tmp_path, values, shapes=shapes).config.encoder.hidden == 21


def test_without_a_patcher_any_rule_may_have_cut_the_patches(tmp_path: Path):
    values = write_config(Pretrained(CONFIG, {}, threshold=1.5), False)
    assert "patcher_config" not in values
    assert read(tmp_path, values) == Pretrained(CONFIG, {}, threshold=1.5)
    assert read(tmp_path, values | {"patching_mode": "space"}).threshold is None


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("model_type", "llama"),
        ("model_type", "absent"),
        ("vocab_size", 256),
        ("encoder_config.vocab_size", 256),
        ("patcher_config.vocab_size", 256),
        ("tie_word_embeddings", True),
        ("quantization_config", {"bits": 4}),
        ("encoder_config", "absent"),
        ("patcher_config", None),
        ("cross_attn_k", "absent"),
        ("cross_attn_k", 2.0),
        ("encoder_config.cross_attn_k", 3),
        ("decoder_config.cross_attn_k", 3),
        ("decoder_config.hidden_size_global", 16),
        ("decoder_config.num_attention_heads", 1),
        ("decoder_config.num_key_value_heads", 1),
        ("decoder_config.hidden_size", 16),
        ("decoder_config.cross_attn_all_layers", 1),
        ("encoder_config.hidden_size", "absent"),
        ("global_config.hidden_size", "12"),
        ("global_config.num_attention_heads", 5),
        ("global_config.num_attention_heads", 0),
        ("global_config.num_hidden_layers", True),
        ("global_config.head_dim", 4),
        ("global_config.hidden_act", "gelu"),
        ("global_config.dropout", 0.1),
        ("global_config.norm_eps", 1e-6),
        ("global_config.rope_theta", 1e4),
        ("global_config.rope_parameters", {"rope_type": "llama3", "factor": 8.0}),
        ("global_config.rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("global_config.rope_scaling", {"type": "linear", "factor": 2.0}),
        ("patcher_config.sliding_window", 0),
        ("local_attention_window_len", "512"),
        ("encoder_hash_byte_group_size", None),
        ("encoder_hash_byte_group_size", [3, "4"]),
        ("encoder_hash_byte_group_size", [3, 3]),
        ("encoder_hash_byte_group_nb_functions", 12),
        ("patch_in_forward", "absent"),
        ("patching_mode", "space"),
        ("monotonicity", True),
        ("patching_threshold_add", 0.2),
        ("patching_threshold", "1.3"),
        ("max_patch_length", 2.5),
        ("max_patch_length", 0),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, where: str, value: Any):
    values = changed(write_config(PRETRAINED, False) | {"quantization_config": None}, where, value)
    with pytest.raises(ValueError) as caught:
        read(tmp_path, values)
    assert str(tmp_path / "config.json") in str(caught.value)
    spelling = {  # our names for theirs, where a configuration refuses the value
        "decoder_config.hidden_size": "decoder.width",
        "decoder_config.num_attention_heads": "heads",
        "global_config.num_attention_heads": "heads",
        "patcher_config.sliding_window": "window",
        "encoder_hash_byte_group_nb_functions": "hash.functions",
    }
    key = where.split(".")[-1]
    message = str(caught.value)
    assert key in message or spelling.get(where, key) in message or "hash.sizes" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "\0"])
def test_a_file_that_is_no_object(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_config(tmp_path / "config.json", {}.get, True)


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("document_mask", dataclasses.replace(CONFIG, document_mask=True)),
        ("cross_attention.residual", {"residual": "single"}),
        ("cross_attention.pooling", {"pooling": "mean"}),
        ("cross_attention.encoder", {"encoder": "all"}),
        ("cross_attention.encoder", {"encoder": "none"}),
        ("cross_attention.decoder", {"decoder": "none"}),
        ("cross_attention.heads", {"heads": 4}),
        ("cross_attention.kv_heads", {"kv_heads": 1}),
        ("decoder.heads", dataclasses.replace(CONFIG, decoder=dataclasses.replace(LOCAL, heads=1))),
        ("decoder.kv_heads", dataclasses.replace(CONFIG, decoder=dataclasses.replace(LOCAL, kv_heads=1))),
        ("decoder.window", dataclasses.replace(CONFIG, decoder=dataclasses.replace(LOCAL, window=None))),
        ("global_model.window", dataclasses.replace(CONFIG, global_model=LOCAL)),
        ("hash.sizes", dataclasses.replace(CONFIG, hash=HashConfig(sizes=()))),
        ("hash.normalize", dataclasses.replace(CONFIG, hash=HashConfig(normalize=True))),
        ("hash.power_order", dataclasses.replace(CONFIG, hash=HashConfig(power_order="paper"))),
        ("hash.short_ngrams", dataclasses.replace(CONFIG, hash=HashConfig(short_ngrams="omit"))),
    ],
)
def test_what_transformers_cannot_express_is_not_written(field: str, config: BLTConfig | dict[str, Any]):
    if isinstance(config, dict):
        config = dataclasses.replace(CONFIG, cross_attention=CrossAttentionConfig(**config))
    with pytest.raises(ValueError, match=field):
        write_config(Pretrained(config, {}), False)


def test_document_masks_are_given_up_only_when_asked(tmp_path: Path):
    masked = dataclasses.replace(ENTROPY, document_mask=True)
    for pretrained in (
        Pretrained(dataclasses.replace(CONFIG, document_mask=True), {}),
        Pretrained(CONFIG, {}, masked, {}),
    ):
        with pytest.raises(ValueError, match="one_document_rows"):
            write_config(pretrained, False)
        assert read(tmp_path, write_config(pretrained, True)).config == CONFIG


def test_carrying_rows_through_one_encoder_layer_is_the_same_as_pooling_anew(tmp_path: Path):
    config = dataclasses.replace(
        CONFIG,
        encoder=dataclasses.replace(LOCAL, layers=1),
        cross_attention=CrossAttentionConfig(encoder="all"),
    )
    assert read(tmp_path, write_config(Pretrained(config, {}), False)).config.cross_attention.encoder == "last"
