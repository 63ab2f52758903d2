"""The loop around the training step, and the score of a trained model: one code for every family.

A run is a folder. Whatever happens to its process, running it again goes on from the last checkpoint and ends with the
parameters and the metrics of a run that was never disturbed.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bltjax.batch import Batch
from bltjax.checkpoint import Checkpoints, check_same
from bltjax.config import BLTConfig, ModelConfig, TrainConfig, from_dict, to_dict
from bltjax.data.pipeline import train_batches
from bltjax.data.views import Source
from bltjax.loss import Sums, bits_per_byte
from bltjax.metrics import Journal, Progress, Row, replace_file, trackers
from bltjax.optim import learning_rate
from bltjax.runtime import Stopped, StopRequest, is_first_process, stop_on_signals
from bltjax.sharding import make_mesh, mesh_of, shard_params
from bltjax.step import StepMetrics, TrainState, TrainStep, compile_score, compile_step

MAY_DIFFER = ("checkpoint_every", "mesh")  # what a run may go on with although it was begun otherwise


@dataclasses.dataclass
class Tally:
    """What a run has counted so far; it lies in the checkpoints. The interval is that since the last row of metrics."""

    bytes_seen: int = 0  # raw bytes trained on
    device_seconds: float = 0.0  # taken by steps, times devices; compiling, saving and scoring are left out
    positions: int = 0  # scored targets
    patches: int = 0
    steps: int = 0  # of the interval, like all that follows
    seconds: float = 0.0
    gradient_norms: float = 0.0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, metrics: StepMetrics, seconds: float, devices: int) -> None:
        """Counts one step, from its metrics on the host."""
        counts = {"positions": int(metrics.positions), "patches": int(metrics.patches)}
        nats = {name: float(getattr(metrics.sums, name)) for name in ("byte_nats", "special_nats")}
        of_nats = {name: int(getattr(metrics.sums, name)) for name in ("bytes", "specials")}
        for name, value in {**nats, **of_nats, **counts}.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.bytes_seen += of_nats["bytes"]
        self.positions += counts["positions"]
        self.patches += counts["patches"]
        self.gradient_norms += float(metrics.gradient_norm)
        self.steps += 1
        self.seconds += seconds
        self.device_seconds += seconds * devices

    def row(self, step: int, rate: float, room: Mapping[str, int]) -> dict[str, Any]:
        """Closes the interval and gives its row; all of it but "timing" is the same however often a run was killed."""
        sums, steps, seconds = self.sums, self.steps, max(self.seconds, 1e-9)
        row = {
            "step": step,
            "bytes_seen": self.bytes_seen,
            "bits_per_byte": bits_per_byte(sums["byte_nats"], int(sums["bytes"])),
            "gradient_norm": self.gradient_norms / steps,
            "rate": rate,
            "sums": {name: sums[name] for name in ("byte_nats", "bytes", "special_nats", "specials")},
            "fill": {name: sums[name] / (steps * places) for name, places in room.items()},
            "timing": {
                "seconds": seconds,
                "seconds_per_step": seconds / steps,
                "bytes_per_second": sums["bytes"] / seconds,
            },
        }
        self.steps, self.seconds, self.gradient_norms, self.sums = 0, 0.0, 0.0, {}
        return row


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run."""

    config: TrainConfig  # with rows.slots as measured
    folder: Path
    params: Any
    bytes_seen: int  # raw bytes trained on
    device_seconds: float  # over all restarts; compiling, saving and scoring are left out
    fill: dict[str, float]  # share of the positions, and for BLT of the patch slots, that training rows used


