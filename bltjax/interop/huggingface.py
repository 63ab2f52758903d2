"""Checkpoints of `BltForCausalLM` in Hugging Face `transformers`: a folder of safetensors files and a config.json.

Tensors are streamed one by one, in blocks of rows, straight into the stacked arrays of the params, so that a
checkpoint needs little more memory than its params. No pickle is ever read or written.

Where the two sides differ:
- transformers has no document masks. A loaded config has `document_mask=False`; a config with document masks can be
  written for rows of one document only (`one_document_rows`).
- Windows: the file's `local_attention_window_len` and `patcher_config.sliding_window`. Releases of transformers before
  those keys compute full causal attention whatever was trained, and leave the keys out; newer ones then read 512,
  which the released models were trained with, and so does this module. `windows=False` gives the older behaviour.
- With cross-attention on all encoder layers transformers pools the bytes anew at every layer: `encoder="all_repool"`.
- Grouped queries in the local models mean grouped queries in their cross-attention (`cross_attention.kv_heads`).
- Keys that `BltForCausalLM` does not compute with (caches, generation, initialisation) are not looked at, and what
  does not change what a trained model computes (`compute`, `init_std`, `init_depth`) is not written.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bltjax.config import BLTConfig, EntropyModelConfig
from bltjax.families import abstract_params
from bltjax.interop.huggingface_config import Params, Pretrained, read_config, read_json, write_config

__all__ = ["Pretrained", "inspect_pretrained", "load_pretrained", "save_pretrained", "tensor_shapes"]

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
BLOCK_BYTES = 8 << 20  # of a tensor held besides the params while reading
DTYPES = {"F32": np.dtype("<f4"), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype("<f2")}


def load_pretrained(folder: str | Path, windows: bool = True) -> Pretrained:
    """Reads a checkpoint folder of `BltForCausalLM`.

    Args:
      folder: with config.json and model.safetensors, or shards and model.safetensors.index.json.
      windows: False: full causal attention, as transformers releases without a window key compute (module docstring).

    Returns:
      The configs, and the params as float32 numpy arrays (from float32, bfloat16 or float16 files).

    Raises:
      FileNotFoundError, NotADirectoryError: for a folder, config or shard that is not there.
      ValueError: for a damaged file, a key or tensor that is missing or not expected, a tensor whose shape does not
        fit the config, and whatever transformers computes that this project does not.
    """
    pretrained, tensors, slots = _open(Path(folder), windows)
    # Pages of an empty array are only claimed when they are written.
    params = {path: np.empty(shape, np.float32) for path, shape in _all_leaf_shapes(pretrained).items()}
    for key, stored in tensors.items():
        stored.read_into(slots[key].view(params[slots[key].path]))
    trees = unflatten_dict(params, sep="/")
    entropy_params = trees.pop("entropy", None)
    return dataclasses.replace(pretrained, params=trees, entropy_params=entropy_params)


def inspect_pretrained(folder: str | Path, windows: bool = True) -> Pretrained:
    """What `load_pretrained` would return, but for the params, which are empty: everything is checked, no tensor is
    read. Arguments and errors as there."""
    return _open(Path(folder), windows)[0]


def save_pretrained(
    folder: str | Path, pretrained: Pretrained, max_shard_bytes: int = 2 << 30, one_document_rows: bool = False
) -> None:
    """Writes a checkpoint folder that `BltForCausalLM.from_pretrained` reads; all of it or nothing.

    Args:
      folder: must not exist, or be empty.
      pretrained: the params may be numpy or JAX arrays; they are written as float32.
      max_shard_bytes: of one file, unless a single tensor is larger; besides the params one file is held in memory.
      one_document_rows: says that the checkpoint will only be run on rows of one document, where the document masks
        that transformers lacks make no difference. Needed if a config has `document_mask=True`.

    Raises:
      FileExistsError: for a folder that is not empty.
      ValueError: for params that do not fit their config, or a field that transformers cannot express.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty: choose another folder, or remove it first.")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes={max_shard_bytes}: must be at least 1.")
    if (pretrained.entropy_config is None) != (pretrained.entropy_params is None):
        raise ValueError("entropy_config and entropy_params: give both, or neither.")
    config = write_config(pretrained, one_document_rows)
    leaves = _checked_leaves(pretrained)
    shards = _plan_shards(list(_all_slots(pretrained).values()), max_shard_bytes)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    with _whole_folder(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for name, slots in zip([SINGLE] if len(shards) == 1 else names, shards, strict=True):
            contents = {s.key: _as_float32(s.view(np.asarray(leaves[s.path]))) for s in slots}
            save_file(contents, temporary / name, metadata={"format": "pt"})
        if len(shards) > 1:
            weight_map = {s.key: name for name, slots in zip(names, shards, strict=True) for s in slots}
            sizes = {"total_size": sum(s.bytes for slots in shards for s in slots)}
            index = {"metadata": sizes, "weight_map": weight_map}
            (temporary / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def tensor_shapes(config: BLTConfig, entropy_config: EntropyModelConfig | None = None) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint of these configs holds, by name, with their shapes; nothing is allocated."""
    return {key: slot.shape for key, slot in _all_slots(Pretrained(config, {}, entropy_config)).items()}


# --- names and shapes: one table for both directions ---

_LAYER = {
    "attention/query/kernel": "self_attn.q_proj",
    "attention/key/kernel": "self_attn.k_proj",
    "attention/value/kernel": "self_attn.v_proj",
    "attention/out/kernel": "self_attn.o_proj",
    "feed_forward/gate/kernel": "mlp.gate_proj",
    "feed_forward/up/kernel": "mlp.up_proj",
    "feed_forward/down/kernel": "mlp.down_proj",
    "attention_norm/scale": "input_layernorm",
    "feed_forward_norm/scale": "post_attention_layernorm",
}
_CROSS_ATTENTION = {
    "query/kernel": "q_proj",
    "key/kernel": "k_proj",
    "value/kernel": "v_proj",
    "out/kernel": "o_proj",
    "query_norm/scale": "q_norm",
    "memory_norm/scale": "k_norm",
}
_NAMES = {  # leaf -> tensor; {} stands for the layer, the leading axis of the leaf
    "byte_embedding/table": "model.local_encoder.embed_tokens",
    "hash_embedding/table": "model.encoder_hash_tok_embedding",
    "encoder/patch_projection/kernel": "model.local_encoder.patch_embedding_projection",
    "global_model/input_projection/kernel": "model.global_transformer.token_embedding_projection",
    "decoder/patch_projection/kernel": "model.local_decoder.patch_embedding_projection",
    "decoder/norm/scale": "model.local_decoder.norm",
    "decoder/output/kernel": "lm_head",
    "entropy/embedding/table": "model.patcher.embed_tokens",
    "entropy/norm/scale": "model.patcher.norm",
    "entropy/output/kernel": "model.patcher.lm_head",
}
for _ours, _theirs in (
    ("encoder", "model.local_encoder"),
    ("global_model", "model.global_transformer"),
    ("decoder", "model.local_decoder"),
    ("entropy", "model.patcher"),
):
    _NAMES |= {f"{_ours}/layers/{leaf}": f"{_theirs}.layers.{{}}.{name}" for leaf, name in _LAYER.items()}
    _NAMES |= {
        f"{_ours}/cross_attention/{leaf}": f"{_theirs}.cross_attn_layers.{{}}.{name}"
        for leaf, name in _CROSS_ATTENTION.items()
    }


@dataclasses.dataclass(frozen=True)
class _Slot:
    """Where a tensor of the file lies in the params."""

    key: str
    path: str
    layer: int | None
    shape: tuple[int, ...]  # in the file: matrices are [outputs, inputs]

    @property
    def bytes(self) -> int:
        return 4 * math.prod(self.shape)

    def view(self, leaf: np.ndarray) -> np.ndarray:
        """The tensor's part of its leaf, in the file's shape and without a copy."""
        part = leaf if self.layer is None else leaf[self.layer]
        if self.path.endswith("kernel"):
            return part.reshape(self.shape[::-1]).T
        return part


def _slots(path: str, shape: tuple[int, ...]) -> list[_Slot]:
    name = _NAMES[path] + ".weight"
    layers = range(shape[0]) if "{}" in name else [None]
    shape = shape[1:] if "{}" in name else shape
    if path.endswith("kernel"):
        inputs = math.prod(shape[:-1]) if path.endswith("out/kernel") else shape[0]
        shape = (math.prod(shape) // inputs, inputs)
    return [_Slot(name.format(layer), path, layer, shape) for layer in layers]


def _leaves(prefix: str, params: Params) -> dict[str, Any]:
    return {prefix + path: leaf for path, leaf in flatten_dict(params, sep="/").items()}


@functools.cache
def _leaf_shapes(prefix: str, config: BLTConfig | EntropyModelConfig) -> Mapping[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in _leaves(prefix, abstract_params(config)).items()}


def _all_leaf_shapes(pretrained: Pretrained) -> dict[str, tuple[int, ...]]:
    shapes = dict(_leaf_shapes("", pretrained.config))
    if pretrained.entropy_config is not None:
        shapes |= _leaf_shapes("entropy/", pretrained.entropy_config)
    return shapes


def _all_slots(pretrained: Pretrained) -> dict[str, _Slot]:
    return {slot.key: slot for path, shape in _all_leaf_shapes(pretrained).items() for slot in _slots(path, shape)}


# --- reading ---


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A tensor in a file."""

    path: Path
    offset: int  # bytes from the start of the file
    type: str
    shape: tuple[int, ...]

    def read_into(self, target: np.ndarray) -> None:
        """Reads plainly, in blocks of rows: the safetensors library reads a tensor whole or maps its file, and the
        pages of a mapped file count as this process's memory."""
        width, dtype = math.prod(self.shape[1:]), DTYPES[self.type]
        rows = max(1, BLOCK_BYTES // (width * dtype.itemsize))
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, self.shape[0], rows):
                stop = min(start + rows, self.shape[0])
                block = np.fromfile(file, np.uint8, (stop - start) * width * dtype.itemsize)
                target[start:stop] = block.view(dtype).reshape(target[start:stop].shape)


def _open(folder: Path, windows: bool) -> tuple[Pretrained, dict[str, _Stored], dict[str, _Slot]]:
    if not folder.is_dir():
        problem = NotADirectoryError if folder.exists() else FileNotFoundError
        raise problem(f"{folder} is not a folder: give the folder that holds {CONFIG} and {SINGLE}.")
    tensors = _find_tensors(folder)
    shape_of = {key: stored.shape for key, stored in tensors.items()}.get
    pretrained = read_config(folder / CONFIG, shape_of, windows)
    slots = _all_slots(pretrained)
    _check_tensors(folder, tensors, slots)
    return pretrained, tensors, slots


def _find_tensors(folder: Path) -> dict[str, _Stored]:
    """Every tensor by key, in the order in which they lie on disk. No tensor is read."""
    index, declared = folder / INDEX, None
    if (folder / SINGLE).is_file():
        paths = [folder / SINGLE]
    elif index.is_file():
        declared = read_json(index).get("weight_map")
        if not isinstance(declared, dict) or not declared:
            raise ValueError(f'{index} has no "weight_map": it must map every tensor to its file.')
        paths = [folder / str(name) for name in sorted(set(declared.values()))]
        for path in paths:
            if path.parent != folder or not path.is_file():
                raise FileNotFoundError(f"{path} is missing: {INDEX} places tensors in it.")
    else:
        raise FileNotFoundError(f"{folder} holds neither {SINGLE} nor {INDEX}; pickled weights are never read.")
    tensors: dict[str, _Stored] = {}
    for path in paths:
        for key, stored in _read_header(path).items():
            if key in tensors:
                raise ValueError(f"{path} holds the tensor {key}, which {tensors[key].path} holds already.")
            tensors[key] = stored
    for key, name in (declared or {}).items():
        if key not in tensors or tensors[key].path.name != name:
            raise ValueError(f"{folder / str(name)} lacks the tensor {key}, which {INDEX} places in it.")
    return tensors


def _read_header(path: Path) -> dict[str, _Stored]:
    try:
        with safe_open(path, framework="numpy"):  # checks the header, and that the file has the length it tells of
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): fetch or write it again.") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {
        key: _Stored(path, 8 + length + value["data_offsets"][0], value["dtype"], tuple(value["shape"]))
        for key, value in header.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[1].offset))


