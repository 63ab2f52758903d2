"""A bill written down: tables for people as text or Markdown, every run in full as JSON or CSV."""

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

from bltjax.flops import Breakdown, non_embedding_parameters, parameters
from bltjax.metrics import readable
from bltjax.scaling.footprint import Footprint
from bltjax.scaling.plots import count_text, flops_text
from bltjax.scaling.spend import Bill, Item, Total

UNKNOWN = "?"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of words; the first columns, `left` of them, are aligned to the left."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    def text(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            aligned = [
                cell.ljust(width) if index < self.left else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return "  ".join(aligned).rstrip()

        return "\n".join([self.title, line(self.head), *map(line, self.rows)])

    def markdown(self) -> str:
        rule = [":--" if index < self.left else "--:" for index in range(len(self.head))]
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.head, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines])


def _known(value: float | None, write: Callable[[float], str]) -> str:
    return UNKNOWN if value is None else write(value)


def hours_text(seconds: float) -> str:
    """Hours with two digits after the point, or as many as a short run needs to be told from nothing."""
    hours = seconds / 3600
    return f"{hours:,.2f}" if hours >= 0.1 or hours == 0 else f"{hours:.2g}"


def money_text(value: float) -> str:
    """Money to the hundredth; a smaller amount that is not nothing says so."""
    return "<0.01" if 0 < value < 0.005 else f"{value:,.2f}"


def size_text(footprint: Footprint) -> str:
    """Memory of a device; a lower bound is marked."""
    return ("≥ " if footprint.is_bound else "") + readable(footprint.total, "B")


def models(bill: Bill) -> Table:
    """A line for each model: what does not depend on the budget."""
    head = (
        "model", "N", "all parameters", "bytes/unit", "byte fill", "slot fill", "FLOPs/byte paper", "full",
        "memory a device", "of peak",
    )  # fmt: skip
    rows = []
    for item in _one_of_each(bill):
        assert item.run is not None
        plan, guess = item.run.plan, "" if item.run.measured else "~"
        model, facts = plan.train.model, plan.facts
        rows.append((
            item.label, count_text(non_embedding_parameters(model)), count_text(sum(parameters(model).values())),
            f"{guess}{facts.unit_bytes:.2f}", f"{guess}{facts.byte_fill:.0%}", f"{guess}{facts.slot_fill:.0%}",
            *(f"{guess}{flops_text(_without_share(plan.flops[each]))}" for each in ("paper", "full")),
            size_text(bill.footprints[item.label]), _known(item.fraction, lambda share: f"{share:.2%}"),
        ))  # fmt: skip
    return Table("Models", head, tuple(rows))


def _without_share(cost: Breakdown) -> float:
    """Training FLOPs per byte without the share of the entropy model's training, which depends on the budget."""
    return cost.training - cost.parts.get("patcher_training", 0.0)


def groups(bill: Bill) -> Table:
    """Parameters of each model by group."""
    found = {item.label: parameters(item.run.plan.train.model) for item in _one_of_each(bill) if item.run is not None}
    names = list(dict.fromkeys(name for group in found.values() for name in group))
    rows = [(label, *(count_text(group[n]) if n in group else "-" for n in names)) for label, group in found.items()]
    return Table("Parameters by group", ("model", *names), tuple(rows))


def _one_of_each(bill: Bill) -> list[Item]:
    first: dict[str, Item] = {}
    for item in bill.items:
        if item.run is not None:
            first.setdefault(item.label, item)
    order = list(bill.forecast.study.models())
    return sorted(first.values(), key=lambda item: order.index(item.run.plan.name if item.run else ""))


def runs(bill: Bill) -> Table:
    """A line for each run, one for each piece of a trunk that runs leave, and one for the entropy model.

    A run's bytes, epochs, steps and FLOPs are those that it is charged, over its whole path; its hours are those of
    what is computed for it alone.
    """
    money = f"money, {bill.machine.currency}" if bill.machine.currency else "money"
    head = ("run", "budget", "seed", "bytes", "epochs", "steps", "FLOPs paper", "full", "hours", "device-hours", money)
    rows = []
    for item in bill.items:
        source = item.run or item.piece
        guess = "~" if source is not None and not source.measured else ""
        if item.piece is not None:
            piece = item.piece
            steps = f"{guess}{piece.first:,}-{piece.last:,}"
            about = ("trunk", str(piece.plan.seed), guess + count_text(piece.bytes), "-", steps, "-", "-")
        elif item.run is None:
            study = bill.forecast.study
            about = ("-", "-", count_text(study.entropy_bytes), "-", "-", "-", flops_text(item.training))
        else:
            plan = item.run.plan
            flops = (flops_text(plan.flops[each].training * plan.bytes) for each in ("paper", "full"))
            about = (
                flops_text(plan.budget), str(plan.seed), guess + count_text(plan.bytes),
                _known(plan.epochs, lambda value: f"{value:.2f}"), f"{guess}{plan.train.steps:,}", *flops,
            )  # fmt: skip
        rows.append((
            item.label + "*" * item.done, *about,
            _known(item.seconds, hours_text), _known(item.device_seconds, hours_text), _known(item.money, money_text),
        ))  # fmt: skip
    return Table("Runs", head, tuple(rows))


