"""A study of four series that was never run: manifests, table, training curves and scores as a real one leaves them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bltjax.scaling.report.data import StudyData, read_study
from bltjax.scaling.report.figures import make_figures
from bltjax.scaling.report.laws import SeriesLaw, fit_study
from bltjax.scaling.report.marks import Report
from bltjax.scaling.report.tables import Table, make_tables
from bltjax.scaling.store import write_json, write_table
from bltjax.scaling.sweep import table_row

HOSTILE = '</script><script>alert("owned")</script><img src=x onerror=alert(1)> & $x_{1}$ | \\ % # ~ ^ \u2028'
BUDGETS = (1e12, 3e12, 1e13, 3e13)
SIZES = (4e4, 8e4, 1.6e5, 3.2e5, 6.4e5)
SERIES = {  # family, bytes per unit, what a unit of loss is off by
    "token": ("token", 3.0, 0.0),
    "byte": ("byte", 1.0, 0.25),
    "blt-3": ("blt", 3.0, 0.02),
    "blt-6": ("blt", 6.0, -0.02),
}


def manifest(series: str, size: float, budget: float, noise: float) -> dict[str, Any]:
    """A complete run: of a law with its optimum inside the sizes at all but the smallest budget."""
    family, unit, off = SERIES[series]
    cost = {"paper": 6 * size / unit, "full": 6 * size / unit + (2e5 if family == "blt" else 1e4)}
    seen = budget / cost["paper"]
    preset = f"{series}-{size:g}" + (HOSTILE if series == "byte" and size == SIZES[0] else "")
    run = f"{series}-{size:g}-{budget:g}"
    parts = {"encoder": 0.2, "global": 0.7, "encoder_cross": 0.1} if family == "blt" else {"tower": 1.0}
    forward = {name: cost["paper"] / 3 * share for name, share in parts.items()}
    more = {"patcher_inference": 2e5} if family == "blt" else {"output": 1e4 / 3}
    loss = 1.2 + off + 90 * size**-0.5 + 900 * seen**-0.45 + noise
    return {
        "id": run,
        "family": family,
        "series": series,
        "preset": preset,
        "status": "complete",
        "budget": budget,
        "accounting": "paper",
        "patch_size_wanted": unit if family == "blt" else None,
        "config": {
            "model": {"vocabulary_size": 2052},
            "seed": 0,
            "steps": 100,
            "optim": {"peak_rate": 0.01, "schedule": "cosine"},
        },
        "inputs": {"corpus": "c0ffee"},
        "rows": {"unit_bytes": unit, "byte_fill": 1.0, "slot_fill": 1.0},
        "parameters": {"embedding": 1000, "tower": int(size), "non_embedding": int(size)},
        "flops_per_byte": {
            "paper": {
                "version": "paper-v1",
                "forward": cost["paper"] / 3,
                "training": cost["paper"],
                "parts": forward,
            },
            "full": {
                "version": "full-v1",
                "forward": cost["paper"] / 3 + sum(more.values()),
                "training": cost["full"],
                "parts": {**forward, **more},
            },
        },
        "note": HOSTILE,
        "result": {
            "heldout_bits_per_byte": loss,
            "heldout_special_bits": 5.0,
            "heldout_sums": {"bytes": 90_000},
            "heldout_unit_bytes": unit,
            "bytes_seen": seen,
            "epochs": 0.5,
            "training_flops": {name: value * seen for name, value in cost.items()},
            "device_seconds": seen * size / 1e12,
        },
    }


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's folder."""
    out = tmp_path_factory.mktemp("studies") / "study <b>&"
    generator = np.random.default_rng(0)
    manifests = [
        manifest(series, size * (SERIES[series][1] if series == "token" else 1.0), budget, generator.normal(0, 0.003))
        for budget in BUDGETS
        for series in SERIES
        for size in SIZES
    ]
    for number, each in enumerate(manifests):
        run = out / "runs" / f"run-{number:02d}"
        write_json(run / "manifest.json", each)
        steps = [
            {"step": step, "bytes_seen": each["result"]["bytes_seen"] * step / 100, "bits_per_byte": 8 / step**0.2,
             "timing": {"seconds": 0.5}}
            for step in (20, 40, 40, 60, 100)
        ]  # fmt: skip
        (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        sums = {"byte_nats": 100.0, "bytes": 100}
        write_json(
            run / "scores.json",
            {
                "sources": {"code": sums, HOSTILE: {**sums, "byte_nats": 140.0}},
                "scripts": {"Latin": sums, "Cyrillic": {**sums, "byte_nats": 60.0}},
            },
        )
    write_table([table_row(each) for each in manifests], out)
    write_json(out / "study.json", {"corpus": [f"/texts/{HOSTILE}.txt"]})
    return out


@pytest.fixture(scope="session")
def data(folder: Path) -> StudyData:
    return read_study(folder)


@pytest.fixture(scope="session")
def table_alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    """The same study of which nothing but the table is left."""
    alone = tmp_path_factory.mktemp("alone")
    (alone / "table.csv").write_bytes((folder / "table.csv").read_bytes())
    return read_study(alone)


@pytest.fixture(scope="session")
def laws(data: StudyData) -> dict[str, SeriesLaw]:
    return fit_study(data, draws=12)


@pytest.fixture(scope="session")
def report(data: StudyData, laws: dict[str, SeriesLaw]) -> Report:
    return make_figures(data, laws)


@pytest.fixture(scope="session")
def tables(data: StudyData, laws: dict[str, SeriesLaw]) -> dict[str, Table]:
    return {table.name: table for table in make_tables(data, laws)}
