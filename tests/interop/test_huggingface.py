"""Checkpoints in the Hugging Face layout: nothing is lost on the way, and nothing damaged is taken for whole."""

import dataclasses
import functools
import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from bltjax.config import BLTConfig, CrossAttentionConfig, EntropyModelConfig, HashConfig, TransformerConfig
from bltjax.families import abstract_params
from bltjax.interop import huggingface
from bltjax.interop.huggingface import Pretrained, load_pretrained, save_pretrained, tensor_shapes
from bltjax.presets import preset

LOCAL = TransformerConfig(width=8, layers=2, heads=2, hidden=12, window=6)
HASH = HashConfig(sizes=(3, 5), buckets=7, functions=2)
CONFIG = BLTConfig(
    encoder=LOCAL,
    global_model=TransformerConfig(width=12, layers=3, heads=2, kv_heads=1, hidden=20),
    decoder=dataclasses.replace(LOCAL, layers=3),
    hash=HASH,
    document_mask=False,
)
ENTROPY = EntropyModelConfig(TransformerConfig(8, 2, 2, hidden=16, window=5, rope_theta=10_000.0), document_mask=False)
CONFIGS = {
    "projected into the global width": CONFIG,
    "one width, k = 4": dataclasses.replace(
        CONFIG, global_model=TransformerConfig(32, 1, 4, hidden=20), cross_attention=CrossAttentionConfig(k=4)
    ),
    "grouped queries, full attention": dataclasses.replace(
        CONFIG,
        encoder=dataclasses.replace(LOCAL, kv_heads=1, window=None, norm_epsilon=1e-6),
        decoder=dataclasses.replace(LOCAL, kv_heads=1, window=None, rope_theta=7e4),
        cross_attention=CrossAttentionConfig(kv_heads=1),
    ),
    "all encoder layers, first decoder layer": dataclasses.replace(
        CONFIG, cross_attention=CrossAttentionConfig(encoder="all_repool", decoder="first")
    ),
}


@functools.cache
def random_params(config: BLTConfig | EntropyModelConfig, seed: int = 0) -> dict:
    draw = np.random.default_rng(seed)
    leaves = flatten_dict(abstract_params(config))
    return unflatten_dict({k: (0.5 * draw.standard_normal(s.shape)).astype(np.float32) for k, s in leaves.items()})


PRETRAINED = Pretrained(CONFIG, random_params(CONFIG), ENTROPY, random_params(ENTROPY, 1), 1.25, 9)


def assert_same_params(found: dict, expected: dict) -> None:
    found, expected = flatten_dict(found), flatten_dict(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert isinstance(found[path], np.ndarray)
        assert found[path].dtype == np.float32
        np.testing.assert_array_equal(found[path], leaf, err_msg="/".join(path))


def rewrite(folder: Path, **changes: np.ndarray | None) -> None:
    """Changes tensors of a single-file checkpoint; None removes one."""
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "model", PRETRAINED)
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "model", PRETRAINED, max_shard_bytes=4000)
    return tmp_path / "model"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("with_patcher", [True, False])
def test_round_trip(tmp_path: Path, name: str, with_patcher: bool):
    config = CONFIGS[name]
    pretrained = Pretrained(config, random_params(config))
    if with_patcher:
        pretrained = dataclasses.replace(PRETRAINED, config=config, params=pretrained.params)
    save_pretrained(tmp_path / "model", pretrained)
    found = load_pretrained(tmp_path / "model")
    assert found.config == config
    assert_same_params(found.params, pretrained.params)
    assert (found.entropy_config, found.threshold, found.max_patch_length) == (
        pretrained.entropy_config, pretrained.threshold, pretrained.max_patch_length,
    )  # fmt: skip
    assert (found.entropy_params is None) == (not with_patcher)
    if found.entropy_params is not None:
        assert_same_params(found.entropy_params, random_params(ENTROPY, 1))


@pytest.mark.parametrize("max_shard_bytes", [1, 4000])
def test_shards_hold_every_tensor_once_within_the_limit(tmp_path: Path, max_shard_bytes: int):
    folder = tmp_path / "model"
    save_pretrained(folder, PRETRAINED, max_shard_bytes)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    assert len(shards) > 1
    assert index["weight_map"] == {key: name for name, tensors in shards.items() for key in tensors}
    assert index["weight_map"].keys() == tensor_shapes(CONFIG, ENTROPY).keys()
    sizes = [[tensor.nbytes for tensor in tensors.values()] for tensors in shards.values()]
    assert all(sum(one) <= max_shard_bytes or len(one) == 1 for one in sizes)
    assert index["metadata"]["total_size"] == sum(map(sum, sizes))
    assert_same_params(load_pretrained(folder).params, PRETRAINED.params)