def totals(bill: Bill) -> Table:
    """A line for each series, and one for all."""
    money = f"money, {bill.machine.currency}" if bill.machine.currency else "money"
    trunks = bool(bill.forecast.pieces)
    head = (
        "series", "runs", "bytes", "FLOPs paper", *(("each alone",) if trunks else ()), "on devices", "hours",
        "device-hours", money,
    )  # fmt: skip

    def line(total: Total) -> tuple[str, ...]:
        return (
            total.of, str(total.runs), count_text(total.bytes) if total.runs else "-",
            "-" if total.paper is None else flops_text(total.paper),
            *((flops_text(total.alone) if total.alone else "0",) if trunks else ()),
            flops_text(total.work) if total.work else "0",
            _known(total.seconds, hours_text), _known(total.device_seconds, hours_text),
            _known(total.money, money_text),
        )  # fmt: skip

    return Table("Totals", head, tuple(line(total) for total in bill.totals()))


def optima(bill: Bill) -> Table:
    """Where the best size of each series is predicted at each budget."""
    rows = [
        (one.series, flops_text(one.budget), count_text(one.size), one.bound or "inside", one.rule)
        for one in bill.predictions
    ]
    return Table("Optima, predicted", ("series", "budget", "N", "where", "by"), tuple(rows))


def heading(bill: Bill) -> str:
    """What was planned, on what, and what the words in the tables mean."""
    machine, study, text = bill.machine, bill.forecast.study, bill.forecast.text
    price = "no price" if machine.price is None else f"{machine.price:g} {machine.currency} a device-hour"
    size = "" if text.train_bytes is None else f", {text.train_bytes:,} bytes to train on"
    return (
        f"{len(bill.forecast.runs)} runs into {study.out}; text: {text.words}{size}.\n"
        f"{machine.name}: {machine.devices} x {machine.device}, {machine.peak_of(study.dtype):.3g} FLOP/s in "
        f"{study.dtype} each, {price}; figures noted {machine.noted}.\n"
        f"Budgets are in the accounting {study.accounting!r}. N leaves out byte, token and hash embeddings.\n"
        "Hours: one run after another on all devices, training and scoring, without compiling, saving and reading text."
    )


def _tables(bill: Bill) -> list[Table]:
    return [table for table in (models(bill), groups(bill), runs(bill), optima(bill), totals(bill)) if table.rows]


def as_text(bill: Bill) -> str:
    """All of it for people."""
    parts = [heading(bill), *(table.text() for table in _tables(bill))]
    return "\n\n".join([*parts, "\n".join(f"note: {note}" for note in bill.notes)]).rstrip()


def as_markdown(bill: Bill) -> str:
    """The same in Markdown."""
    parts = [heading(bill), *(table.markdown() for table in _tables(bill))]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in bill.notes)]).rstrip() + "\n"


def record(bill: Bill, item: Item) -> dict[str, Any]:
    """Everything about one item as JSON values, in full precision."""
    out: dict[str, Any] = {
        "model": item.label,
        "series": item.series,
        "training_flops_on_devices": item.training,
        "scoring_flops_on_devices": item.scoring,
        "fraction_of_peak": item.fraction,
        "hours": None if item.seconds is None else item.seconds / 3600,
        "device_hours": None if item.device_seconds is None else item.device_seconds / 3600,
        "money": item.money,
        "done": item.done,
        "currency": bill.machine.currency,
    }
    if item.piece is not None:
        piece, trunk = item.piece, item.piece.plan
        return {
            "shared": True, **out, "preset": trunk.name, "seed": trunk.seed, "bytes": piece.bytes,
            "patch_size_wanted": trunk.patch_size, "first_step": piece.first, "steps": piece.last,
            "rows_measured": piece.measured,
        }  # fmt: skip
    if item.run is None:
        return {"shared": True, **out}
    plan, footprint = item.run.plan, bill.footprints[item.label]
    return {
        "shared": False,
        **out,
        "family": plan.family,
        "preset": plan.name,
        "budget": plan.budget,
        "seed": plan.seed,
        "parameters_non_embedding": non_embedding_parameters(plan.train.model),
        "parameters": parameters(plan.train.model),
        "flops_per_byte": {name: cost.training for name, cost in plan.flops.items()},
        "training_flops": {name: cost.training * plan.bytes for name, cost in plan.flops.items()},
        "bytes": plan.bytes,
        "epochs": plan.epochs,
        "steps": plan.train.steps,
        "schedule": plan.train.optim.schedule,
        "branch_step": plan.branch_step,
        "patch_size_wanted": plan.patch_size,
        "rows_measured": item.run.measured,
        "rows": dataclasses.asdict(plan.facts),
        "slots": plan.train.rows.slots,
        "memory_per_device": {**dataclasses.asdict(footprint), "total": footprint.total, "bound": footprint.is_bound},
        "warnings": plan.warnings(),
    }


def as_json(bill: Bill) -> dict[str, Any]:
    """All of it as JSON values."""
    machine = dataclasses.asdict(bill.machine) | {"noted": bill.machine.noted.isoformat()}
    return {
        "machine": machine,
        "text": dataclasses.asdict(bill.forecast.text),
        "items": [record(bill, item) for item in bill.items],
        "totals": [dataclasses.asdict(total) for total in bill.totals()],
        "predicted_optima": [dataclasses.asdict(one) for one in bill.predictions],
        "notes": list(bill.notes),
    }


def as_csv(bill: Bill) -> str:
    """One line for each item, nested values as group_name; empty where an item has no such value."""
    flat = [_flat(record(bill, item)) for item in bill.items]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}_")
        else:
            out[prefix + name] = "; ".join(value) if isinstance(value, list) else value
    return out