def fit(
    config: TrainConfig,
    source: Source,
    folder: str | Path,
    *,
    on_step: Callable[[Row], None] | None = None,
    stop: StopRequest | None = None,
    progress: Progress | None = None,
    track: Sequence[str] = (),
    checkpoint_seconds: float = math.inf,
    devices: Sequence[Any] | None = None,
) -> RunResult:
    """Trains, or goes on training, or finds that all is done.

    The folder gets config.json, metrics.jsonl (a row every config.log_every steps, and a last one) and checkpoints/.
    An earlier part of the same run that lies there is gone on with: parameters and rows end up as if it had never been
    stopped, to the bit on the same number and kind of devices; only "timing" differs.

    Args:
      source: where the rows come from; made for config.rows.
      on_step: is called with each row of metrics.
      stop: to stop from outside; None: SIGTERM and Ctrl-C do.
      progress: where to show how far it is; None: standard error.
      track: further places for the metrics, of `metrics.TRACKERS`.
      checkpoint_seconds: saves after this time too, not only every config.checkpoint_every steps.
      devices: to use; None: all.

    Raises:
      ValueError: when config, data or shapes are not those that the folder was begun with, or rows do not fit.
      FloatingPointError: when a loss or gradient is not finite, naming the step. Earlier checkpoints stay.
      Stopped: when it was asked to stop; the state is saved.
    """
    if stop is None:
        with stop_on_signals() as stop:
            return fit(
                config, source, folder, on_step=on_step, stop=stop, progress=progress, track=track,
                checkpoint_seconds=checkpoint_seconds, devices=devices,
            )  # fmt: skip
    rows = dataclasses.replace(source.config, batch=config.rows.batch, seed=config.rows.seed)
    if config.rows.bytes != rows.bytes or config.rows.slots not in (None, rows.slots):
        raise ValueError(f"rows={config.rows}: the source was made for {source.config}.")
    config = dataclasses.replace(config, rows=rows)
    progress = Progress() if progress is None else progress
    run = _Run(config, source, Path(folder), on_step, progress, checkpoint_seconds, devices)
    try:
        state = run.restore()
        if run.step < config.steps:
            state = run.train(state, stop, track)
    finally:
        progress.end()
        run.checkpoints.close()
    tally, room = run.tally, run.room
    return RunResult(
        config=config,
        folder=run.folder,
        params=state.params,
        bytes_seen=tally.bytes_seen,
        device_seconds=tally.device_seconds,
        fill={name: getattr(tally, name) / (config.steps * places) for name, places in room.items()},
    )


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        source: Source,
        folder: Path,
        on_step: Callable[[Row], None] | None,
        progress: Progress,
        checkpoint_seconds: float,
        devices: Sequence[Any] | None,
    ) -> None:
        self.config, self.source, self.folder = config, source, folder
        self.on_step, self.progress, self.checkpoint_seconds = on_step, progress, checkpoint_seconds
        self.mesh = make_mesh(config.mesh, devices)
        slots = source.slots if isinstance(config.model, BLTConfig) else None
        # Whatever does not fit is found before anything is written.
        self.train_step: TrainStep = compile_step(config.model, config.optim, self.mesh, config.accumulation, slots)
        self.train_step.check_rows(config.rows.batch)
        self.about = _claim(folder, config, source)
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.room = {"positions": config.rows.batch * source.length}  # of one step
        if slots is not None:
            self.room["patches"] = config.rows.batch * slots
        self.step, self.tally = 0, Tally()
        self.pending: deque[tuple[int, float, StepMetrics]] = deque()
        self.mark = self.saved = time.perf_counter()

    def restore(self) -> TrainState:
        found = self.checkpoints.restore(
            self.train_step.abstract_state,
            lambda record: check_same(record["about"], self.about, str(self.checkpoints.folder), MAY_DIFFER),
            self.progress.say,
        )
        if found is None:
            return self.train_step.initial_state(self.config.seed)
        state, record = found
        self.step, self.tally = record["step"], Tally(**record["tally"])
        if self.step < self.config.steps:
            self.progress.say(f"goes on from step {self.step:,} of {self.config.steps:,}")
        return state

    def train(self, state: TrainState, stop: StopRequest, track: Sequence[str]) -> TrainState:
        config, total, first = self.config, self.config.steps, self.step
        batches = train_batches(self.source, config.rows, first, jax.process_index(), jax.process_count())
        with _Rows(self, track) as rows:
            while self.step < total:
                if stop.requested:
                    self.collect(rows, 0)
                    self.save(state, rows)
                    self.checkpoints.wait()
                    raise Stopped(
                        f"stopped by {stop.reason} at step {self.step:,} of {total:,}; the state is saved in "
                        f"{self.folder}: run the same command again to go on from there."
                    )
                rate = learning_rate(config.optim, self.step, total)
                state, metrics = self.train_step(state, next(batches), rate)
                if self.step == first:
                    self.mark = time.perf_counter()  # the first call returns when the program is compiled
                self.step += 1
                self.pending.append((self.step, rate, metrics))
                # The metrics of a step are waited for when the next one is on its way: the devices never wait for us.
                self.collect(rows, 1)
                late = time.perf_counter() - self.saved > self.checkpoint_seconds
                if self.step == total or self.step % config.checkpoint_every == 0 or late:
                    self.collect(rows, 0)
                    self.save(state, rows)
            self.checkpoints.wait()
        return state

    def collect(self, rows: "_Rows", leave: int) -> None:
        while len(self.pending) > leave:
            step, rate, metrics = self.pending.popleft()
            metrics = jax.device_get(metrics)
            now = time.perf_counter()
            nats = float(metrics.sums.byte_nats) + float(metrics.sums.special_nats)
            if not (math.isfinite(nats) and math.isfinite(metrics.gradient_norm)):
                raise FloatingPointError(
                    f"step {step:,}: the loss is {nats} nats, the norm of its gradient {metrics.gradient_norm}. "
                    f"Nothing was saved since the last checkpoint in {self.checkpoints.folder}. Lower "
                    f"optim.peak_rate, now {self.config.optim.peak_rate:g}, or lengthen optim.warmup_steps."
                )
            self.tally.add(metrics, now - self.mark, self.mesh.size)
            self.mark = now
            if step % self.config.log_every == 0 or step == self.config.steps:
                rows.write(self.tally.row(step, rate, self.room))

    def save(self, state: TrainState, rows: "_Rows") -> None:
        rows.sync()
        record = {"about": self.about, "step": self.step, "tally": dataclasses.asdict(self.tally)}
        self.checkpoints.save(self.step, state, record)
        self.mark = self.saved = time.perf_counter()


