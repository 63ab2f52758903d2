"""A study kept in a small Python file, and the command line that runs it."""

import dataclasses
import runpy
import shlex
from pathlib import Path

from bltjax.scaling.study import Study

RUNNER = "python experiments/isoflop.py"


def read_study(path: Path) -> Study:
    """The study of a file that says `study = Study(...)`; the file is run, so read only what you trust.

    Raises:
      ValueError: for what is no Python file, one that fails, or one that defines no such study.
    """
    if not path.is_file():
        raise ValueError(f"study={path}: there is no such file.")
    try:
        names = runpy.run_path(str(path))
    except Exception as error:
        raise ValueError(f"study={path}: fails with {type(error).__name__}: {error}") from error
    found = names.get("study")
    if not isinstance(found, Study):
        has = "no `study`" if found is None else f"a `study` that is a {type(found).__name__}"
        raise ValueError(f"study={path}: has {has}; write `study = Study(...)`, from bltjax.scaling.plan.")
    return found


def command(study: Study) -> str:
    """The command that runs a study: every field that is not the default as a flag.

    Raises:
      ValueError: for a study with variants, which have no flag.
    """
    if study.variants:
        raise ValueError("variants: have no flag; run the study's file with scripts/study.py.")
    words = []
    for field in dataclasses.fields(Study):
        value = getattr(study, field.name)
        if value == field.default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words += [f"--{flag}" if value else f"--no-{flag}"]
        elif isinstance(value, tuple):
            words += [f"--{flag}", *map(_word, value)]
        else:
            words += [f"--{flag}", _word(value)]
    return shlex.join([*shlex.split(RUNNER), *words])


def _word(value: object) -> str:
    """A value as a person would write it: 2e+08, where that is the same number as 200000000.0."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else str(value)
