"""Figures over what was spent: losses and frontiers, gains over a baseline, equal inference, training curves."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from bltjax.scaling.fit import Curve, compute_equivalent_gain, crossover, measured_curve
from bltjax.scaling.fit import frontier as hull
from bltjax.scaling.plots import best_of_budgets, flops_text, series_name
from bltjax.scaling.report.captions import NoData, caption
from bltjax.scaling.report.data import AXES, BY_BENCH, Row, StudyData
from bltjax.scaling.report.laws import SeriesLaw, band
from bltjax.scaling.report.marks import Axis, Figure, Mark, Scale, View

Laws = Mapping[str, SeriesLaw]

BITS = "bits per byte, held-out documents"
SCALES: Mapping[str, Scale] = {
    "bench_seconds": "seconds",
    "flops_paper": "flops",
    "flops_full": "flops",
    "device_seconds": "seconds",
    "bytes_seen": "count",
}
EQUAL_INFERENCE = 1.05  # models whose forward FLOPs per byte differ by less are of one class
_GAINS = 9


def x_axis(axis: str) -> Axis:
    return Axis({**AXES, **BY_BENCH}[axis][1], SCALES[axis], log=True)


def run_marks(series: str, rows: Sequence[Row], axis: str, shade: float = 1.0) -> Mark:
    """The runs of a series."""
    return Mark(
        "runs", series, series_name(series), tuple(row[{**AXES, **BY_BENCH}[axis][2]] for row in rows),
        tuple(row["heldout_bits_per_byte"] for row in rows), runs=tuple(row["run"] for row in rows), shade=shade,
    )  # fmt: skip


def curve_marks(series: str, curve: Curve) -> list[Mark]:
    """A fitted curve with its band, dotted where it is an upper bound only."""
    out = []
    x = tuple(map(float, curve.x))
    ends = band(curve)
    if ends is not None:
        low, high = (tuple(map(float, each)) for each in ends)
        out.append(Mark("band", series, "", x, tuple(map(float, curve.loss)), low, high, shade=0.16))
    changes = [0, *(np.flatnonzero(np.diff(curve.bounded.astype(int))) + 1), len(x)]
    for first, last in itertools.pairwise(changes):
        stop = min(last + 1, len(x))  # pieces meet
        out.append(
            Mark("line", series, "", x[first:stop], tuple(map(float, curve.loss[first:stop])),
                 line="dotted" if curve.bounded[first] else "solid")
        )  # fmt: skip
    return out


def bits_per_byte(data: StudyData, laws: Laws) -> Figure:
    """Every run, and the frontier of each series."""
    views = []
    for axis in data.axes:
        marks, notes = [], []
        for series, law in laws.items():
            try:
                marks += curve_marks(series, law.frontier(axis))
            except ValueError as error:
                notes.append(f"{series_name(series)}: no frontier: {error}".rstrip(".") + ".")
                best = best_of_budgets(data.of(series))
                if axis == data.own_axis and len(best) > 1:
                    x, y = [row[data.axes[axis][2]] for row in best], [row["heldout_bits_per_byte"] for row in best]
                    own = hull(x, y)
                    marks.append(
                        Mark("line", series, "", tuple(x[i] for i in own), tuple(y[i] for i in own), line="dashed")
                    )
        marks += [run_marks(series, data.of(series), axis) for series in laws]
        views.append(View(axis, x_axis(axis), Axis(BITS, "number"), tuple(marks), _together(notes)))
    what = (
        "Each mark is a run. Lines: least loss of the fitted law at each spending, within the sizes trained; dotted "
        "where its best size is at an end of those, so that the line is an upper bound. Dashed: hull of the best runs, "
        "where no law could be fitted."
    )
    first = [view for view in views if view.axis == data.own_axis]
    rest = [view for view in views if view.axis != data.own_axis]
    return Figure(
        "bits_per_byte", "Bits per byte against spending", caption(data, what, laws), tuple(first + rest)
    )  # fmt: skip


def _together(notes: list[str]) -> tuple[str, ...]:
    """Notes of one reason for all series are said once."""
    reasons = {note.split(": ", 1)[1] for note in notes}
    if len(notes) > 1 and len(reasons) == 1:
        reason = reasons.pop()
        return (reason[0].upper() + reason[1:],)
    return tuple(notes)


def baseline(data: StudyData) -> str:
    """The series that others are compared with: tokens, else flat bytes, else the first."""
    return next((name for name in ("token", "byte") if name in data.series), data.series[0])


def gain(data: StudyData, laws: Laws) -> Figure:
    """How many times the spending the baseline needs for the same loss."""
    if len(laws) < 2:
        raise NoData("one series alone: there is nothing to compare it with")
    base, views, reasons = baseline(data), [], []
    for axis in (each for each in data.axes if each != "bytes_seen"):
        marks, notes = [], []
        for series, law in laws.items():
            if series == base:
                continue
            try:
                curve = law.frontier(axis)
                x = np.geomspace(curve.x[0], curve.x[-1], _GAINS)
                found = compute_equivalent_gain(curve, laws[base].frontier(axis), x)
            except ValueError as error:
                notes.append(f"{series_name(series)}: {error}".rstrip(".") + ".")
                continue
            known = [i for i, each in enumerate(found.gains) if each.value is not None]
            place = [found.x[i] for i in known]
            value = [found.gains[i].value or 1.0 for i in known]
            if len(known) > 1:
                marks.append(Mark("line", series, "", tuple(place), tuple(value), shade=0.5))
            marks.append(
                Mark("interval", series, series_name(series), tuple(place), tuple(value),
                     tuple(found.gains[i].low for i in known), tuple(found.gains[i].high for i in known),
                     texts=tuple(f"gain {found.gains[i]} at {flops_text(found.x[i])}" for i in known))
            )  # fmt: skip
            for side, way in (("more than", "up"), ("less than", "down")):
                beyond = [i for i, each in enumerate(found.sides) if each == side]
                limits = [found.limits[i] or 1.0 for i in beyond]
                marks.append(
                    Mark("bound", series, "" if known else series_name(series),
                         tuple(found.x[i] for i in beyond), tuple(limits), direction="up" if way == "up" else "down",
                         texts=tuple(f"{side} {limit:.3g}: end of what was measured" for limit in limits))
                )  # fmt: skip
            slope = found.slope
            words = "not known" if slope.value is None else str(slope)
            notes.append(f"{series_name(series)}: slope of ln gain over ln spending {words}.")
            for note in found.notes:
                name, _, rest = note.partition(": ")
                notes.append(f"{series_name(name) if name in laws else name}: {rest}." if rest else f"{note}.")
        marks = [mark for mark in marks if mark.x]
        if marks:
            label = f"times the spending of {series_name(base)}"
            y = Axis(label, "number", log=True)
            views.append(View(axis, x_axis(axis), y, tuple(marks), tuple(dict.fromkeys(notes)), 1.0))
        else:
            reasons += notes
    if not views:
        raise NoData("; ".join(dict.fromkeys(reasons)))
    what = (
        f"Spending at which {series_name(base)} reach the loss that a series has at x, divided by x; above 1 "
        "the series saves. Arrows: more or less than this, since the other's loss lies outside of what was measured. "
        "Over device seconds it is the time-equivalent gain."
    )
    views.sort(key=lambda view: view.axis != data.own_axis)
    return Figure("gain", f"Compute-equivalent gain over {series_name(base)}", caption(data, what, laws), tuple(views))


def loss_curves(data: StudyData, laws: Laws) -> Figure:
    """The training curve of every run."""
    if not data.curves:
        raise NoData("no metrics.jsonl of a run is there")
    views = []
    budgets = sorted({row["budget"] for row in data.rows})
    for axis in data.axes:
        marks, named = [], set()
        for row in data.rows:
            curve = data.curves.get(row["run"])
            if curve is None:
                continue
            seen = np.array(curve.bytes_seen)
            by_clock = axis == "device_seconds"
            x = np.array(curve.seconds) if by_clock else seen * row[data.axes[axis][2]] / row["bytes_seen"]
            series = row["series"]
            label = "" if series in named else series_name(series)
            named.add(series)
            shade = 0.35 + 0.65 * (budgets.index(row["budget"]) + 1) / len(budgets)
            marks.append(
                Mark("line", series, label, tuple(map(float, x)), curve.bits_per_byte, shade=shade,
                     runs=(row["run"],) * len(x))
            )  # fmt: skip
        y = Axis("bits per byte, training text", "number")
        views.append(View(axis, x_axis(axis), y, tuple(marks)))
    what = (
        "Each line is a run, stronger at larger budgets: means over the steps between two lines of its log. Losses in "
        "mid-schedule are no points of any fit."
    )
    views.sort(key=lambda view: view.axis != data.own_axis)
    return Figure("loss_curves", "Training losses", caption(data, what), tuple(views))


def inference_classes(data: StudyData) -> list[list[tuple[str, str, float]]]:
    """Models of several series that cost the same for each byte they read: (series, preset, forward FLOPs a byte)."""
    column = f"forward_flops_per_byte_{data.flops_axis.removeprefix('flops_')}"
    cost: dict[tuple[str, str], float] = {}
    budgets: dict[tuple[str, str], set[float]] = {}
    for row in itertools.chain.from_iterable(map(data.counted, data.series)):
        key = row["series"], row["preset"]
        cost[key] = row[column]
        budgets.setdefault(key, set()).add(row["budget"])
    left = sorted((key for key in cost if len(budgets[key]) >= 2), key=lambda key: cost[key])
    classes = []
    while left:
        own = [key for key in left if cost[key] <= EQUAL_INFERENCE * cost[left[0]]]
        one_each = {series: (series, preset, cost[series, preset]) for series, preset in reversed(own)}
        if len(one_each) > 1:
            classes.append(list(one_each.values()))
        left = [key for key in left if key not in own]
    return classes


def _curve_of(data: StudyData, law: SeriesLaw, preset: str, unit: Literal["flops", "bytes", "seconds"]) -> Curve:
    """The curve of one model by its series' law; where there is none, as it was measured, without an interval."""
    rows = data.counted(law.series)
    if law.fit is not None:
        return law.fit.at_size(next(r for r in rows if r["preset"] == preset)["parameters_non_embedding"], unit)
    own = np.array([row["preset"] == preset for row in rows])
    return measured_curve(law.points[data.own_axis].where(own), unit, draws=0)


