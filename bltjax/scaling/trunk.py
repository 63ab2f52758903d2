"""Trunks of a study with the schedule "wsd": trained once at a constant rate, left by the runs of all budgets.

There is one for each model, patch size and seed, in `trunks/` of the study, named by the hash of all that decides it;
budgets do not. It is trained in pieces, from one step at which a run leaves to the next. A piece begins with a copy of
the state at the end of an earlier one, and its folder is that of a training run: it can be killed anywhere. So a larger
budget goes on from the furthest piece, and one that leaves at a step that was passed goes on from the piece before it;
the steps between are taken again, with the same result to the bit. A run that leaves copies the state, too, and from
there on is a run like any other, which counts its bytes and seconds over the whole path.
"""

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bltjax.checkpoint import Checkpoints, check_same
from bltjax.claim import MAY_DIFFER, Claim, about_run
from bltjax.config import OptimConfig, TrainConfig, config_hash, to_dict
from bltjax.data.views import Source
from bltjax.lock import Busy, Lock
from bltjax.metrics import Journal, Progress, read_journal
from bltjax.scaling.plan import RunPlan
from bltjax.scaling.rates import rate_suffix
from bltjax.scaling.store import Json, Run, digest, read_json, write_json
from bltjax.scaling.study import Study
from bltjax.sharding import make_mesh
from bltjax.step import compile_step
from bltjax.train import fit

BRANCH = ("steps", "log_every", "optim/schedule", "optim/decay_fraction")  # how what leaves a trunk differs from it
ORIGIN, PIECE = "origin.json", "piece.json"  # where a folder's path began; what was computed in it