def test_matrices_are_outputs_by_inputs_with_heads_in_order(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    x = np.random.default_rng(3).standard_normal(12).astype(np.float32)
    layers = PRETRAINED.params["global_model"]["layers"]
    for layer in range(3):
        for ours, theirs in (("query", "q_proj"), ("key", "k_proj")):
            file = tensors[f"model.global_transformer.layers.{layer}.self_attn.{theirs}.weight"]
            expected = np.einsum("i,ihw->hw", x, layers["attention"][ours]["kernel"][layer])
            np.testing.assert_allclose((file @ x).reshape(-1, 6), expected, rtol=1e-5)
        mixed = x.reshape(2, 6)
        file = tensors[f"model.global_transformer.layers.{layer}.self_attn.o_proj.weight"]
        expected = np.einsum("hw,hwi->i", mixed, layers["attention"]["out"]["kernel"][layer])
        np.testing.assert_allclose(file @ x, expected, rtol=1e-5)


def test_names_and_shapes_of_the_released_1b():
    found = tensor_shapes(preset("blt-1b"), preset("entropy-100m"))
    expected = {
        "model.local_encoder.embed_tokens.weight": (260, 1024),
        "model.encoder_hash_tok_embedding.weight": (3_000_012, 1024),
        "model.local_encoder.patch_embedding_projection.weight": (2048, 1024),
        "model.local_decoder.patch_embedding_projection.weight": (2048, 2048),
        "model.local_decoder.norm.weight": (1024,),
        "lm_head.weight": (260, 1024),
        "model.patcher.embed_tokens.weight": (260, 768),
        "model.patcher.norm.weight": (768,),
        "model.patcher.lm_head.weight": (260, 768),
    }
    for prefix, layers, width, hidden in (
        ("model.local_encoder", 1, 1024, 2816),
        ("model.global_transformer", 25, 2048, 5632),
        ("model.local_decoder", 9, 1024, 2816),
        ("model.patcher", 14, 768, 2048),
    ):
        for layer in range(layers):
            here = f"{prefix}.layers.{layer}"
            expected |= {f"{here}.self_attn.{x}_proj.weight": (width, width) for x in "qkvo"}
            expected |= {f"{here}.mlp.{x}_proj.weight": (hidden, width) for x in ("gate", "up")}
            expected |= {f"{here}.mlp.down_proj.weight": (width, hidden)}
            expected |= {f"{here}.{x}_layernorm.weight": (width,) for x in ("input", "post_attention")}
    for prefix, layers in (("model.local_encoder", 1), ("model.local_decoder", 9)):
        for layer in range(layers):
            here = f"{prefix}.cross_attn_layers.{layer}"
            expected |= {f"{here}.{x}_proj.weight": (1024, 1024) for x in "qkvo"}
            expected |= {f"{here}.{x}_norm.weight": (1024,) for x in "qk"}
    assert found == expected
    sizes = {key: math.prod(shape) for key, shape in found.items()}
    patcher = sum(size for key, size in sizes.items() if key.startswith("model.patcher."))
    assert patcher == 99_512_064
    assert sum(sizes.values()) - patcher == 4_533_879_808


def test_the_released_7b_has_an_input_projection():
    shapes = tensor_shapes(preset("blt-7b"))
    assert shapes["model.global_transformer.token_embedding_projection.weight"] == (4096, 5120)
    assert shapes["model.local_decoder.patch_embedding_projection.weight"] == (5120, 4096)
    assert sum(math.prod(shape) for shape in shapes.values()) == 10_553_570_560


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_half_precision_files_become_float32(folder: Path, dtype: type):
    tensors = load_file(folder / "model.safetensors")
    rewrite(folder, **{key: tensor.astype(dtype) for key, tensor in tensors.items()})
    expected = {k: v.astype(dtype).astype(np.float32) for k, v in flatten_dict(PRETRAINED.params).items()}
    assert_same_params(load_pretrained(folder).params, unflatten_dict(expected))


def test_tensors_larger_than_a_block_are_read_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface, "BLOCK_BYTES", 100)
    assert_same_params(load_pretrained(folder).params, PRETRAINED.params)


def test_jax_arrays_are_written_like_numpy_arrays(tmp_path: Path):
    leaves = {path: jnp.asarray(leaf) for path, leaf in flatten_dict(PRETRAINED.params).items()}
    save_pretrained(tmp_path / "jax", dataclasses.replace(PRETRAINED, params=unflatten_dict(leaves)))
    assert_same_params(load_pretrained(tmp_path / "jax").params, PRETRAINED.params)


def refused(folder: Path, *words: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error) as caught:
        load_pretrained(folder)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)


def test_what_is_not_a_checkpoint_folder(tmp_path: Path, folder: Path):
    refused(tmp_path / "nowhere", "nowhere", error=FileNotFoundError)
    refused(folder / "config.json", "config.json", error=NotADirectoryError)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"pickle")
    refused(tmp_path / "pickled", "pickled", "model.safetensors", error=FileNotFoundError)
    (folder / "config.json").unlink()
    refused(folder, "config.json", error=FileNotFoundError)


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_file(folder: Path, kept: int):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, str(path))


def test_missing_shard(sharded: Path):
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    refused(sharded, str(lost), error=FileNotFoundError)


