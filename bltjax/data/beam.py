"""The tasks of `prepare` as an Apache Beam pipeline (extra [beam]): the same files, written by many machines.

Beam decides who runs a task and runs it again where a worker was lost; the tasks themselves, and so the bytes that
they write, are those of `prepare`. The folder and the input must be seen by all workers: a bucket, or a shared disk.
Only numbers travel between stages. A stage takes the numbers of the one before as a side input, which is complete
only when all of its tasks are done.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import apache_beam  # pyright: ignore[reportMissingImports]
from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]

from bltjax.data.prepare import STAGES, Job, begin
from bltjax.data.store import Store


@functools.lru_cache(maxsize=4)
def _job(folder: str) -> Job:
    return Job.open(Store(folder))


def run_task(number: int, folder: str, stage: int, before: Iterable[int]) -> int:
    """Runs one task of a preparation that was begun in a folder; its number."""
    del before
    STAGES[stage][0](_job(folder), number)
    return number


def finish(_: Any, folder: str, before: Iterable[int]) -> int:
    """Finishes a preparation whose tasks are all done; the number of documents that were read."""
    del before
    store = Store(folder)
    done = store.size("work/plan.json") is None  # where Beam runs this again
    return (store.manifest() if done else Job.open(store).finish())["read"]["documents"]


def build(root: Any, job: Job) -> Any:
    """Adds the stages of a preparation to a pipeline.

    Args:
      root: an apache_beam.Pipeline.
      job: as `prepare.begin` gave it.

    Returns:
      The PCollection of the number of documents.
    """
    folder, done = job.store.folder, root | "begin" >> apache_beam.Create([0])
    for stage, (method, kind) in enumerate(STAGES):
        name = method.__name__.replace("_", " ")
        numbers = root | f"numbers to {name}" >> apache_beam.Create(list(getattr(job, kind)))
        spread = numbers | f"spread to {name}" >> apache_beam.Reshuffle()
        done = spread | name >> apache_beam.Map(run_task, folder, stage, apache_beam.pvalue.AsList(done))
    last = root | "all" >> apache_beam.Create([0])
    return last | "finish" >> apache_beam.Map(finish, folder, apache_beam.pvalue.AsList(done))


def prepare_on_beam(
    plan: dict[str, Any], folder: str, options: Sequence[str] = (), overwrite: bool = False
) -> dict[str, Any]:
    """Prepares a corpus by a Beam pipeline and waits for it; run again after a failure, it goes on.

    Args:
      plan: from `slices.make_plan`.
      folder: a path or URL that all workers see.
      options: of the pipeline, such as --runner=DataflowRunner; none: all on this machine.
      overwrite: replace another corpus that stands there.

    Returns:
      The manifest.
    """
    store = Store(folder)
    job = begin(store, plan, overwrite)
    if job is not None:
        with apache_beam.Pipeline(options=PipelineOptions(list(options))) as root:
            build(root, job)
    return store.manifest()
