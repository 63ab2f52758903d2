"""The jobs of a study: what an engine gives to one process, how each stands, and how a process does one.

A job's name says which run of its study it is: model, patch size, budget, rate and seed. It rests on the study's file
alone, so it is known before anything is prepared; the hash that names a run's folder is not.
"""

import dataclasses
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from bltjax.config import PatcherConfig
from bltjax.lock import Busy
from bltjax.metrics import read_journal
from bltjax.runtime import Stopped
from bltjax.scaling.forecast import Foreseen, forecast
from bltjax.scaling.inputs import Inputs
from bltjax.scaling.mirror import mirror_run
from bltjax.scaling.plots import flops_text
from bltjax.scaling.rates import rate_suffix
from bltjax.scaling.series import patch_size
from bltjax.scaling.store import Json, Run, State
from bltjax.scaling.study import Study
from bltjax.scaling.studyfile import read_study
from bltjax.scaling.sweep import claim, execute, plan_study, run_of

Say = Callable[[str], None]
STATES: tuple[State, ...] = ("complete", "running", "interrupted", "failed", "waiting")
EXPECTED = (ValueError, OSError, FloatingPointError, ImportError)  # their message says what to do: no traceback


def job_name(name: str, wanted: PatcherConfig | None, budget: float, rate: float, seed: int) -> str:
    """Which run of its study a run is: blt-cpu-0-p4.5-8e10-s0 or, at an unusual rate, blt-cpu-0-p4.5-8e10-r4e-3-s0.

    No two of a study have the same.
    """
    size, short = patch_size(wanted), flops_text(budget)
    patches = "" if size is None else f"-p{str(size).removesuffix('.0')}"
    return f"{name}{patches}-{short if float(short) == budget else budget}{rate_suffix(rate)}-s{seed}"


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process does: one run.

    Attributes:
      run: its folder; None before the study's inputs are there, by which it is named.
    """

    name: str
    foreseen: Foreseen
    run: Run | None

    @property
    def flops(self) -> float:
        """Training FLOPs on the devices, as expected."""
        return self.foreseen.plan.device_flops

    @property
    def state(self) -> State:
        """As of its run."""
        return "waiting" if self.run is None else self.run.state


def jobs_of(study: Study, say: Say = lambda text: None) -> list[Job]:
    """All jobs of a study, cheapest first. Nothing is made for it."""
    found = []
    for foreseen in forecast(study, say).runs:
        plan = foreseen.plan
        run = run_of(study, plan) if foreseen.measured else None
        found.append(Job(job_name(plan.name, plan.wanted, plan.budget, plan.rate, plan.seed), foreseen, run))
    return sorted(found, key=lambda job: job.flops)


def perform(study: Study, job: str, inputs: Inputs, mirror: str | None = None) -> Json:
    """Does a job, or goes on with it, or finds it done; its manifest.

    Args:
      mirror: folder or URL that gets a copy of the run's results.

    Raises:
      ValueError: for a name that is none of the study's.
      Busy: while another process does it.
      Stopped: when it was asked to stop; the state is saved.
    """
    cuts = ((name, wanted) for name in study.models() for wanted in study.patchers_of(name))
    which = itertools.product(study.budgets, study.peak_rates, study.seeds)
    named = {job_name(*cut, *each): (cut, each) for cut, each in itertools.product(cuts, which)}
    if job not in named:
        raise ValueError(f"run={job!r}: is none of this study's: {', '.join(named)}.")
    cut, each = named[job]
    (plan,) = (plan for plan in plan_study(study, inputs, cut) if (plan.budget, plan.rate, plan.seed) == each)
    manifest = execute(study, plan, inputs, job)
    if mirror is not None:
        mirror_run(run_of(study, plan).folder, mirror)
    return manifest


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an attempt at a job ended.

    Attributes:
      state: busy: another process does it, and it was left; stopped: as asked, state saved; crashed: its process died.
      words: bits per byte, or what was wrong.
    """

    job: str
    state: Literal["complete", "busy", "stopped", "failed", "crashed"]
    words: str

    def __str__(self) -> str:
        return f"{self.job}: {self.state}: {self.words}"


