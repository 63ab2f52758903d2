"""What the folder of a study says, as plain tables: its runs, their manifests, training curves and scores by source."""

import csv
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from bltjax.flops import ACCOUNTING_VERSIONS
from bltjax.scaling.fit import best_of_rates, read_table
from bltjax.scaling.fit.vocabularies import chosen
from bltjax.scaling.plots import budget_text, equal_of
from bltjax.scaling.store import Json, read_json
from bltjax.scaling.sweep import table_row

Row = dict[str, Any]

# Of text; all others hold numbers.
WORDS = ("run", "family", "series", "preset", "accounting", "equal", "schedule", "trunk", "transfer")
NEEDED = (  # older tables have no more
    "run", "family", "series", "preset", "accounting", "seed", "budget", "training_flops", "heldout_bits_per_byte",
    "heldout_bytes", "parameters_non_embedding", "parameters", "bytes_seen", "epochs", "bytes_per_unit",
    "training_flops_paper", "training_flops_full", "forward_flops_per_byte_paper", "device_seconds",
)  # fmt: skip
MOST_POINTS = 100  # of one run's curve

AXES: Mapping[str, tuple[str, str, str]] = {  # name: button, label, column
    "flops_paper": (
        "FLOPs, paper",
        f"training FLOPs ({ACCOUNTING_VERSIONS['paper']} accounting)",
        "training_flops_paper",
    ),
    "flops_full": ("FLOPs, full", f"training FLOPs ({ACCOUNTING_VERSIONS['full']} accounting)", "training_flops_full"),
    "device_seconds": ("device seconds", "device seconds of training", "device_seconds"),
    "bytes_seen": ("bytes seen", "bytes of text seen in training", "bytes_seen"),
}
BY_BENCH: Mapping[str, tuple[str, str, str]] = {  # of studies whose budgets are seconds, besides
    "bench_seconds": ("device seconds, bench", "device seconds, by the bench before training", "bench_seconds"),
}


@dataclasses.dataclass(frozen=True)
class LossCurve:
    """Training losses of one run, as its metrics.jsonl has them: means over the steps since the line before."""

    bytes_seen: tuple[float, ...]
    seconds: tuple[float, ...]  # of the device, summed
    bits_per_byte: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class StudyData:
    """A finished study.

    Attributes:
      name: of the study: its folder's.
      text: which text it was trained and scored on, in words.
      rows: of its table, numbers as numbers.
      manifests: of runs whose folders are there, by run.
      curves: of the same runs.
      sources: bits per byte by source of runs that `scripts/evaluate.py --json RUN/scores.json` has scored.
      scripts: by script of the same runs, such as Latin or Han.
      notes: what a reader should know of what was found.
    """

    name: str
    text: str
    rows: tuple[Row, ...]
    manifests: Mapping[str, Json]
    curves: Mapping[str, LossCurve]
    sources: Mapping[str, Mapping[str, float]]
    scripts: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]

    @property
    def series(self) -> tuple[str, ...]:
        """In the order of the table."""
        return tuple(dict.fromkeys(row["series"] for row in self.rows))

    def of(self, series: str) -> list[Row]:
        return [row for row in self.rows if row["series"] == series]

    def counted(self, series: str) -> list[Row]:
        """Those of them that laws and bowls are made of: of several rates or vocabularies the best."""
        return chosen(best_of_rates(self.of(series)))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({int(row["seed"]) for row in self.rows}))

    @property
    def accounting(self) -> str:
        """In which budgets are counted, with its version: "paper-v1"."""
        return self.rows[0]["accounting"]

    @property
    def equal(self) -> str:
        """What runs of one budget have in common: "flops" or "seconds"."""
        return equal_of(self.rows)

    @property
    def axes(self) -> Mapping[str, tuple[str, str, str]]:
        """What was spent, in all ways that the study knows: name to button, label and column."""
        return AXES if self.equal == "flops" else {**BY_BENCH, **AXES}

    @property
    def flops_axis(self) -> str:
        """FLOPs in the study's own accounting."""
        return "flops_full" if self.accounting.startswith("full") else "flops_paper"

    @property
    def own_axis(self) -> str:
        """The axis on which runs of one budget stand above one another."""
        return self.flops_axis if self.equal == "flops" else "bench_seconds"

    def budget_text(self, budget: float) -> str:
        """A budget with its unit."""
        return budget_text(budget, self.equal)

    @property
    def budgets_text(self) -> str:
        """What budgets are, in words."""
        if self.equal == "flops":
            return f"FLOPs in the accounting {self.accounting}"
        throughputs = (manifest["inputs"].get("throughput", {}) for manifest in self.manifests.values())
        machines = sorted({str(each["machine"]) for each in throughputs if each})
        return f"device seconds by a bench before training{' on ' if machines else ''}{', '.join(machines)}"


