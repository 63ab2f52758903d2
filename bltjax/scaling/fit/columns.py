"""Points from tables: one's own, and those of other people, by a small file that says which column is what.

    name = "nanochat, 2026-01"
    table = "scaling.csv"            # CSV or Parquet, beside this file
    size = ["params_transformer"]    # columns whose sum is N
    size_label = "parameters of the tower"
    loss = "val_bpb"
    loss_unit = "bits per byte"      # or nats per byte, bits per token, nats per token
    bytes = "bytes_seen"             # or tokens, with bytes_per_token
    flops = "flops"                  # or flops_per_parameter = 6, for C = 6 N times what was counted
    accounting = "6 N D"
    scored = "its own validation text"

Losses become bits per byte and data become bytes; what that needs is asked for, never assumed.
"""

import csv
import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bltjax.scaling.fit.best import MODEL, best_of_rates
from bltjax.scaling.fit.points import SIZES, About, Points
from bltjax.scaling.fit.vocabularies import chosen

LossUnit = Literal["bits per byte", "nats per byte", "bits per token", "nats per token"]
LOSS_UNITS: tuple[LossUnit, ...] = ("bits per byte", "nats per byte", "bits per token", "nats per token")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what; a column that is None is not there."""

    name: str
    size: tuple[str, ...]  # columns whose sum is N
    size_label: str
    loss: str
    accounting: str
    scored: str
    loss_unit: LossUnit = "bits per byte"
    bytes: str | None = None
    tokens: str | None = None  # in the place of bytes
    bytes_per_token: float | None = None  # of the text; for tokens, and for losses per token
    flops: str | None = None
    flops_per_parameter: float | None = None  # training FLOPs of one parameter and one token (or byte), where no column
    budget: str | None = None
    cluster: tuple[str, ...] = ()  # columns that together name a trunk; none: each row is a run of its own
    patch_size: str | None = None
    seconds: str | None = None
    epochs: str | None = None
    seed: str | None = None
    equal: str | None = None  # what budgets are of, "flops" or "seconds"; of the latter, `bench` has the seconds
    bench: str | None = None
    vocabulary: str | None = None  # of a study of this package: of several, the best at each budget counts
    rate: str | None = None  # learning rate, of a study of this package: of several the best counts in the same way
    where: Mapping[str, str] = dataclasses.field(default_factory=dict)  # only rows whose columns are these

    def __post_init__(self) -> None:
        if self.loss_unit not in LOSS_UNITS:
            raise ValueError(f"loss_unit={self.loss_unit!r}: choose one of {', '.join(LOSS_UNITS)}.")
        if (self.bytes is None) + (self.tokens is None) == 0:
            raise ValueError(f"tokens={self.tokens!r}: give bytes or tokens, not both.")
        if self.bytes is None and self.tokens is None and (self.flops is None or self.flops_per_parameter is None):
            raise ValueError(
                "bytes=None: name the column of bytes or of tokens, or give flops and flops_per_parameter, from which "
                "D = C / (k N)."
            )
        if self.flops is None and self.flops_per_parameter is None:
            raise ValueError("flops=None: name the column of training FLOPs, or give flops_per_parameter.")
        counts_tokens = self.bytes is None or self.loss_unit.endswith("token")
        if counts_tokens and self.bytes_per_token is None:
            raise ValueError(
                "bytes_per_token=None: this table counts tokens; say how many bytes of text one holds on average."
            )

    @property
    def labels(self) -> About:
        return About(self.name, self.size_label, self.accounting, self.scored)


def own_table(series: str, size: Literal["non_embedding", "all"] = "non_embedding") -> Columns:
    """The columns of the table of a study of this package, for one of its series."""
    parameters = {"non_embedding": "parameters_non_embedding", "all": "parameters"}[size]
    return Columns(
        name=series,
        size=(parameters,),
        size_label=SIZES[size],
        loss="heldout_bits_per_byte",
        accounting="",  # the table's own, see `points_of`
        scored="",
        bytes="bytes_seen",
        flops="training_flops",
        budget="budget",
        cluster=("trunk",),
        seconds="device_seconds",
        epochs="epochs",
        seed="seed",
        equal="equal",
        bench="bench_seconds",
        vocabulary="vocabulary",
        rate="peak_rate",
        where={"series": series},
    )


def points_of(rows: Sequence[Mapping[str, Any]], columns: Columns) -> Points:
    """The points of a table's rows.

    Of a run at several learning rates the best counts, where `columns.run` says what names one. An accounting or text
    left empty is read from the columns "accounting" and "heldout_bytes" of the table itself.

    Raises:
      ValueError: for a column that is not there, a value that is no number, or several accountings or texts.
    """
    rows = [row for row in rows if all(str(_cell(row, name)) == value for name, value in columns.where.items())]
    if not rows:
        raise ValueError(f"where={dict(columns.where)!r}: no row of the table is so.")
    if columns.rate is not None:
        for name in (*MODEL, columns.loss):
            _cell(rows[0], name)  # refuses what is not there
        rows = best_of_rates(rows)
    if columns.vocabulary is not None:
        rows = chosen(rows)

    def numbers(name: str) -> np.ndarray:
        out = []
        for number, row in enumerate(rows, start=1):
            try:
                out.append(float(_cell(row, name)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}={_cell(row, name)!r} in row {number}: is not a number.") from error
        return np.array(out, np.float64)

    def maybe(name: str | None) -> np.ndarray | None:
        return None if name is None else numbers(name)

    def only(name: str) -> str:
        found = sorted({str(_cell(row, name)) for row in rows})
        if len(found) > 1:
            raise ValueError(f"{name}: {', '.join(found)} in one table; only like is fitted with like.")
        return found[0]

    by_time = columns.equal is not None and columns.equal in rows[0] and only(columns.equal) == "seconds"
    size = np.sum([numbers(name) for name in columns.size], axis=0)
    per_token = columns.bytes_per_token or 1.0
    flops = maybe(columns.flops)
    if columns.bytes is not None:
        data = numbers(columns.bytes)
    elif columns.tokens is not None:
        data = numbers(columns.tokens) * per_token
    else:
        assert flops is not None and columns.flops_per_parameter is not None
        data = flops / (columns.flops_per_parameter * size) * per_token
    if flops is None:
        assert columns.flops_per_parameter is not None
        units = data if columns.tokens is None else data / per_token
        flops = columns.flops_per_parameter * size * units
    loss = numbers(columns.loss)
    if columns.loss_unit.startswith("nats"):
        loss = loss / math.log(2)
    if columns.loss_unit.endswith("token"):
        loss = loss / per_token
    own = columns.cluster == ("trunk",) and "trunk" not in rows[0]  # such a table is older than trunks
    cluster = ("run",) if own and "run" in rows[0] else columns.cluster
    names = [",".join(str(_cell(row, name)) for name in cluster) for row in rows]
    seeds = () if columns.seed is None else tuple(sorted({int(value) for value in numbers(columns.seed)}))
    return Points(
        size=size,
        bytes=data,
        loss=loss,
        flops=flops,
        cluster=tuple(names) if columns.cluster else tuple(str(number) for number in range(len(rows))),
        about=dataclasses.replace(
            columns.labels,
            accounting=columns.accounting or only("accounting"),
            scored=columns.scored or f"{only('heldout_bytes')} held-out bytes",
            seeds=seeds,
        ),
        budget=maybe(columns.budget),
        patch_size=maybe(columns.patch_size),
        seconds=maybe(columns.bench if by_time else columns.seconds),
        epochs=maybe(columns.epochs),
        equal="seconds" if by_time else "flops",
    )


def _cell(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise ValueError(f"{name}: no such column; there are {', '.join(row)}.")
    return row[name]


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV or Parquet file.

    Raises:
      ValueError: for another kind of file.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix != ".csv":
        raise ValueError(f"table={path}: must be a .csv or a .parquet file.")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_points(description: Path) -> Points:
    """The points of a table that a TOML file describes; see the top of this file.

    Raises:
      ValueError: for a key that is not known or missing.
    """
    with description.open("rb") as file:
        values = tomllib.load(file)
    if "table" not in values:
        raise ValueError(f"{description}: has no key 'table', the file of the points.")
    table = description.parent / values.pop("table")
    known = {field.name: field for field in dataclasses.fields(Columns)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{description}: no such key as {', '.join(unknown)}; there are {', '.join(known)}.")
    missing = [
        name
        for name, field in known.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING and name not in values
    ]
    if missing:
        raise ValueError(f"{description}: needs {', '.join(missing)}.")
    for name in ("size", "cluster", "run"):
        if name in values:
            values[name] = (values[name],) if isinstance(values[name], str) else tuple(values[name])
    return points_of(read_table(table), Columns(**values))