def _config(train: TrainConfig, steps: int) -> TrainConfig:
    """A trunk up to a step: the same whichever of the runs that leave it is given."""
    optim = dataclasses.replace(train.optim, schedule="constant", decay_fraction=OptimConfig().decay_fraction)
    return dataclasses.replace(train, steps=steps, optim=optim, log_every=max(1, steps // 50))


def _known_by(plan: RunPlan) -> tuple[TrainConfig, dict[str, Any]]:
    """What decides a trunk: its configuration, of whatever length, and what went in; it is not scored."""
    inputs = {name: value for name, value in plan.inputs.items() if name != "scoring"}
    return _config(plan.train, max(1, plan.train.optim.warmup_steps)), inputs


def trunk_hash(plan: RunPlan) -> str:
    """What the trunk of a run is named by."""
    config, inputs = _known_by(plan)
    return digest(["trunk", config_hash(config), plan.name, inputs])


def jobs(plans: Iterable[RunPlan]) -> list[list[RunPlan]]:
    """Runs that are best done in this order by one process: those of one trunk, smallest budget first, or one alone.

    Engines do not: processes that each do a run of one trunk wait for one another, with the same results.
    """
    found: dict[Any, list[RunPlan]] = {}
    for number, plan in enumerate(sorted(plans, key=lambda plan: plan.budget)):
        found.setdefault(trunk_hash(plan) if plan.branch_step else number, []).append(plan)
    return list(found.values())


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints of a run's folder, newest first."""
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        return checkpoints.steps()
    finally:
        checkpoints.close()


class Trunk:
    """The trunk of a run.

    Attributes:
      id: what it is named by.
      folder: where it lies.
    """

    def __init__(self, study: Study, plan: RunPlan) -> None:
        self._plan = plan
        patches = "" if plan.patch_size is None else f"-p{plan.patch_size:g}"
        self.id = trunk_hash(plan)
        self.folder = study.out / "trunks" / f"{plan.name}{patches}{rate_suffix(plan.rate)}-s{plan.seed}-{self.id}"

    def _piece(self, step: int) -> Path:
        return self.folder / f"to-{step}"

    def _pieces(self) -> list[int]:
        return sorted(int(path.name.removeprefix("to-")) for path in self.folder.glob("to-*"))

    def points(self) -> list[int]:
        """The steps from which it can be left, ascending: pieces that are complete, and still have their state."""
        return [step for step in self._pieces() if step in saved_steps(self._piece(step))]

    def reach(self, step: int, source: Source, progress: Progress, checkpoint_seconds: float) -> Path:
        """Trains up to a step, from the nearest earlier point, unless that is done; the folder of the last piece.

        What cannot be read any more is trained again, and `progress` is told.

        Raises: as `bltjax.train.fit`.
        """
        folder, config, first = self._piece(step), _config(self._plan.train, step), 0
        if not saved_steps(folder):
            first = max((point for point in self.points() if point < step), default=0)
            (folder / ORIGIN).unlink(missing_ok=True)
            if first:
                leave(self.reach(first, source, progress, checkpoint_seconds), first, folder, config, source, self.id)
        result = fit(config, source, folder, progress=progress, checkpoint_seconds=checkpoint_seconds)
        origin = origin_of(folder)
        own = {name: getattr(result, name) - origin[name] for name in ("bytes_seen", "device_seconds")}
        write_json(folder / PIECE, {"first": origin["step"], "last": step, **own})
        return folder

    def begin(self, furthest: int | None) -> Json:
        """Writes its manifest before a piece is trained.

        Args:
          furthest: of its points; None: there is none yet.
        """
        (config, inputs), plan = _known_by(self._plan), self._plan
        about = {
            "id": self.id, "kind": "trunk", "family": plan.family, "preset": plan.name,
            "patch_size_wanted": plan.patch_size, "config": to_dict(config), "config_hash": config_hash(config),
            "inputs": inputs,
        }  # fmt: skip
        return Run(self.folder).begin(about, furthest)

    def finish(self, manifest: Json) -> None:
        """Writes its manifest with what was computed of it so far."""
        Run(self.folder).finish(manifest, {"points": self.points(), "pieces": computed(self.folder)})

    def forget(self) -> None:
        """Removes the states of all points but the furthest, from which a larger budget would go on."""
        for step in self.points()[:-1]:
            shutil.rmtree(self._piece(step) / "checkpoints")


def computed(folder: Path) -> list[Json]:
    """What was computed of a trunk, by piece: "first" and "last" step, "bytes_seen" and "device_seconds" between."""
    return sorted(map(read_json, folder.glob(f"to-*/{PIECE}")), key=lambda piece: piece["last"])


def origin_of(folder: Path) -> Json:
    """Where the path of a folder began: "step", and "bytes_seen" and "device_seconds" up to there; 0: at the start."""
    path = folder / ORIGIN
    return read_json(path) if path.is_file() else {"trunk": None, "step": 0, "bytes_seen": 0, "device_seconds": 0.0}


def branch_off(
    study: Study, plan: RunPlan, folder: Path, source: Source, progress: Progress, checkpoint_seconds: float
) -> None:
    """Sees to it that a run's folder has the state with which it leaves its trunk; trains the trunk up to there first.

    Nothing is done for a run that is trained alone, and for one that was begun. While another process trains the trunk,
    this waits for it.

    Raises: as `bltjax.train.fit`.
    """
    if not plan.branch_step or saved_steps(folder):
        return
    trunk = Trunk(study, plan)
    path = trunk.folder / "trunk.lock"
    try:
        lock = Lock(path, doing="is training the trunk")
    except Busy as busy:
        progress.say(f"waits: {busy.strerror}")
        lock = Lock(path, wait=True)
    with lock:
        there = trunk.points()
        manifest = trunk.begin(there[-1] if there else None) if plan.branch_step not in there else None
        piece = trunk.reach(plan.branch_step, source, progress, checkpoint_seconds)
        if manifest is not None:
            trunk.finish(manifest)
        leave(piece, plan.branch_step, folder, plan.train, source, trunk.id)
        if not study.keep_weights:
            trunk.forget()


def leave(trunk: Path, step: int, folder: Path, config: TrainConfig, source: Source, name: str) -> None:
    """Begins a run, or a further piece of the trunk, with the state of a trunk after so many steps.

    The folder gets the trunk's metrics up to there, the state as its first checkpoint, and where it came from. Nothing
    is trained: `bltjax.train.fit` finds the checkpoint, and goes on.

    Args:
      trunk: folder of the piece that ends there.
      config: of the run that begins.
      name: of the trunk.

    Raises:
      ValueError: where the trunk has no sound checkpoint of that step, or is that of other settings or other data.
      BlockingIOError: while another process trains in the folder.
    """
    rows = dataclasses.replace(source.config, batch=config.rows.batch, seed=config.rows.seed)
    config = dataclasses.replace(config, rows=rows)
    about = about_run(config, source)
    slots = source.slots if config.model.reads_patches else None
    made = compile_step(config.model, config.optim, make_mesh(config.mesh), config.accumulation, slots)
    there, own, said = Checkpoints(trunk / "checkpoints"), Checkpoints(folder / "checkpoints"), []
    claim = Claim(folder, about)
    try:
        found = there.restore(
            made.abstract_state,
            lambda record: check_same(record["about"], about, str(trunk), (*MAY_DIFFER, *BRANCH)),
            said.append,
        )
        if found is None or found[1]["step"] != step:
            has = "none" if found is None else f"only that of step {found[1]['step']:,}"
            raise ValueError(
                f"{trunk}: a run is to leave here after step {step:,}, but there is no sound checkpoint of that step, "
                f"{has}. {' '.join(said)} Start the study again: it trains the trunk up to there."
            )
        state, record = found
        journal = Journal(folder / "metrics.jsonl", after_step=-1)
        for row in read_journal(trunk / "metrics.jsonl"):
            journal.write(row)
        journal.close()
        counted = {name: record["tally"][name] for name in ("bytes_seen", "device_seconds")}
        write_json(folder / ORIGIN, {"trunk": name, "step": step, **counted})
        own.save(step, state, {**record, "about": about})
        own.wait()
    finally:
        there.close()
        own.close()
        claim.release()


def seconds_spent(study: Study, rows: Sequence[Mapping[str, Any]]) -> str:
    """What was computed for the runs of a table, and what they are charged, in device seconds; for people."""
    trunks = {row["trunk"] for row in rows if row["branch_step"]}
    folders = [path for name in trunks for path in (study.out / "trunks").glob(f"*-{name}")]
    once = sum(piece["device_seconds"] for folder in folders for piece in computed(folder))
    own = sum(row["own_device_seconds"] for row in rows)
    charged = sum(row["device_seconds"] for row in rows)
    return (
        f"device seconds of training: {once:.1f} for trunks ({len(trunks)}), once, and {own:.1f} for cool-downs; the "
        f"runs are charged {charged:.1f}, each over its whole path"
    )
