"""Runs a study: its runs by an engine of your choice, how they stand, what failed once more, and its tables.

    python scripts/study.py run experiments/studies/isoflop.py
    python scripts/study.py run experiments/studies/isoflop.py --processes 2
    python scripts/study.py status experiments/studies/isoflop.py
    python scripts/study.py table experiments/studies/isoflop.py --mirror s3://bucket/isoflop

A study is a Python file that says `study = Study(...)`. Runs are done cheapest first, each once: complete ones are
skipped, others go on from their last checkpoint, and no two processes ever do the same one. See docs/running.md.
"""

import dataclasses
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from bltjax.runtime import keep_compiled
from bltjax.scaling import store
from bltjax.scaling.engines import local, ray, slurm
from bltjax.scaling.inputs import Inputs, is_prepared
from bltjax.scaling.jobs import Job, Outcome, Task, jobs_of, status_table, unfinished
from bltjax.scaling.mirror import complete_rows, gathered, mirror_run, mirror_tables, write_metrics
from bltjax.scaling.plan import run_hash
from bltjax.scaling.store import replace_file, write_table
from bltjax.scaling.study import Study
from bltjax.scaling.studyfile import read_study
from bltjax.scaling.sweep import claim, draw, summary
from bltjax.scaling.throughput import measure

SCRIPT = Path(__file__).resolve()
File = Annotated[Path, tyro.conf.Positional]
Pairs = Annotated[dict[str, str], tyro.conf.arg(metavar="NAME VALUE [NAME VALUE ...]")]
Loads = Annotated[dict[str, float], tyro.conf.arg(metavar="NAME NUMBER [NAME NUMBER ...]")]


@dataclasses.dataclass(frozen=True)
class Run:
    """Do the runs that are neither complete nor failed, cheapest first; then write the tables."""

    study: File
    """A Python file that says `study = Study(...)`."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """Who does them."""
    processes: int = 1
    """Of local: processes at a time; 1: one run after another, in this process."""
    retries: int = 3
    """How often a run is begun again whose process was killed or crashed (slurm: whose time was up)."""
    cpus: float = 1.0
    """Of ray and slurm: processors that a run takes."""
    gpus: float = 0.0
    """Of ray and slurm: GPUs that a run takes."""
    resources: Loads = dataclasses.field(default_factory=dict)
    """Of ray: what else a run takes, as in --resources TPU 4."""
    address: str | None = None
    """Of ray: a cluster's address; by default that of RAY_ADDRESS, or else this machine."""
    partition: str | None = None
    """Of slurm."""
    hours: float = 24.0
    """Of slurm: hours that a run may take before it is queued again."""
    at_a_time: int = 256
    """Of slurm: runs at once."""
    slurm: Pairs = dataclasses.field(default_factory=dict)
    """Of slurm: further options of sbatch, as in --slurm account me constraint a100."""
    cluster: Literal["slurm", "local"] = "slurm"
    """Of slurm: local tries the same without Slurm, on this machine."""
    wait: bool = False
    """Of slurm: wait for the runs; by default they are handed over."""
    mirror: str | None = None
    """Folder or URL of any store that fsspec knows (s3://, gs://): gets a copy of results as they come."""
    print_jobs: bool = False
    """Do nothing; print a command for each run, as `print-jobs` does."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes={self.processes}: must be at least 1.")
        if self.engine != "local" and self.processes != 1:
            raise ValueError(f"processes={self.processes}: is for --engine local; {self.engine} finds room by itself.")
        if self.engine == "slurm" and not (self.cpus.is_integer() and self.gpus.is_integer()):
            raise ValueError(f"cpus={self.cpus:g}, gpus={self.gpus:g}: Slurm gives whole ones.")


@dataclasses.dataclass(frozen=True)
class Retry(Run):
    """Do what `run` does, and failed runs once more."""


@dataclasses.dataclass(frozen=True)
class Status:
    """Print how every run stands; nothing is made."""

    study: File


@dataclasses.dataclass(frozen=True)
class PrintJobs:
    """Print a command for each run that is not complete, cheapest first, for whatever starts programs; do nothing."""

    study: File
    mirror: str | None = None
    """As of `run`."""


@dataclasses.dataclass(frozen=True)
class One:
    """Do one run in this process; status 75: it was stopped, so try again."""

    study: File
    run: Annotated[str, tyro.conf.Positional]
    """As `status` names it."""
    directory: Path = Path(".")
    """What relative paths of the study are meant from."""
    mirror: str | None = None
    """As of `run`."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Write table.csv and .parquet of complete runs and metrics.parquet of all; figures and summary if all are done."""

    study: File
    mirror: str | None = None
    """Gets a copy of the tables, and of every run that lacks one there."""
    source: str | None = None
    """Gather runs from such a copy, in the place of the study's folder."""


def say(message: str) -> None:
    sys.stderr.write(f"{message}\n")


def known_jobs(study: Study) -> list[Job]:
    """All jobs. This process must not take the devices that the processes which train are to have."""
    jax.config.update("jax_platforms", "cpu")
    return jobs_of(study)


def print_jobs(arguments: Run | PrintJobs, study: Study) -> None:
    for job in unfinished(known_jobs(study), failed_too=True):
        task = Task.of(arguments.study, job.name, arguments.mirror)
        print(shlex.join(task.command(SCRIPT)))