def _check_tensors(folder: Path, tensors: dict[str, _Stored], slots: dict[str, _Slot]) -> None:
    for problem, keys in (("lacks", slots.keys() - tensors), ("holds", tensors.keys() - slots)):
        if keys:
            some = ", ".join(sorted(keys)[:4]) + (", ..." if len(keys) > 4 else "")
            wanted = "asks for" if problem == "lacks" else "has no place for"
            raise ValueError(f"{folder} {problem} {len(keys)} tensor(s) that its {CONFIG} {wanted}: {some}.")
    for key, stored in tensors.items():
        if stored.shape != slots[key].shape:
            wanted = f"{CONFIG} asks for {slots[key].shape}"
            raise ValueError(f"{stored.path}: {key} has the shape {stored.shape}, but {wanted}.")
        if stored.type not in DTYPES:
            raise ValueError(f"{stored.path}: {key} is of type {stored.type}; only {', '.join(DTYPES)} are read.")


# --- writing ---


def _checked_leaves(pretrained: Pretrained) -> dict[str, Any]:
    expected, leaves = _all_leaf_shapes(pretrained), _leaves("", pretrained.params)
    if pretrained.entropy_params is not None:
        leaves |= _leaves("entropy/", pretrained.entropy_params)
    for path in sorted(expected.keys() ^ leaves.keys()):
        problem = "lack" if path in expected else "hold, against their config,"
        raise ValueError(f"params {problem} the leaf {path}.")
    for path, shape in expected.items():
        if leaves[path].shape != shape:
            raise ValueError(f"params: {path} has the shape {leaves[path].shape}, but the config asks for {shape}.")
    return leaves


def _as_float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)


def _plan_shards(slots: list[_Slot], max_shard_bytes: int) -> list[list[_Slot]]:
    shards: list[list[_Slot]] = [[]]
    size = 0
    for slot in slots:
        if shards[-1] and size + slot.bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(slot)
        size += slot.bytes
    return shards


@contextlib.contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one, which takes its name when all went well and vanishes when not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # where it has not become the folder


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
