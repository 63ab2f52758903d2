"""Folders of runs and of a study, as training leaves them, with parameters as they are first drawn."""

import json

import jax
import numpy as np

from bltjax.checkpoint import Checkpoints
from bltjax.config import BLTConfig, OptimConfig, PatcherConfig, RowsConfig, TrainConfig, config_hash, to_dict
from bltjax.data.corpus import Documents
from bltjax.data.tokenizer import train
from bltjax.presets import preset
from bltjax.scoring import params_hash
from bltjax.sharding import make_mesh
from bltjax.step import compile_step

PATCHER = PatcherConfig(threshold=1.5)


def write_run(folder, model, seed=0, inputs=None):
    """A run's folder as training leaves it, with a checkpoint of its first parameters, which are returned."""
    model = preset(model) if isinstance(model, str) else model
    patcher = PATCHER if isinstance(model, BLTConfig) else None
    config = TrainConfig(model, steps=3, patcher=patcher, rows=RowsConfig(64, 16, 1), seed=seed)
    step = compile_step(model, OptimConfig(), make_mesh(devices=jax.devices()[:1]), slots=16)
    state = step.initial_state(seed)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(3, state, {"step": 3})
    checkpoints.close()
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    if inputs is not None:
        (folder / "manifest.json").write_text(json.dumps({"inputs": inputs}))
    return jax.tree.map(np.asarray, state.params)


def write_study(folder):
    """Two entropy models, of which the second was used, a tokenizer, and runs; its params, and the tokenizer."""
    write_run(folder / "entropy-a", "entropy-tiny", seed=1)
    params = write_run(folder / "entropy-b", "entropy-tiny", seed=2)
    entropies = {"model": config_hash(preset("entropy-tiny")), "params": params_hash(params)}
    write_run(folder / "runs" / "blt", "blt-tiny", inputs={"entropies": entropies})
    write_run(folder / "runs" / "other", "blt-tiny", inputs={"entropies": {**entropies, "params": "0" * 16}})
    (folder / "corpus-c").mkdir()
    documents = Documents.of([b"the theory of the thing that they think of " * 30])
    return params, train(documents, 260, folder / "corpus-c" / "tokenizer-260.json")