def outcomes(arguments: Run, study: Study) -> Iterable[Outcome]:
    """Does what is to be done, by the engine that was asked for."""
    in_process = arguments.engine == "local" and arguments.processes == 1
    if in_process and study.equal == "seconds":
        measure(study, Inputs(study, say), say)
    jobs = unfinished(jobs_of(study) if in_process else known_jobs(study), isinstance(arguments, Retry))
    if not jobs:
        return ()
    if in_process:
        keep_compiled(study.out / "compiled")
        return local.here(study, [job.name for job in jobs], Inputs(study, say), arguments.mirror)
    tasks = [Task.of(arguments.study, job.name, arguments.mirror) for job in jobs]
    if arguments.engine == "local":
        runs = {job.name: job.run for job in jobs}

        def run_of(job: str) -> store.Run | None:
            if runs[job] is None:  # the study's inputs were not there when this began
                runs.update((known.name, known.run) for known in jobs_of(study))
            return runs[job]

        commands = {task.job: task.command(SCRIPT) for task in tasks}
        return local.processes(commands, run_of, arguments.processes, arguments.retries, study.out)
    if arguments.engine == "ray":
        return ray.run(
            tasks, address=arguments.address, retries=arguments.retries, cpus=arguments.cpus, gpus=arguments.gpus,
            resources=arguments.resources,
        )  # fmt: skip
    handed = slurm.submit(
        tasks, study.out.absolute() / "slurm", hours=arguments.hours, partition=arguments.partition,
        cpus=int(arguments.cpus), gpus=int(arguments.gpus), at_a_time=arguments.at_a_time, retries=arguments.retries,
        parameters=arguments.slurm, cluster=arguments.cluster,
    )  # fmt: skip
    say(f"handed over: {', '.join(job.job_id for job in handed)}; logs in {study.out / 'slurm'}")
    return slurm.outcomes(tasks, handed) if arguments.wait or arguments.cluster == "local" else ()


def run(arguments: Run, study: Study) -> int:
    """Does a study; the exit status."""
    if arguments.print_jobs:
        print_jobs(arguments, study)
        return 0
    claim(study)
    found = []
    for outcome in outcomes(arguments, study):
        say(str(outcome))
        found.append(outcome.state)
    jobs = jobs_of(study)
    failed = [job.name for job in jobs if job.state == "failed"]
    if all(job.state == "complete" for job in jobs):
        table(Table(arguments.study, arguments.mirror), study)
    elif failed:
        say(f"failed: {', '.join(failed)}: see `status`; `retry` does them once more.")
    if "stopped" in found:
        say("stopped: the same command goes on from here.")
        return local.STOPPED
    return 1 if failed or {"failed", "crashed"} & set(found) else 0


def table(arguments: Table, study: Study) -> None:
    """Writes the tables of what is there, and copies them."""
    prepared = is_prepared(study)
    jobs = known_jobs(study) if prepared else []
    ids = {run_hash(job.foreseen.plan) for job in jobs if job.run is not None} if prepared else None
    place = arguments.source or study.out
    runs = gathered(study, place, ids)
    rows = complete_rows(runs)
    if not rows:
        raise ValueError(f"{place}: no run of this study is complete.")
    study.out.mkdir(parents=True, exist_ok=True)
    if not prepared:
        claim(study)
    write_table(rows, study.out)
    lines = write_metrics(place, runs, study.out / "metrics.parquet")
    each = len(study.budgets) * len(study.seeds) * len(study.peak_rates)
    total = each * sum(len(study.patchers_of(name)) for name in study.models())
    say(f"{len(rows)} of {total} runs are complete; {lines:,} lines of metrics of {len(runs)} runs")
    if len(rows) == total:
        words = summary(rows)
        replace_file(study.out / "summary.txt", lambda path: path.write_text(f"{words}\n"))
        if prepared:
            draw(rows, study, Inputs(study, lambda text: None))
        else:
            say("no figures: they say what text they are of, and the study's text is not here")
        print(words)
    if arguments.mirror is not None:
        if arguments.source is None:
            complete = [name for name, manifest in runs if manifest["status"] == "complete"]
            copied = sum(mirror_run(study.out / "runs" / name, arguments.mirror) for name in complete)
            say(f"{copied} runs copied to {arguments.mirror}")
        mirror_tables(study.out, arguments.mirror)
    say(f"tables: {study.out}")


def main(arguments: Run | Retry | Status | PrintJobs | One | Table) -> int:
    """Does what a subcommand asks for; the exit status."""
    if isinstance(arguments, One):
        task = Task.of(arguments.study, arguments.run, arguments.mirror)
        outcome = dataclasses.replace(task, directory=str(arguments.directory.absolute()))()
        say(str(outcome))
        return {"complete": 0, "busy": 0, "stopped": local.STOPPED}.get(outcome.state, 1)
    study = read_study(arguments.study)
    match arguments:
        case Run():
            return run(arguments, study)
        case Status():
            print(status_table(known_jobs(study)))
        case PrintJobs():
            print_jobs(arguments, study)
        case Table():
            table(arguments, study)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Run | Retry | Status | PrintJobs | One | Table, description=__doc__)))  # pyright: ignore
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here.")
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.exit(f"error: {error}")
