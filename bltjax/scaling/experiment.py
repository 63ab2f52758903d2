"""What the scripts of experiments/ have in common: their settings, their studies run one after the other, their end.

An experiment is one study, or several in folders of their own under one --out, whose tables are joined. It has two
scales: "cpu" for two cores, and "accelerator" for a node of H100 or its like; both are an ordinary Study, changed by
the script as its question needs.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from bltjax.runtime import Stopped, keep_compiled
from bltjax.scaling.ablation import Row, arm_of, compare, comparison_table, one_kind, save_comparison
from bltjax.scaling.forecast import forecast
from bltjax.scaling.inputs import Inputs
from bltjax.scaling.plan import plan_table
from bltjax.scaling.store import write_table
from bltjax.scaling.study import Study
from bltjax.scaling.sweep import caption, claim, run_study

Studies = Mapping[str, Study]  # by what the column "study" says; one alone is called ""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an experiment is run."""

    out: Path
    """Folder for all of it; the same command goes on where it was."""
    corpus: tuple[str, ...] = ()
    """Files, folders or globs of text; none: the standard library of the running Python."""
    scale: Literal["cpu", "accelerator"] = "cpu"
    """Models and budgets for two cores, or for a node of accelerators."""
    budgets: tuple[float, ...] = ()
    """Training FLOPs of a run; by default those of the scale."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of parameters and of the order of rows; three at least where a small difference is claimed."""
    plan: bool = False
    """Only print the runs."""

    def study(self, cpu: Mapping[str, Any], accelerator: Mapping[str, Any]) -> Study:
        """A study at the scale that is asked for, with what the experiment sets for it."""
        own = dict(cpu if self.scale == "cpu" else accelerator)
        given = {"budgets": self.budgets} if self.budgets else {}
        scale = {} if self.scale == "cpu" else ACCELERATOR
        shared = {"out": self.out, "corpus": self.corpus, "seeds": self.seeds, "keep_weights": False}
        return Study(**{**shared, **scale, **own, **given})


ACCELERATOR: Mapping[str, Any] = {
    "budgets": (1e19,),
    "dtype": "bfloat16",
    "remat": "full",
    "row_bytes": 8192,
    "batch": 64,
    "peak_rates": (6e-3,),
    "entropy_model": "entropy-100m",
    "entropy_bytes": 1e9,
    "heldout_bytes": 10_000_000,
    "stride_bytes": 4096,
}


def say(message: str) -> None:
    print(message, flush=True)


def in_folders(studies: Studies) -> Studies:
    """Several studies, each in the folder of its name under the out that it has."""
    return {name: dataclasses.replace(study, out=study.out / name) for name, study in studies.items()}


def run_all(studies: Studies, settings: Settings) -> list[Row]:
    """Runs studies one after the other, joins their tables in settings.out and returns the rows.

    Raises: as `run_study` does.
    """
    keep = settings.out / "compiled"
    rows: list[Row] = []
    for study in studies.values():
        claim(study)
    keep_compiled(keep)
    for name, study in studies.items():
        if name:
            say(f"\n{name}:")
        rows += [{"study": name, **row} for row in run_study(study, say)]
    if len(studies) > 1:
        write_table(rows, settings.out)
    return rows


def conclude(
    studies: Studies,
    settings: Settings,
    rows: list[Row],
    baseline: str,
    title: str,
    arm: Callable[[Row], str] = arm_of,
    kind: Callable[[str], str] = one_kind,
) -> None:
    """Compares the arms with the baseline as `compare` does, writes the comparison and prints it."""
    study = next(iter(studies.values()))
    found = compare(rows, baseline, arm, kind)
    save_comparison(found, settings.out, title, caption(rows, study, Inputs(study, lambda text: None)))
    say(f"\n{comparison_table(found)}\n\nTables and figures: {settings.out}")


def ablate(
    settings: Settings,
    studies: Studies,
    baseline: str,
    title: str,
    arm: Callable[[Row], str] = arm_of,
    kind: Callable[[str], str] = one_kind,
) -> list[Row]:
    """Runs studies and compares their arms with the baseline; with settings.plan it only prints the runs."""
    if settings.plan:
        show_plan(studies)
        return []
    rows = run_all(studies, settings)
    conclude(studies, settings, rows, baseline, title, arm, kind)
    return rows


def show_plan(studies: Studies) -> None:
    """Prints the runs of studies; nothing is made."""
    for name, study in studies.items():
        plans = [run.plan for run in forecast(study, say).runs]
        total = sum(plan.training_flops for plan in plans)
        say(f"{name + ': ' if name else ''}{len(plans)} runs of {len(study.seeds)} seeds, {total:.3g} FLOPs")
        say(f"{plan_table([plan for plan in plans if plan.seed == study.seeds[0]])}\n")


Asked = TypeVar("Asked")


def command_line(settings: Asked, description: str | None, main: Callable[[Asked], None]) -> None:
    """Runs an experiment by its command line; whatever ends it other than a fault of the program is one line.

    Args:
      settings: the defaults of the flags: `Settings` of the experiment, or a `Study`.
    """
    try:
        main(tyro.cli(type(settings), default=settings, description=description))
    except Stopped as stopped:
        sys.exit(str(stopped))
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here.")
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