def fixed_inference(data: StudyData, laws: Laws) -> list[Figure]:
    """One figure for each class of models of equal inference FLOPs."""
    classes = inference_classes(data)
    if not classes:
        raise NoData(
            "no two series have models whose forward FLOPs per byte differ by less than "
            f"{EQUAL_INFERENCE - 1:.0%}, each at two budgets"
        )
    units: tuple[tuple[str, Literal["flops", "bytes", "seconds"]], ...] = (
        (data.flops_axis, "flops"),
        ("bytes_seen", "bytes"),
        ("device_seconds", "seconds"),
    )
    if data.equal == "seconds":
        units = (("bench_seconds", "seconds"), *units[:2])
    figures = []
    for number, members in enumerate(classes, start=1):
        views, own = [], {series: laws[series] for series, _, _ in members}
        if any(law.fit is None for law in own.values()):  # only curves of one kind are compared
            own = {series: dataclasses.replace(law, fit=None) for series, law in own.items()}
        for axis, unit in units:
            marks, notes, curves = [], [], []
            for series, preset, _ in members:
                rows = [row for row in data.counted(series) if row["preset"] == preset]
                try:
                    curves.append(_curve_of(data, own[series], preset, unit))
                    marks += curve_marks(series, curves[-1])
                except ValueError as error:
                    notes.append(f"{series_name(series)}: no curve: {error}".rstrip(".") + ".")
                marks.append(run_marks(series, rows, axis))
            for other in curves[1:]:
                try:
                    notes.append(f"{crossover(curves[0], other)}".replace("\n", "; ") + ".")
                except ValueError as error:
                    notes.append(f"{error}".rstrip(".") + ".")
            views.append(View(axis, x_axis(axis), Axis(BITS, "number"), tuple(marks), tuple(notes)))
        costs = f"{flops_text(members[0][2])} forward FLOPs per byte"
        names = ", ".join(f"{preset} ({series_name(series)})" for series, preset, _ in members)
        what = f"Models of equal inference cost, {costs} to within {EQUAL_INFERENCE - 1:.0%}: {names}."
        if any(law.fit is None for law in own.values()):
            what += " Lines join means over seeds, without intervals: not every series has sizes enough for a law."
        figures.append(
            Figure(f"fixed_inference_{number}", f"At equal inference: {costs}", caption(data, what, own), tuple(views))
        )
    return figures