def test_shard_without_a_tensor_that_the_index_places_there(sharded: Path):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    tensors = load_file(first)
    key = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != key} or {"other": np.zeros(1, np.float32)}, first)
    refused(sharded, str(first), key)
    save_file(tensors, first)
    save_file(load_file(second) | {key: tensors[key]}, second)
    refused(sharded, str(first), str(second), key)


@pytest.mark.parametrize("index", ['{"weight_map": {}}', "[]", "{", '{"weight_map": {"a": "../model.safetensors"}}'])
def test_index_that_is_no_index(sharded: Path, index: str):
    (sharded / "model.safetensors.index.json").write_text(index)
    outside = ".." in index
    if outside:
        save_file({"a": np.zeros(1, np.float32)}, sharded.parent / "model.safetensors")
    refused(sharded, str(sharded), error=FileNotFoundError if outside else ValueError)


def test_tensors_that_are_missing_or_too_many(folder: Path):
    rewrite(folder, **{"lm_head.weight": None})
    refused(folder, "lacks 1 tensor", "lm_head.weight")
    rewrite(folder, **{"lm_head.weight": np.zeros((260, 8), np.float32), "lm_head.bias": np.zeros(260, np.float32)})
    refused(folder, "holds 1 tensor", "lm_head.bias")


def test_a_patcher_that_the_config_denies(folder: Path):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"patch_in_forward": False}))
    refused(folder, "model.patcher.embed_tokens.weight")


def test_shape_that_does_not_fit_the_config(folder: Path):
    rewrite(folder, **{"model.local_decoder.norm.weight": np.zeros(9, np.float32)})
    refused(folder, "model.safetensors", "model.local_decoder.norm.weight", "(9,)", "(8,)")


def test_tensor_of_whole_numbers(folder: Path):
    rewrite(folder, **{"model.local_decoder.norm.weight": np.zeros(8, np.int32)})
    refused(folder, "model.local_decoder.norm.weight", "I32")


def test_params_that_do_not_fit_their_config_are_not_written(tmp_path: Path):
    leaves = flatten_dict(PRETRAINED.params)
    path = ("decoder", "norm", "scale")
    for changed, words in (
        ({k: v for k, v in leaves.items() if k != path}, ["lack", "decoder/norm/scale"]),
        (leaves | {("decoder", "norm", "bias"): np.zeros(8, np.float32)}, ["hold", "decoder/norm/bias"]),
        (leaves | {path: np.zeros(9, np.float32)}, ["decoder/norm/scale", "(9,)", "(8,)"]),
    ):
        with pytest.raises(ValueError) as caught:
            save_pretrained(tmp_path / "new", dataclasses.replace(PRETRAINED, params=unflatten_dict(changed)))
        assert all(word in str(caught.value) for word in words)
    with pytest.raises(ValueError, match="entropy_params"):
        save_pretrained(tmp_path / "new", dataclasses.replace(PRETRAINED, entropy_params=None))
    with pytest.raises(ValueError, match="max_shard_bytes=0"):
        save_pretrained(tmp_path / "new", PRETRAINED, max_shard_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = []

    def full_disk(tensors: dict, path: Path, metadata: dict) -> None:
        if written:
            raise OSError("No space left on device")
        written.append(save_file(tensors, path, metadata))

    monkeypatch.setattr(huggingface, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_pretrained(tmp_path / "model", PRETRAINED, max_shard_bytes=4000)
    assert written
    assert list(tmp_path.iterdir()) == []


def test_a_save_never_overwrites(folder: Path):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="not empty"):
        save_pretrained(folder, PRETRAINED)
    assert (folder / "model.safetensors").read_bytes() == before


def test_memory_is_little_more_than_the_params(tmp_path: Path):
    # 200 MB, most of it in one table, as in the released models; and some in matrices that are stored transposed.
    wide = TransformerConfig(width=512, layers=2, heads=4, hidden=1024)
    config = dataclasses.replace(
        CONFIG, encoder=wide, decoder=wide, hash=HashConfig(sizes=(3, 4), buckets=32_000), global_model=wide
    )
    save_pretrained(tmp_path / "warm", PRETRAINED)
    params = unflatten_dict({k: np.ones(s.shape, np.float32) for k, s in flatten_dict(abstract_params(config)).items()})
    save_pretrained(tmp_path / "large", Pretrained(config, params))
    total = sum(leaf.nbytes for leaf in flatten_dict(params).values())
    assert total > 190e6
    code = f"""
        import re
        from pathlib import Path
        from bltjax.interop.huggingface import load_pretrained, save_pretrained

        folder = Path({str(tmp_path)!r})
        # Not getrusage, whose peak is also that of the program that started this one.
        peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        load_pretrained(folder / "warm")
        before = peak()
        pretrained = load_pretrained(folder / "large")
        print(peak() - before)
        save_pretrained(folder / "again", pretrained, max_shard_bytes=8 << 20)
        print(peak() - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=300
    )
    loaded, saved = map(int, run.stdout.split())
    assert 0.9 * total < loaded < 1.1 * total
    assert saved < 1.2 * total