class _Rows:
    """Where the rows of metrics go, on the first process."""

    def __init__(self, run: _Run, track: Sequence[str]) -> None:
        self._run = run
        self._first = is_first_process()
        if self._first:
            identity = hashlib.sha256(json.dumps(run.about, sort_keys=True).encode()).hexdigest()[:16]
            self._trackers = trackers(track, run.folder, run.about, identity)
            self._journal = Journal(run.folder / "metrics.jsonl", run.step)

    def __enter__(self) -> "_Rows":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._first:
            for place in (*self._trackers, self._journal):
                place.close()

    def write(self, row: Row) -> None:
        if self._first:
            for place in (self._journal, *self._trackers):
                place.write(row)
            self._run.progress.show(row, self._run.config.steps)
        if self._run.on_step is not None:
            self._run.on_step(row)

    def sync(self) -> None:
        if self._first:
            self._journal.sync()


def load_params(folder: str | Path, mesh: Mesh | None = None) -> tuple[TrainConfig, Any, int]:
    """The configuration of a run, its parameters at the newest sound checkpoint, and the steps they have seen.

    Args:
      mesh: what to lay the parameters out over; None: one device.

    Raises:
      FileNotFoundError: where there is no run, or none of its steps was saved.
      ValueError: for checkpoints that are damaged or do not fit.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no run (no config.json): name the folder of a training run.")
    about = json.loads((folder / "config.json").read_bytes())
    config = from_dict(TrainConfig, {key: value for key, value in about.items() if key != "data"})
    mesh = make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    step = compile_step(config.model, config.optim, mesh, slots=config.rows.slots)
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        found = checkpoints.restore(step.abstract_state, lambda record: None, Progress().say)
    finally:
        checkpoints.close()
    if found is None:
        raise FileNotFoundError(f"{folder} has no checkpoint yet: let the run go on until it has saved one.")
    state, record = found
    return config, state.params, record["step"]


def data_identity(source: Source) -> dict[str, Any]:
    """What the data of a run is known by: its size, and hashes of its documents and of how rows are cut from them."""
    arrays = {
        "documents": source.documents.digests,
        "rows": source.rows.units,
        "patches": getattr(source, "stream_starts", None),
    }
    hashes = {
        name: hashlib.sha256(array.tobytes()).hexdigest()[:16] for name, array in arrays.items() if array is not None
    }
    return {"bytes": source.documents.total_bytes, **hashes}


def _claim(folder: Path, config: TrainConfig, source: Source) -> dict[str, Any]:
    """Writes config.json, or compares with the one that is there."""
    about = {**to_dict(config), "data": data_identity(source)}
    path = folder / "config.json"
    if path.exists():
        try:
            stored = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}): restore it, or give this run another folder.") from error
        check_same(stored, about, str(folder), MAY_DIFFER)
    elif (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists():
        raise ValueError(f"{folder} holds parts of a run, but no config.json: give this run a folder of its own.")
    elif is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(about, indent=2).encode())
    return about


@dataclasses.dataclass(frozen=True)
class Score:
    """What a model pays for documents; exact sums on the host."""

    byte_nats: float = 0.0  # for raw bytes
    bytes: int = 0  # raw bytes scored
    special_nats: float = 0.0  # for BOS and EOS
    specials: int = 0

    @property
    def bits_per_byte(self) -> float:
        return bits_per_byte(self.byte_nats, self.bytes)


def evaluate(
    model: ModelConfig,
    params: Any,
    batches: Iterable[Batch],
    *,
    slots: int | None = None,
    mesh: Mesh | None = None,
) -> Score:
    """The score of a model on batches such as `data.pipeline.heldout_batches` gives.

    Args:
      batches: all of one shape, this process's rows of each.
      slots: patches of a row, for BLT; None: `batches.slots`.
      mesh: None: that of the params, or of one device where they have none.

    Raises:
      ValueError: for batches that do not divide over the mesh, or a BLT without slots.
    """
    if mesh is None:
        mesh = mesh_of(params) or make_mesh(devices=jax.devices()[:1])
    blt = isinstance(model, BLTConfig)
    score = compile_score(model, mesh, getattr(batches, "slots", None) if blt and slots is None else slots)
    params = shard_params(params, mesh)
    return _total(score(params, batch) for batch in batches)


def _total(sums: Iterator[Sums]) -> Score:
    fields = [field.name for field in dataclasses.fields(Score)]
    totals: dict[str, Any] = dict.fromkeys(fields, 0)
    pending: deque[Sums] = deque()

    def fetch(leave: int) -> None:
        while len(pending) > leave:
            one = jax.device_get(pending.popleft())
            for name in fields:
                exact = np.float64 if name.endswith("nats") else np.int64
                totals[name] += one[name].sum(dtype=exact).item()

    for one in sums:
        pending.append(one)
        fetch(leave=1)
    fetch(leave=0)
    return Score(**totals)