def attempt(study: Study, job: str, inputs: Inputs, mirror: str | None = None) -> Outcome:
    """Does a job as `perform` does, and says how it ended; only an interrupt is raised."""
    try:
        return done(job, perform(study, job, inputs, mirror))
    except Stopped as stopped:
        return Outcome(job, "stopped", str(stopped))
    except Busy as busy:
        return Outcome(job, "busy", busy.strerror or str(busy))
    except Exception as error:
        return _failed(job, error)


def done(job: str, manifest: Json) -> Outcome:
    """The outcome of a complete run."""
    return Outcome(job, "complete", f"{manifest['result']['heldout_bits_per_byte']:.4f} bits per byte")


def _failed(job: str, error: Exception) -> Outcome:
    if not isinstance(error, EXPECTED):
        traceback.print_exc()
    return Outcome(job, "failed", f"{type(error).__name__}: {error}")


@dataclasses.dataclass(frozen=True)
class Task:
    """A job for another process, perhaps on another machine that sees the same files.

    Attributes:
      study: absolute path of the study's file.
      directory: what relative paths of the study are meant from.
      mirror: folder or URL that gets a copy of the run's results.
    """

    study: str
    directory: str
    job: str
    mirror: str | None = None

    @classmethod
    def of(cls, study: Path, job: str, mirror: str | None = None) -> "Task":
        """A job of a study's file, as seen from the current directory."""
        if mirror is not None and "://" not in mirror:
            mirror = os.path.abspath(mirror)
        return cls(os.path.abspath(study), os.getcwd(), job, mirror)

    def __call__(self) -> Outcome:
        """Does it in this process."""

        def say(message: str) -> None:
            sys.stderr.write(f"{message}\n")

        try:
            os.chdir(self.directory)
            study = read_study(Path(self.study))
            claim(study)
            inputs = Inputs(study, say)
        except Exception as error:
            return _failed(self.job, error)
        return attempt(study, self.job, inputs, self.mirror)

    def command(self, script: Path) -> list[str]:
        """The words of a command that does it, from whatever directory: of scripts/study.py with this Python."""
        mirror = [] if self.mirror is None else ["--mirror", self.mirror]
        return [sys.executable, str(script), "one", self.study, self.job, "--directory", self.directory, *mirror]


def status_table(jobs: Sequence[Job]) -> str:
    """How every job stands, cheapest first, and the sums, for people."""
    form = "{:<{wide}}  {:<11}  {:>17}  {:>9}  {:>6}  {}"
    wide = max(len(job.name) for job in jobs)
    lines = [form.format("run", "state", "step", "bits/byte", "starts", "", wide=wide).rstrip()]
    states: list[State] = [job.state for job in jobs]
    for job, state in zip(jobs, states, strict=True):
        manifest = (job.run.manifest() if job.run is not None else None) or {}
        total = job.foreseen.plan.train.steps
        of = f"{'' if job.foreseen.measured else '~'}{total:,}"
        bits = f"{manifest['result']['heldout_bits_per_byte']:.4f}" if state == "complete" else ""
        starts = len(manifest.get("starts", ()))
        step = total if state == "complete" else _step(job.run)
        lines.append(
            form.format(job.name, state, f"{step:,}/{of}", bits, starts, _words(job, state, manifest), wide=wide)
        )
    lines[1:] = [line.rstrip() for line in lines[1:]]
    flops = sum(job.flops for job in jobs)
    left = sum(job.flops for job, state in zip(jobs, states, strict=True) if state != "complete")
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    return "\n".join([*lines, "", f"{counts}; {1 - left / flops:.0%} of all FLOPs are done"])


def _words(job: Job, state: str, manifest: Json) -> str:
    if state == "running" and job.run is not None:
        return job.run.holder or ""
    if state == "failed":
        error = manifest["error"]
        return f"{error['time']} {error['type']}: {error['message']}".split("\n")[0][:160]
    return ""


def _step(run: Run | None) -> int:
    """The last step that a run has reported."""
    path = None if run is None else run.folder / "metrics.jsonl"
    rows = read_journal(path) if path is not None and path.exists() else []
    return rows[-1]["step"] if rows else 0


def unfinished(jobs: Iterable[Job], failed_too: bool) -> list[Job]:
    """What an engine is to do: all but complete jobs, and but failed ones unless these are to be tried again."""
    return [job for job in jobs if job.state not in (("complete",) if failed_too else ("complete", "failed"))]
