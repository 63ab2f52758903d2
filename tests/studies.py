"""Folders of runs and of a study as training leaves them, what interrupts it, and models with random weights."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from bltjax.checkpoint import Checkpoints
from bltjax.config import OptimConfig, PatcherConfig, RowsConfig, TrainConfig, config_hash, to_dict
from bltjax.data.corpus import Documents
from bltjax.data.tokenizer import train
from bltjax.families import abstract_params
from bltjax.generate import Source
from bltjax.metrics import Progress
from bltjax.presets import preset
from bltjax.scoring import Scorer, params_hash
from bltjax.sharding import make_mesh
from bltjax.step import compile_step
from tests.dense import random_params

PATCHER = PatcherConfig(threshold=1.5)


class Cut(Progress):
    """Interrupts training at given rows of metrics, counted over all that is trained."""

    shown = 0
    at: tuple[int, ...] = ()

    def show(self, row, total_steps):
        Cut.shown += 1
        if Cut.shown in Cut.at:
            raise KeyboardInterrupt


def write_run(folder, model, seed=0, inputs=None):
    """A run's folder as training leaves it, with a checkpoint of its first parameters, which are returned."""
    model = preset(model) if isinstance(model, str) else model
    patcher = PATCHER if model.reads_patches else None
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


WORDS = b"the theory of the thing that they think of "


def random_source(family, folder):
    """A model with random weights large enough to matter, ready for use; "entropy" and "space" are BLTs by their rule.

    Its patches are a few bytes long in texts of WORDS. A tokenizer is left in the folder.
    """
    model = preset({"byte": "byte-tiny", "token": "token-tiny"}.get(family, "blt-tiny"))
    params = _random(model, 3)
    if family == "token":
        tokenizer = train(Documents.of([WORDS * 30]), 270, folder / "tokenizer.json")
        model = dataclasses.replace(model, vocabulary_size=274)
        return Source(model, _random(model, 3), tokenizer=tokenizer)
    if family == "space":
        return Source(model, params, PatcherConfig(rule="space"))
    if family == "entropy":
        entropy = preset("entropy-tiny")
        entropy_params = _random(entropy, 4)
        found = np.sort(Scorer(entropy, entropy_params, batch=1).score(Documents.of([WORDS * 4])).astype(np.float32))
        middle = found[int(0.6 * len(found)) : int(0.9 * len(found))]
        gap = np.diff(middle).argmax()  # rounding must not move a patch
        patcher = PatcherConfig(threshold=float(middle[gap : gap + 2].mean()))
        return Source(model, params, patcher, entropy, entropy_params)
    return Source(model, params)


def _random(model, seed):
    return jax.tree.map(jnp.asarray, random_params(abstract_params(model), seed))
