"""The loop around the training step, and the score of a trained model: one code for every family.

A run is a folder. Whatever happens to its process, running it again goes on from the last checkpoint and ends with the
parameters and the metrics of a run that was never disturbed.
"""

import dataclasses
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from bltjax.batch import Batch
from bltjax.checkpoint import Checkpoints, check_same
from bltjax.claim import Claim, about_run, data_identity, read_config
from bltjax.config import TokenTransformerConfig, TrainConfig
from bltjax.data.pipeline import train_batches
from bltjax.data.views import Source
from bltjax.evaluate import Score, evaluate
from bltjax.flops import flops_per_byte
from bltjax.metrics import Journal, Progress, Row, peak_of, replace_file, trackers
from bltjax.optim import learning_rate
from bltjax.provenance import Provenance
from bltjax.runtime import Stopped, StopRequest, agree, gather, is_first_process, stop_on_signals, together
from bltjax.sharding import make_mesh
from bltjax.step import StepMetrics, TrainState, TrainStep, compile_step
from bltjax.tally import Tally
from bltjax.walltime import WallTime

__all__ = ["RunResult", "Score", "data_identity", "evaluate", "fit", "load_params"]

_SAVE, _STOP, _FAILED = 1, 2, 3  # wishes: all processes see the greatest with the metrics of a step, and follow it


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run."""

    config: TrainConfig  # with rows.slots as measured
    folder: Path
    params: Any
    bytes_seen: int  # raw bytes trained on
    device_seconds: float  # over all restarts; compiling, saving and scoring are left out
    wall: dict[str, float]  # seconds by what they were spent on, over all restarts; the keys of `walltime.BUCKETS`
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
    checkpoint_seconds: float = float("inf"),
    grace_seconds: float | None = None,
    allow_change: Sequence[str] = (),
    profile: int = 0,
    devices: Sequence[Any] | None = None,
    provenance: Provenance | None = None,
) -> RunResult:
    """Trains, or goes on training, or finds that all is done.

    The folder gets config.json, metrics.jsonl (a row every config.log_every steps, and a last one), checkpoints/, and
    bad_batches.json where a run ends for losses that are not finite. An earlier part of the same run that lies there is
    gone on with: parameters and rows end up as if it had never been stopped, to the bit on the same number and kind of
    devices; only "timing" differs. Where there are several processes all of them call this, with equal arguments, and
    the first one writes.

    Args:
      source: where the rows come from; made for config.rows.
      on_step: is called with each row of metrics.
      stop: to stop from outside; None: SIGTERM and Ctrl-C do.
      progress: where to show how far it is; None: standard error.
      track: further places for the metrics, of `metrics.TRACKERS`.
      checkpoint_seconds: saves after this time too, not only every config.checkpoint_every steps.
      grace_seconds: how long saving may take after SIGTERM, where `stop` is None; see `runtime.stop_on_signals`.
      allow_change: keys of the configuration that may differ from what the run was begun with; see `claim.Claim`.
      profile: traces so many steps, from the third one on, into the folder "profile", for xprof.
      devices: to use; None: all.
      provenance: what else the run is made with, for its folder to say.

    Raises:
      ValueError: when config, data or shapes are not those that the folder was begun with, or rows do not fit.
      FloatingPointError: when the updates of config.max_skips steps in a row were skipped, for losses or gradients that
        are not finite or spikes, naming steps and rows. Earlier checkpoints stay, none is made.
      BlockingIOError: while another process trains in this folder.
      OSError: when the folder can't be written to, or a checkpoint not be finished; earlier ones stay.
      Stopped: when it was asked to stop; the state is saved.
    """
    if stop is None:
        with stop_on_signals(grace_seconds) as stop:
            return fit(
                config, source, folder, on_step=on_step, stop=stop, progress=progress, track=track,
                checkpoint_seconds=checkpoint_seconds, allow_change=allow_change,
                profile=profile, devices=devices, provenance=provenance,
            )  # fmt: skip
    rows = dataclasses.replace(source.config, batch=config.rows.batch, seed=config.rows.seed)
    if config.rows.bytes != rows.bytes or config.rows.slots not in (None, rows.slots):
        raise ValueError(f"rows={config.rows}: the source was made for {source.config}.")
    config = dataclasses.replace(config, rows=rows)
    if progress is None or not is_first_process():
        progress = Progress(silent=not is_first_process())
    run = _Run(config, source, Path(folder), on_step, progress, checkpoint_seconds, devices)
    claim = run.claim(allow_change, provenance)
    try:
        try:
            state = run.restore()
            if run.step < config.steps:
                state = run.train(state, stop, track, profile)
        finally:
            progress.end()
            run.checkpoints.close()
    finally:
        if claim is not None:
            claim.release()
    tally, room = run.tally, run.room
    trained = max(1, config.steps - tally.skipped)
    return RunResult(
        config=config,
        folder=run.folder,
        params=state.params,
        bytes_seen=tally.bytes_seen,
        device_seconds=tally.device_seconds,
        wall=run.wall.seconds,
        fill={name: getattr(tally, name) / (trained * places) for name, places in room.items()},
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
        self.wall = WallTime()
        self.config, self.source, self.folder = config, source, folder
        self.on_step, self.progress, self.checkpoint_seconds = on_step, progress, checkpoint_seconds
        self.mesh = make_mesh(config.mesh, devices)
        slots = source.slots if config.model.reads_patches else None
        # Whatever does not fit is found before anything is written.
        self.train_step: TrainStep = compile_step(config.model, config.optim, self.mesh, config.accumulation, slots)
        self.train_step.check_rows(config.rows.batch)
        self.about = about_run(config, source)
        self.may_differ: Sequence[str] = ()
        self.checkpoints = Checkpoints(folder / "checkpoints", keep_every=config.keep_every)
        self.room = {"positions": config.rows.batch * source.length}  # of one step
        if slots is not None:
            self.room["patches"] = config.rows.batch * slots
        self.step, self.tally = 0, Tally()
        self.pending: deque[tuple[int, float, StepMetrics]] = deque()
        self.agreed = 0
        self.batch: Any = None  # the last that was read
        self.failed: Exception | None = None  # why this process has no further batch
        self.mark = self.saved = time.perf_counter()

    def claim(self, allow_change: Sequence[str], provenance: Provenance | None) -> Claim | None:
        identity = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()
        others = [i for i, other in enumerate(gather("identity", identity)) if other != identity]
        if others:
            raise ValueError(
                f"processes {', '.join(map(str, others))} have another configuration or other data than this one: "
                "start all with the same arguments, and give all the same corpus."
            )
        claim = together("claim", lambda: Claim(self.folder, self.about, allow_change, provenance), first_only=True)
        self.may_differ = gather("may differ", None if claim is None else claim.may_differ)[0]
        return claim

    def restore(self) -> TrainState:
        found = self.checkpoints.restore(
            self.train_step.abstract_state,
            lambda record: check_same(record["about"], self.about, str(self.checkpoints.folder), self.may_differ),
            self.progress.say,
        )
        if found is None:
            return self.train_step.initial_state(self.config.seed)
        state, record = found
        self.step, self.tally = record["step"], Tally(**record["tally"])
        self.wall.add(record["wall"])
        if self.step < self.config.steps:
            self.progress.say(f"goes on from step {self.step:,} of {self.config.steps:,}")
        return state

    def train(self, state: TrainState, stop: StopRequest, track: Sequence[str], profile: int) -> TrainState:
        config, total, first = self.config, self.config.steps, self.step
        saves = (config.checkpoint_every, config.keep_every)
        batches = train_batches(self.source, config.rows, first, jax.process_index(), jax.process_count())
        with _Rows(self, track) as rows, _Trace(self, first + 2, profile) as trace:
            self.wall.add({"lost to restarts": rows.lost_seconds})
            self.wall.tick()
            self.wall.default = "step"
            while self.step < total:
                wish = _STOP if stop.requested else _SAVE if self.late() else 0
                if jax.process_count() == 1:
                    self.agreed = wish
                if self.agreed == _STOP:
                    self.collect(rows, 0)
                    self.save(state, rows)
                    self.checkpoints.wait()
                    raise Stopped(
                        f"stopped by {stop.reason or 'another process'} at step {self.step:,} of {total:,}; the state "
                        f"is saved in {self.folder}: run the same command again to go on from there."
                    )
                rate = learning_rate(config.optim, self.step, total)
                trace.look()
                with self.wall.spent("data wait"):
                    batch = self.read(batches)
                state, metrics = self.train_step(state, batch, rate, _FAILED if self.failed else wish)
                if self.step == first:
                    self.mark = time.perf_counter()  # the first call returns when the program is compiled
                    self.wall.tick("compile")
                self.step += 1
                self.pending.append((self.step, rate, metrics))
                # The metrics of a step are waited for when the next one is on its way: the devices never wait for us.
                self.collect(rows, 1)
                due = any(every is not None and self.step % every == 0 for every in saves)
                if due or self.step == total or self.agreed == _SAVE:
                    self.collect(rows, 0)
                    self.save(state, rows)
            with self.wall.spent("checkpoint"):
                self.checkpoints.wait()
        return state

    def read(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the last one again where it can't be read, until all processes know and end together."""
        if self.batch is None:
            self.batch = together("first batch", lambda: next(batches))
        elif self.failed is None:
            try:
                self.batch = next(batches)
            except Exception as error:
                if jax.process_count() == 1:
                    raise
                self.failed = error  # no step is taken without this process: the others would wait for ever
        return self.batch

    def collect(self, rows: "_Rows", leave: int) -> None:
        while len(self.pending) > leave:
            step, rate, metrics = self.pending.popleft()
            metrics = jax.device_get(metrics)
            now = time.perf_counter()
            self.agreed = max(self.agreed, int(metrics.wish))
            if self.agreed == _FAILED:
                agree("data", self.failed)  # on all after the same step, and before anything of it is kept
            self.tally.add(step, metrics, now - self.mark, self.mesh.size)
            self.mark = now
            self.check_sound()
            if step % self.config.log_every == 0 or step == self.config.steps:
                size = self.unit_bytes()
                rows.write(with_speed(self.tally.row(step, rate, self.room), self.config, size, self.mesh))

    def unit_bytes(self) -> float:
        """Bytes per patch or token of the interval, as measured."""
        model, sums = self.config.model, self.tally.sums
        name = "patches" if model.reads_patches else "positions" if isinstance(model, TokenTransformerConfig) else None
        return 1.0 if name is None else sums.get("bytes", 0) / max(1, sums.get(name, 0))

    def late(self) -> bool:
        return is_first_process() and time.perf_counter() - self.saved > self.checkpoint_seconds  # one clock for all

    def check_sound(self) -> None:
        """Ends a run that no longer trains."""
        bad = self.tally.bad
        if len(bad) < self.config.max_skips:
            return
        batch, order = self.config.rows.batch, self.source.order(self.config.rows.seed)
        rows = {b["step"]: [int(order.row(k)) for k in range((b["step"] - 1) * batch, b["step"] * batch)] for b in bad}
        path = self.folder / "bad_batches.json"
        if is_first_process():
            replace_file(path, json.dumps([{**b, "rows": rows[b["step"]]} for b in bad], indent=1).encode())
        last = bad[-1]
        named = ", ".join(map(str, rows[last["step"]][:32])) + (", ..." if batch > 32 else "")
        raise FloatingPointError(
            f"step {last['step']:,}: no update for {len(bad)} steps in a row; the loss is {last['nats_per_byte']} nats "
            f"per byte, the norm of its gradient {last['gradient_norm']}. The batch has the rows {named} of the "
            f"training split; {path} has those of all these steps. Nothing was saved since the last checkpoint in "
            f"{self.checkpoints.folder}. Lower optim.peak_rate, now {self.config.optim.peak_rate:g}, lengthen "
            "optim.warmup_steps, or look at these rows."
        )

    def save(self, state: TrainState, rows: "_Rows") -> None:
        self.agreed = 0
        with self.wall.spent("checkpoint"):
            rows.sync()
            record = {"about": self.about, "step": self.step, "tally": dataclasses.asdict(self.tally)}
            self.checkpoints.save(self.step, state, {**record, "wall": self.wall.seconds})
        self.mark = self.saved = time.perf_counter()


