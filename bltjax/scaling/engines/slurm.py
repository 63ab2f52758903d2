"""Jobs as one array job of Slurm, through submitit."""

import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bltjax.scaling.jobs import Outcome, Task


@dataclasses.dataclass(frozen=True)
class Requeued(Task):
    """A job that Slurm puts back into its queue, by submitit, when its time is up or another job takes its place."""

    def checkpoint(self) -> Any:
        """What is queued again: the same; it goes on from the last checkpoint."""
        return _submitit().helpers.DelayedSubmission(self)


def submit(
    tasks: Sequence[Task],
    folder: Path,
    *,
    hours: float = 24.0,
    partition: str | None = None,
    cpus: int = 1,
    gpus: int = 0,
    at_a_time: int = 256,
    retries: int = 3,
    parameters: Mapping[str, str] | None = None,
    cluster: str = "slurm",
) -> list[Any]:
    """Hands jobs over to Slurm as one array and returns; what submitit calls the jobs.

    Args:
      tasks: in the order of the array.
      folder: for submitit's files and the logs; every machine must see it.
      hours: that one job may take before it is queued again.
      partition: None: the cluster's usual one.
      cpus: that a job takes.
      gpus: that a job takes.
      at_a_time: jobs of the array that run at once.
      retries: how often a job whose time is up is queued again.
      parameters: further ones of sbatch by name, such as {"account": "me", "constraint": "a100"}.
      cluster: "slurm", or "local" to try it without Slurm.

    Raises:
      ImportError: where submitit is not installed.
      RuntimeError: where sbatch is not there, or refuses.
    """
    more = {} if cluster == "local" else {"slurm_max_num_timeout": retries}
    executor = _submitit().AutoExecutor(folder=folder, cluster=cluster, **more)
    asked: dict[str, Any] = {
        "name": "bltjax",
        "timeout_min": max(1, round(60 * hours)),
        "cpus_per_task": cpus,
        "gpus_per_node": gpus,
        "tasks_per_node": 1,
    }
    if cluster != "local":
        asked |= {"slurm_array_parallelism": at_a_time, "slurm_additional_parameters": dict(parameters or {})}
        asked |= {} if partition is None else {"slurm_partition": partition}
    executor.update_parameters(**asked)
    with executor.batch():
        return [executor.submit(Requeued(**dataclasses.asdict(task))) for task in tasks]


def outcomes(tasks: Sequence[Task], jobs: Sequence[Any]) -> Iterator[Outcome]:
    """Waits for jobs that were handed over; how they ended, in their order."""
    for task, job in zip(tasks, jobs, strict=True):
        error = job.exception()
        if error is None:
            yield job.result()
        else:
            yield Outcome(task.job, "crashed", f"job {job.job_id}: {str(error).strip().splitlines()[0]}")


def _submitit() -> Any:
    try:
        importlib.import_module("submitit.helpers")
        return importlib.import_module("submitit")
    except ImportError as error:
        raise ImportError(f"engine='slurm': pip install 'bltjax[slurm]' ({error}).") from error
