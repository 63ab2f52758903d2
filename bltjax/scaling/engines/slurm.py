"""Jobs as one array job of Slurm, through submitit."""

import dataclasses
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from bltjax.scaling.jobs import Outcome, Task


@dataclasses.dataclass(frozen=True)
class Requeued(Task):
    """A job that Slurm puts back into its queue, by submitit, when its time is up or another job takes its place.

    A run that trains saves its state first, so that it goes on from there.
    """

    def __call__(self) -> Outcome:
        number = signal.Signals[f"SIG{_submitit().JobEnvironment.USR_SIG}"]
        requeue, idle = signal.getsignal(number), signal.getsignal(signal.SIGTERM)
        asked = False

        def make_room(number: int, frame: FrameType | None) -> None:
            nonlocal asked
            asked = True
            if signal.getsignal(signal.SIGTERM) is idle:
                _leave(requeue, number)
            else:  # training heeds it: see runtime.stop_on_signals
                signal.raise_signal(signal.SIGTERM)

        signal.signal(number, make_room)
        try:
            outcome = super().__call__()
        finally:
            signal.signal(number, requeue)
        if asked and outcome.state == "stopped":
            _leave(requeue, number)
        return outcome

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


def _leave(requeue: Callable[[int, FrameType | None], Any] | int | None, number: int) -> None:
    """Has submitit put the job back into the queue, and ends this process as submitit asks for.

    At once, since an exception that comes up within a callback, such as JAX's of the garbage collector, is dropped.
    """
    if not callable(requeue):
        raise RuntimeError(f"submitit does not wait for signal {number}: start the job with submitit.")
    try:
        requeue(number, None)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


def _submitit() -> Any:
    try:
        importlib.import_module("submitit.helpers")
        return importlib.import_module("submitit")
    except ImportError as error:
        raise ImportError(f"engine='slurm': pip install 'bltjax[slurm]' ({error}).") from error
