"""Jobs by Ray: on this machine or on a cluster, each in a worker of its own."""

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bltjax.runtime import stop_on_signals
from bltjax.scaling.jobs import Outcome, Task


def run(
    tasks: Sequence[Task],
    *,
    address: str | None = None,
    retries: int = 3,
    cpus: float = 1.0,
    gpus: float = 0.0,
    resources: Mapping[str, float] | None = None,
) -> Iterator[Outcome]:
    """Does jobs as Ray finds room for them.

    A worker does one job and ends, which gives its devices back; a worker that dies takes its training with it, and Ray
    does the job again, from the last checkpoint. SIGTERM or Ctrl-C asks all workers to save and to end.

    Args:
      tasks: in the order in which they are handed over.
      address: of a cluster, whose machines see the same files; None: as RAY_ADDRESS says, or this machine alone.
      retries: how often a job is done again after its worker or machine was lost; -1: without end.
      cpus: that a job takes.
      gpus: that a job takes, and sees.
      resources: of other kinds that a job takes, such as {"TPU": 4}.

    Raises:
      ImportError: where Ray is not installed.
      ConnectionError: where the cluster does not answer.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(f"engine='ray': pip install 'bltjax[ray]' ({error}).") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    begun = not ray.is_initialized()
    if begun:
        alone = {} if address or os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level="warning", **alone)
    remote = ray.remote(
        max_calls=1, max_retries=retries, num_cpus=cpus, num_gpus=gpus, resources=dict(resources or {})
    )(_do)
    try:
        with stop_on_signals() as stop:
            pending, asked = {remote.options(name=task.job).remote(task): task.job for task in tasks}, False
            while pending:
                if stop.requested and not asked:
                    asked = True
                    for reference in pending:
                        ray.cancel(reference)  # an interrupt, which training answers by saving
                ready, _ = ray.wait(list(pending), num_returns=1, timeout=0.5)
                for reference in ready:
                    yield _outcome(ray, reference, pending.pop(reference))
    finally:
        if begun:
            ray.shutdown()


def _do(task: Task) -> Outcome:
    return task()


def _outcome(ray: Any, reference: Any, job: str) -> Outcome:
    try:
        return ray.get(reference)
    except ray.exceptions.TaskCancelledError:
        return Outcome(job, "stopped", "cancelled before it began, or before it trained")
    except ray.exceptions.RayError as error:
        return Outcome(job, "crashed", f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