def read_study(folder: Path) -> StudyData:
    """Reads a study's folder: its table, and the runs beside it where they are there.

    Raises:
      ValueError: for a folder without a table and complete runs, or a table that is not one of a study.
    """
    if not folder.is_dir():
        raise ValueError(f"folder={folder}: is no folder; name that of a study, with its table.csv.")
    found = {}
    for path in sorted(folder.glob("runs/*/manifest.json")):
        manifest = read_json(path)
        if manifest.get("status") == "complete":
            found[manifest["id"]] = path.parent, manifest
    table = next((folder / name for name in ("table.csv", "table.parquet") if (folder / name).exists()), None)
    notes = []
    if table is not None:
        rows = [_typed(row, number, table) for number, row in enumerate(read_table(table), start=1)]
    else:
        rows = [_typed(table_row(manifest), 0, folder) for _, manifest in found.values()]
        notes.append("There is no table yet: these are the runs that are complete so far.")
    if not rows:
        raise ValueError(f"folder={folder}: no table.csv, table.parquet or complete run is in it.")
    ids = [row["run"] for row in rows]
    if len(set(ids)) < len(ids):
        raise ValueError(f"run: a run stands twice in {table}; every run belongs there once.")
    if len({row.get("equal", "flops") for row in rows}) > 1:
        raise ValueError(f"equal: budgets of FLOPs and of seconds in {table}; only runs of one kind are comparable.")
    if len({row["accounting"] for row in rows}) > 1:
        raise ValueError(f"accounting: several in {table}; only runs of one are comparable.")
    manifests = {run: found[run][1] for run in ids if run in found}
    missing, others = len(ids) - len(manifests), len(set(found) - set(ids))
    if not manifests:
        notes.append("The folders of the runs are not there: no manifests and no training curves, the table alone.")
    elif missing:
        notes.append(f"The folders of {missing} of {len(ids)} runs are not there: without manifest and training curve.")
    if others:
        notes.append(f"{others} complete runs in the folder are not in the table and are left out.")
    return StudyData(
        name=folder.resolve().name,
        text=_text(folder, rows, manifests),
        rows=tuple(sorted(rows, key=lambda row: ids.index(row["run"]))),
        manifests=manifests,
        curves={run: curve for run in manifests if (curve := read_curve(found[run][0] / "metrics.jsonl")) is not None},
        sources={run: own for run in manifests if (own := read_scores(found[run][0] / "scores.json", "sources"))},
        scripts={run: own for run in manifests if (own := read_scores(found[run][0] / "scores.json", "scripts"))},
        notes=tuple(notes),
    )


def _typed(row: Mapping[str, Any], number: int, table: Path) -> Row:
    missing = [name for name in NEEDED if name not in row]
    if missing:
        raise ValueError(f"{table}: has no column {', '.join(missing)}; give the table of a study of this package.")
    out: Row = {}
    for name in row:
        value: Any = row[name]
        if name in WORDS:
            out[name] = str(value)
            continue
        empty = str("" if value is None else value) == ""
        if empty and (name == "epochs" or name not in NEEDED):  # epochs: the length of the text was not known
            out[name] = None
            continue
        try:
            out[name] = float(str(value))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}={value!r} in row {number} of {table}: is not a number.") from error
        if not math.isfinite(out[name]):
            raise ValueError(f"{name}={value!r} in row {number} of {table}: is not finite; leave failed runs out.")
    return out


def read_curve(path: Path) -> LossCurve | None:
    """The training curve of a run, at most so many points; None where there is none.

    Steps that were done twice, after a kill, count as they were done last.

    Raises:
      ValueError: for a line that is not JSON.
    """
    if not path.exists():
        return None
    lines: list[Json] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error}).") from error
        while lines and lines[-1]["step"] >= record["step"]:
            lines.pop()
        lines.append(record)
    if len(lines) < 2:
        return None
    seconds = list(itertools.accumulate(line["timing"]["seconds"] for line in lines))
    every = -(-len(lines) // MOST_POINTS)
    keep = sorted({*range(every - 1, len(lines), every), len(lines) - 1})
    return LossCurve(
        tuple(float(lines[i]["bytes_seen"]) for i in keep),
        tuple(float(seconds[i]) for i in keep),
        tuple(float(lines[i]["bits_per_byte"]) for i in keep),
    )


def read_scores(path: Path, by: Literal["sources", "scripts"]) -> dict[str, float]:
    """Bits per byte of each source or script in what scripts/evaluate.py wrote; nothing where it has not."""
    if not path.exists():
        return {}
    sums: Mapping[str, Any] = read_json(path).get(by, {})
    return {name: each["byte_nats"] / math.log(2) / each["bytes"] for name, each in sums.items() if each["bytes"]}


def _text(folder: Path, rows: Sequence[Row], manifests: Mapping[str, Json]) -> str:
    prints = sorted({str(manifest["inputs"].get("corpus", "unnamed")) for manifest in manifests.values()})
    names: list[str] = []
    for fingerprint in prints:
        corpus = folder / f"corpus-{fingerprint}" / "manifest.json"
        paths = [corpus] if corpus.exists() else sorted(folder.glob("corpus-*/manifest.json"))
        for path in paths:
            about = read_json(path)
            if about.get("fingerprint") == fingerprint:
                origin = about.get("origin", {})
                given = origin.get("embedded") if isinstance(origin, dict) else None
                names.append(f"{given}, fingerprint {fingerprint}" if given else f"fingerprint {fingerprint}")
                break
        else:
            names.append(f"fingerprint {fingerprint}")
    scored = f"{rows[0]['heldout_bytes']:,.0f} bytes of held-out documents"
    study = read_json(folder / "study.json") if (folder / "study.json").exists() else {}
    corpus_names = ", ".join(map(str, study.get("corpus", ())))
    described = "; ".join(filter(None, [corpus_names, *names]))
    return f"{scored} of {described}" if described else scored


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of equal keys; what is None stays empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
