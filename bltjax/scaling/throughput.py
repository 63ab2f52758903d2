"""How long a training step of each model takes, measured in a bench before any model of a study is trained.

So do budgets of device-seconds become steps, as in Languini Kitchen (arXiv 2309.11197): the very step of training is
compiled and taken on random rows of the shape that the run has, since how long it takes does not depend on what the
text says. A step counts from the moment it is started until its metrics are back; compiling, the first steps, and what
reads text from disk are left out, as are the entropy model and its scores, which come before.

What was measured is kept in `throughput.json` of the study and never measured again: whatever a later invocation runs
on, it takes the same steps. It is part of what a run is known by, so that a changed file means other runs.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bltjax import vocabulary
from bltjax.batch import Batch
from bltjax.config import ModelConfig, PatcherConfig, RowsConfig, TokenTransformerConfig, TrainConfig, to_dict
from bltjax.lock import Lock
from bltjax.optim import learning_rate
from bltjax.scaling.inputs import Inputs
from bltjax.scaling.series import patch_size
from bltjax.scaling.store import Json, digest, environment, now, read_json, write_json
from bltjax.scaling.study import Study
from bltjax.sharding import make_mesh
from bltjax.step import compile_step

STEPS, FIRST_STEPS = 20, 2  # timed; and before those, not timed
HOW = "python scripts/plan.py STUDY --machine NAME --prepare --probe"


@dataclasses.dataclass(frozen=True)
class Throughput:
    """What was measured of one model.

    Attributes:
      seconds: of a step, the median.
      devices: that were at work.
      machine: in words.
    """

    seconds: float
    devices: int
    machine: str

    @property
    def device_seconds(self) -> float:
        """Of a step."""
        return self.seconds * self.devices

    def steps_within(self, budget: float, name: str) -> int:
        """Steps that come nearest to a budget of device-seconds.

        Raises:
          ValueError: if not even one step fits.
        """
        if budget < self.device_seconds:
            raise ValueError(
                f"budgets: {budget:.3g} device-seconds are less than one step of {name}, which takes "
                f"{self.device_seconds:.3g} on {self.machine}. Raise the budget, choose smaller models, or lower batch "
                "or row_bytes."
            )
        return round(budget / self.device_seconds)


def throughput_file(study: Study) -> Path:
    """Where a study keeps what was measured."""
    return study.out / "throughput.json"


def _known_by(model: ModelConfig, rows: RowsConfig) -> str:
    return digest([to_dict(model), rows.bytes, rows.slots, rows.batch])


def throughput_of(study: Study, name: str, model: ModelConfig, rows: RowsConfig | None) -> Throughput | None:
    """What was measured of a model on rows of a shape; None for a study whose budgets are FLOPs.

    Args:
      rows: None: not known yet, and so nothing was measured.

    Raises:
      ValueError: where it was not measured, with how that is done, or the file is none of this package's.
    """
    if study.equal == "flops":
        return None
    path = throughput_file(study)
    stored = read_json(path) if path.is_file() else {"models": {}}
    found = None if rows is None else stored["models"].get(_known_by(model, rows))
    if found is None:
        raise ValueError(
            f"equal='seconds': how long a step of {name} takes is not in {path}, and so are its steps not known. "
            f"Measure it on the machine whose seconds are meant: {HOW}; or run the study in one process, which "
            "measures first."
        )
    seconds, devices = float(found["seconds_per_step"]), int(found["devices"])
    if not (math.isfinite(seconds) and seconds > 0 and devices >= 1):
        raise ValueError(f"{path}: {name} takes {seconds} seconds a step on {devices} devices: delete it, and measure.")
    return Throughput(seconds, devices, in_words(stored["machine"]))


def in_words(machine: Json) -> str:
    """A machine as figures name it."""
    cores = f" of {machine['cores']} cores" if machine["platform"] == "cpu" else ""
    return f"{machine['count']} x {machine['kind']} ({machine['processor']}{cores})"


def machine_of(study: Study) -> str:
    """In words, the machine whose seconds the budgets of a study are."""
    return in_words(read_json(throughput_file(study))["machine"])


def measure(study: Study, inputs: Inputs, say: Callable[[str], None], devices: int | None = None) -> None:
    """Measures every model of a study that was not measured yet, on all devices here, and nothing besides.

    Args:
      devices: that the machine is to have; None: as many as are here.

    Raises:
      ValueError: for another number of devices, or where others of the study were measured on another machine.
    """
    here = len(jax.devices())
    if devices not in (None, here):
        raise ValueError(f"equal='seconds': the machine is to have {devices} devices, and {here} are here.")
    path = throughput_file(study)
    study.out.mkdir(parents=True, exist_ok=True)
    inputs.make_tokenizers()
    asked = [(name, model, wanted) for name, model in study.models().items() for wanted in study.patchers_of(name)]
    sources = [inputs.source(model, wanted, "train") for _, model, wanted in asked]  # before the clock runs
    with Lock(path.with_name(f".{path.name}.lock"), wait=True):
        about = environment()
        machine = {**about["device"], **about["machine"]}
        stored = read_json(path) if path.is_file() else {"machine": machine, "models": {}}
        for (name, model, wanted), source in zip(asked, sources, strict=True):
            key = _known_by(model, source.config)
            if key in stored["models"]:
                continue
            if stored["machine"] != machine:
                raise ValueError(
                    f"equal='seconds': {path} was measured on {in_words(stored['machine'])}, and this is "
                    f"{in_words(machine)}: measure {name} there, or name another folder, whose budgets are this one's."
                )
            positions = source.config.slots if isinstance(model, TokenTransformerConfig) else source.length
            assert positions is not None
            patcher = None if wanted is None else inputs.patcher(wanted)
            seconds = step_seconds(_training(model, source.config, patcher), positions, machine["count"])
            size = patch_size(wanted)
            label = name if size is None else f"{name}, patches of {size:g} bytes"
            stored["models"][key] = {
                "model": label, "seconds_per_step": seconds, "devices": machine["count"], "steps": STEPS, "date": now(),
                "rows": source.config.batch, "versions": about["versions"],
            }  # fmt: skip
            write_json(path, stored)
            say(f"{label}: {seconds * 1e3:.4g} ms a step on {in_words(machine)}")


def _training(model: ModelConfig, rows: RowsConfig, patcher: PatcherConfig | None) -> TrainConfig:
    return TrainConfig(model, FIRST_STEPS + STEPS, patcher=patcher, rows=rows)


def step_seconds(
    config: TrainConfig,
    positions: int,
    devices: int,
    steps: int = STEPS,
    timer: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of a training step, the median of so many.

    Args:
      positions: inputs of a row.
      devices: to use, of those that are here.
    """
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    step = compile_step(config.model, config.optim, mesh, config.accumulation, config.rows.slots)
    batch = random_batch(config.model, config.rows, positions)
    state = step.initial_state(config.seed)
    taken = []
    for number in range(FIRST_STEPS + steps):
        begin = timer()
        state, metrics = step(state, batch, learning_rate(config.optim, min(number, config.steps), config.steps))
        jax.device_get(metrics)
        taken.append(timer() - begin)
    return statistics.median(taken[FIRST_STEPS:])


def random_batch(model: ModelConfig, rows: RowsConfig, positions: int, seed: int = 0) -> Batch:
    """A batch of random bytes or tokens in full rows; patches are as long as the slots of a row allow, evenly."""
    generator = np.random.default_rng(seed)
    is_token = isinstance(model, TokenTransformerConfig)
    size = model.vocabulary_size if isinstance(model, TokenTransformerConfig) else vocabulary.OFFSET + 256
    ids = generator.integers(vocabulary.OFFSET, size, (rows.batch, positions + 1))
    starts = None
    if model.reads_patches:
        assert rows.slots is not None
        starts = np.zeros((rows.batch, positions + 1), bool)
        starts[:, :2] = True
        starts[:, np.linspace(1, positions, rows.slots - 1, endpoint=False).astype(np.int64)] = True
    kind = np.int32 if is_token else np.int16
    fields: dict[str, Any] = {
        "ids": ids[:, :-1].astype(kind),
        "targets": ids[:, 1:].astype(kind),
        "target_bytes": np.full((rows.batch, positions), 4 if is_token else 1, np.uint16),
        "starts": starts,
    }
    return Batch(**fields)
