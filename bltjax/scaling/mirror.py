"""A study's results gathered from where they lie: its own folder, or a copy in any store that fsspec knows.

    <place>/runs/<run>/config.json, metrics.jsonl, manifest.json     of every complete run
    <place>/table.csv, ...                                           tables and figures

Copies only go out: a study trains in a folder with locks, which object stores lack. A manifest is copied last, so a run
that has one is whole.
"""

import itertools
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from bltjax.data.store import Store
from bltjax.metrics import flat
from bltjax.scaling.rates import peak_rate
from bltjax.scaling.series import patch_size
from bltjax.scaling.store import Json, replace_file
from bltjax.scaling.study import Study
from bltjax.scaling.sweep import Row, table_row

RUN_FILES = ("config.json", "metrics.jsonl", "manifest.json")
TABLES = ("*.csv", "*.parquet", "*.png", "*.svg", "summary.txt")


def _store(place: str | Path, *more: str) -> Store:
    return Store("/".join([str(place).removeprefix("file://").rstrip("/"), *more]))


def mirror_run(folder: Path, url: str) -> bool:
    """Copies what a complete run has found, unless it lies there; whether it was copied."""
    store, last = _store(url, "runs", folder.name), (folder / RUN_FILES[-1]).read_bytes()
    if store.size(RUN_FILES[-1]) is not None and store.read(RUN_FILES[-1]) == last:
        return False
    for name in RUN_FILES:
        store.write(name, (folder / name).read_bytes())
    store.remove("work")  # the store's own, where it is a folder
    return True


def mirror_tables(folder: Path, url: str) -> int:
    """Copies tables and figures; how many files."""
    store = _store(url)
    paths = sorted({path for pattern in TABLES for path in folder.glob(pattern)})
    for path in paths:
        store.write(path.name, path.read_bytes())
    store.remove("work")
    return len(paths)


def gathered(study: Study, place: str | Path, ids: Collection[str] | None = None) -> list[tuple[str, Json]]:
    """Folder names and manifests of the runs of a study that were begun, in the order of its table.

    Args:
      place: the study's folder, or a copy of it.
      ids: of the study's runs; None: not known here, as its inputs lie elsewhere. Then runs are told by model, patch
        size, budget, rate and seed.

    Raises:
      ValueError: for two runs where the study has one, which only its inputs could tell apart.
    """
    cuts = [(name, patch_size(wanted)) for name in study.models() for wanted in study.patchers_of(name)]
    models = study.models()
    order = [
        (*cut, budget, seed, peak_rate(rate, models[cut[0]], study.transfer_of(cut[0])))
        for budget, cut, seed, rate in itertools.product(sorted(study.budgets), cuts, study.seeds, study.peak_rates)
    ]
    runs, found = _store(place, "runs"), {}
    for name in runs.names():
        if runs.size(f"{name}/manifest.json") is None:
            continue
        manifest = json.loads(runs.read(f"{name}/manifest.json"))
        if "preset" not in manifest or (ids is not None and manifest["id"] not in ids):
            continue
        config = manifest["config"]
        wanted = manifest["patch_size_wanted"], manifest["budget"], config["seed"], config["optim"]["peak_rate"]
        which = (manifest["preset"], *wanted)
        if which in found:
            raise ValueError(
                f"{place} holds two runs of {which[0]} at {wanted[1]:g} FLOPs, {found[which][0]} and {name}, of "
                "studies that differ otherwise: remove one, or make the table where the study's inputs are."
            )
        if which in order:
            found[which] = (name, manifest)
    return [found[which] for which in order if which in found]


def complete_rows(runs: Sequence[tuple[str, Json]]) -> list[Row]:
    """The rows of a study's table: a row for each complete run."""
    return [table_row(manifest) for _, manifest in runs if manifest["status"] == "complete"]


def write_metrics(place: str | Path, runs: Sequence[tuple[str, Json]], path: Path) -> int:
    """Writes the training metrics of all runs as one Parquet file; its rows.

    Columns: run (its id), status, then all that metrics.jsonl has, nested names joined by "/"; null where a family has
    no such number.
    """
    import pyarrow
    import pyarrow.parquet

    store, rows = _store(place, "runs"), []
    for name, manifest in runs:
        if store.size(f"{name}/metrics.jsonl") is None:
            continue
        *lines, _ = store.read(f"{name}/metrics.jsonl").split(b"\n")  # without what a kill has cut short
        about: dict[str, Any] = {"run": manifest["id"], "status": manifest["status"]}
        rows += [{**about, **flat(json.loads(line))} for line in lines]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    write: Callable[[Path], object] = lambda temporary: pyarrow.parquet.write_table(table, temporary)  # noqa: E731
    replace_file(path, write)
    return len(rows)