class _Rows:
    """Where the rows of metrics go, on the first process."""

    def __init__(self, run: _Run, track: Sequence[str]) -> None:
        self._run = run
        self._first = is_first_process()
        self.lost_seconds = 0.0  # of steps that an earlier part of this run took, and that are taken again
        if self._first:
            identity = hashlib.sha256(json.dumps(run.about, sort_keys=True).encode()).hexdigest()[:16]
            self._trackers = trackers(track, run.folder, run.about, identity)
            self._journal = Journal(run.folder / "metrics.jsonl", run.step)
            self.lost_seconds = sum(row["timing"]["seconds"] for row in self._journal.dropped)

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


class _Trace:
    """A trace of some steps for xprof."""

    def __init__(self, run: _Run, first: int, steps: int) -> None:
        self._run, self._steps, self._running = run, range(first, first + steps), False

    def look(self) -> None:
        wanted = self._run.step in self._steps
        if wanted != self._running:
            self._running = wanted
            if wanted:
                jax.profiler.start_trace(str(self._run.folder / "profile"))
            else:
                jax.profiler.stop_trace()

    def __enter__(self) -> "_Trace":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._running:
            jax.profiler.stop_trace()


def with_speed(row: dict[str, Any], config: TrainConfig, unit_bytes: float, mesh: Mesh) -> dict[str, Any]:
    """A row of metrics, with the FLOPs per second of its interval under "timing", and their share of the peak if known.

    They are the FLOPs of the model in the accounting "full".

    Args:
      unit_bytes: bytes per patch or token.
    """
    timing = row["timing"]
    size = min(max(1.0, unit_bytes), float(config.rows.bytes))
    cost = flops_per_byte(config.model, size, config.rows.bytes, "full").training
    timing["flops_per_second"] = cost * timing["bytes_per_second"]
    peak = peak_of(mesh.devices.flat[0].device_kind)
    if peak is not None:
        timing["of_peak"] = timing["flops_per_second"] / (peak * mesh.size)
    return row


def load_params(folder: str | Path, mesh: Mesh | None = None) -> tuple[TrainConfig, Any, int]:
    """The configuration of a run, its parameters at the newest sound checkpoint, and the steps they have seen.

    Args:
      mesh: what to lay the parameters out over; None: one device.

    Raises:
      FileNotFoundError: where there is no run, or none of its steps was saved.
      ValueError: for checkpoints that are damaged or do not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
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
