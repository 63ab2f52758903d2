"""Jobs on this machine: one after another in this process, or several processes at a time."""

import dataclasses
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from bltjax.runtime import stop_on_signals
from bltjax.scaling.inputs import Inputs
from bltjax.scaling.jobs import Outcome, attempt, done
from bltjax.scaling.store import Run
from bltjax.scaling.study import Study

STOPPED = 75  # status of a process that was stopped, of sysexits.h: a failure that will pass, so try again


def here(study: Study, jobs: Sequence[str], inputs: Inputs, mirror: str | None = None) -> Iterator[Outcome]:
    """Does jobs one after another in this process, until one is stopped."""
    for job in jobs:
        outcome = attempt(study, job, inputs, mirror)
        yield outcome
        if outcome.state == "stopped":
            return


@dataclasses.dataclass
class _Child:
    job: str
    slot: int
    tries: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]


def processes(
    commands: dict[str, list[str]],
    run_of: Callable[[str], Run | None],
    count: int,
    retries: int,
    folder: Path,
) -> Iterator[Outcome]:
    """Does jobs by processes of their own, so many at a time.

    A process that a signal has ended (a kill, a crash, want of memory) is started again. On SIGTERM or Ctrl-C all
    processes are asked to save and to end, and no further one is started.

    Args:
      commands: words of a command for each job, in the order in which they are to begin.
      run_of: the run of a job, to see how it stands once its process has ended; None: it never came to be.
      count: processes at a time.
      retries: how often the process of a job is started again.
      folder: of the study: it gets logs/<job>.log, and compiled programs, for each of the processes a folder.
    """
    waiting = deque((job, 0) for job in commands)
    slots, children = list(range(count)), list[_Child]()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with stop_on_signals() as stop:
        asked = False
        try:
            while children or (waiting and not stop.requested):
                while waiting and slots and not stop.requested:
                    children.append(_start(*waiting.popleft(), slots.pop(0), commands, folder))
                if stop.requested and not asked:
                    asked = True
                    for child in children:
                        child.process.terminate()
                ended = [child for child in children if child.process.poll() is not None]
                for child in ended:
                    children.remove(child)
                    slots.append(child.slot)
                    child.log.close()
                    if child.process.returncode < 0 and child.tries < retries and not stop.requested:
                        waiting.appendleft((child.job, child.tries + 1))
                    else:
                        yield _outcome(child, run_of(child.job), asked)
                if not ended:
                    time.sleep(0.05)
            for job, _ in waiting:
                yield Outcome(job, "stopped", "not begun")
        finally:
            for child in children:  # only where an error or a second Ctrl-C leads here
                child.process.kill()
                child.process.wait()
                child.log.close()


def _start(job: str, tries: int, slot: int, commands: dict[str, list[str]], folder: Path) -> _Child:
    # JAX does not write its cache atomically, so no two processes share one.
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str((folder / f"compiled-{slot}").absolute())}
    log = open(folder / "logs" / f"{job}.log", "ab")  # noqa: SIM115
    try:
        # A session of its own: Ctrl-C on a terminal reaches this process alone, which then asks the others to save.
        process = subprocess.Popen(
            commands[job], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    except BaseException:
        log.close()
        raise
    return _Child(job, slot, tries, process, log)


def _outcome(child: _Child, run: Run | None, asked: bool) -> Outcome:
    job, code, last = child.job, child.process.returncode, _last_line(Path(child.log.name))
    manifest = None if run is None else run.manifest()
    if manifest is not None and manifest["status"] == "complete":
        return done(job, manifest)
    if asked and code == -signal.SIGTERM:
        return Outcome(job, "stopped", "before it trained")
    if code < 0:
        return Outcome(job, "crashed", f"its process ended by signal {-code}, see {child.log.name}")
    if run is not None and run.state == "running":
        return Outcome(job, "busy", last)
    return Outcome(job, "stopped" if code == STOPPED else "failed", last)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"it said nothing, see {path}"
