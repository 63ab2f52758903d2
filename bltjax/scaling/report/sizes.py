"""Figures over model size: bowls, optima against budget, the held-out budget, and the map of patch and model sizes."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from bltjax.scaling.fit import FittedLaw, Interval, IsoFLOP, Optimum
from bltjax.scaling.plots import count_text, mean_over_seeds, series_name, verdict
from bltjax.scaling.report.captions import N, NoData, caption, slug
from bltjax.scaling.report.data import Row, StudyData
from bltjax.scaling.report.laws import SeriesLaw
from bltjax.scaling.report.marks import Axis, Direction, Figure, Mark, View
from bltjax.scaling.report.spending import BITS

Laws = Mapping[str, SeriesLaw]

SHAPES = ("o", "s", "^", "D", "v", "P", "X")  # of budgets
SIZE = Axis(N, "count", log=True)
PARABOLA = "IsoFLOP parabola in ln N, least squares (biased off centre)"


def bowls(data: StudyData, laws: Laws) -> list[Figure]:
    """For each series its runs at each budget, a parabola through them, and its vertex where runs bracket it."""
    figures: list[Figure] = []
    reasons = []
    for series, law in laws.items():
        if not law.parabolas:
            reasons.append(f"{series_name(series)}: no budget has three sizes")
            continue
        rows = data.counted(series)
        marks: list[Mark] = []
        budgets = sorted({row["budget"] for row in rows})
        for number, budget in enumerate(budgets):
            shade = 0.4 + 0.6 * (number + 1) / len(budgets)
            own = [row for row in rows if row["budget"] == budget]
            own.sort(key=lambda row: row["parameters_non_embedding"])
            words = data.budget_text(budget)
            marks += _bowl(series, words, own, law.parabolas.get(budget), SHAPES[number % len(SHAPES)], shade)
        what = (
            "Each mark is a run. Stars: vertex of a budget's parabola, drawn only where larger and smaller models were "
            "both worse; elsewhere the parabola is dotted and an arrow marks the bound."
        )
        name = slug(f"isoflop_{series}", [figure.name for figure in figures])
        view = View("", SIZE, Axis(BITS, "number"), tuple(marks))
        title = f"IsoFLOP bowls: {series_name(series)}"
        figures.append(Figure(name, title, caption(data, what, estimator=PARABOLA), (view,)))
    if not figures:
        raise NoData("; ".join(reasons))
    return figures


def _bowl(series: str, budget: str, rows: Sequence[Row], fit: IsoFLOP | None, shape: str, shade: float) -> list[Mark]:
    x = tuple(row["parameters_non_embedding"] for row in rows)
    y = tuple(row["heldout_bits_per_byte"] for row in rows)
    label = f"{budget}: {verdict(fit)}"
    runs = tuple(row["run"] for row in rows)
    marks = [Mark("runs", series, label, x, y, runs=runs, shade=shade, shape=shape)]
    if fit is None:
        return marks
    curve = np.geomspace(min(x), max(x), 60)
    line = "solid" if fit.optimum is not None else "dotted"
    marks.insert(
        0, Mark("line", series, "", tuple(map(float, curve)), tuple(fit(n) for n in curve), line=line, shade=shade)
    )
    if fit.optimum is not None and fit.loss is not None:
        marks.append(
            Mark("optimum", series, "", (fit.optimum,), (fit.loss,), shade=shade,
                 texts=(f"{budget}: vertex at N {count_text(fit.optimum)}, {fit.loss:.4f} bits",))
        )  # fmt: skip
    elif fit.bound is not None and fit.bound_size is not None:
        way: Direction = "left" if fit.bound == "at or below" else "right"
        means = mean_over_seeds(rows)
        (end,) = (row for row in means if np.isclose(row["parameters_non_embedding"], fit.bound_size))
        loss = end["heldout_bits_per_byte"]
        marks.append(
            Mark("bound", series, "", (fit.bound_size,), (loss,), direction=way, shade=shade,
                 runs=(end["run"],),
                 texts=(f"{budget}: best size {fit.bound} {count_text(fit.bound_size)}",))
        )  # fmt: skip
    return marks


@dataclasses.dataclass(frozen=True)
class Optima:
    """The best sizes of a series: optima where runs bracket them, bounds elsewhere, and what the former rise with."""

    optima: tuple[Optimum, ...]
    bounds: tuple[tuple[float, str, float, float], ...]  # budget, "at or below" or "at or above", N and bytes there
    size_exponent: Interval | None  # None: fewer than two optima
    bytes_exponent: Interval | None


def optima_of(law: SeriesLaw) -> Optima:
    """Optima and bounds of a fitted law; a minimum of the law counts only where the runs of its budget bracket one."""
    fit = law.fit
    assert fit is not None
    inner, bounds = [], []
    for optimum in fit.optima():
        parabola = law.parabolas.get(optimum.budget)
        if optimum.bound is None and law.bracketed(optimum.budget):
            inner.append(optimum)
            continue
        side, size = optimum.bound, optimum.bound_size
        if parabola is not None and parabola.bound is not None:
            side, size = parabola.bound, parabola.bound_size
        if side is not None and size is not None:
            seen = float(fit.cost.bytes_within(optimum.budget, np.array([size]))[0])
            bounds.append((optimum.budget, str(side), size, seen))
    exponents = (None, None)
    if len(inner) > 1:
        exponents = _restricted(fit, [optimum.budget for optimum in inner]).exponents()
    return Optima(tuple(inner), tuple(bounds), *exponents)


def _restricted(fit: FittedLaw, budgets: Sequence[float]) -> FittedLaw:
    """The same law, asked about these budgets alone."""
    assert fit.points.budget is not None
    return dataclasses.replace(fit, points=fit.points.where(np.isin(fit.points.budget, budgets)))


def optimum_figures(data: StudyData, laws: Laws) -> list[Figure]:
    """The best size, and the bytes it sees, against the budget."""
    found = {series: optima_of(law) for series, law in laws.items() if law.fit is not None}
    if not found:
        raise NoData("; ".join(dict.fromkeys(f"{series_name(s)}: {law.why}" for s, law in laws.items())))
    if not any(each.optima or each.bounds for each in found.values()):
        raise NoData("no budget has an optimum or a bound")
    budgets = [row["budget"] for row in data.rows]
    spread = (max(budgets) / min(budgets)) ** 0.014
    figures = []
    for what in ("size", "bytes"):
        marks: list[Mark] = []
        notes = []
        for number, (series, own) in enumerate(found.items()):
            aside = spread ** (number - (len(found) - 1) / 2)  # or intervals at one budget would cover one another
            exponent: Interval | None = getattr(own, f"{what}_exponent")
            letter = "a" if what == "size" else "b"
            power = "no exponent" if exponent is None or exponent.value is None else f"{letter} = {_short(exponent)}"
            label = f"{series_name(series)}: {power}"
            if exponent is None:
                notes.append(f"{series_name(series)}: fewer than two budgets whose runs bracket an optimum.")
            points: list[Interval] = [getattr(optimum, what) for optimum in own.optima]
            x = tuple(optimum.budget * aside for optimum in own.optima)
            if len(x) > 1:
                marks.append(Mark("line", series, "", x, tuple(p.value or 1.0 for p in points), shade=0.5))
            named = bool(x)
            if x:
                marks.append(
                    Mark("interval", series, label, x, tuple(p.value or 1.0 for p in points),
                         tuple(p.low if p.draws else p.value for p in points),
                         tuple(p.high if p.draws else p.value for p in points),
                         texts=tuple(f"at {data.budget_text(o.budget)}: {o}" for o in own.optima))
                )  # fmt: skip
            for wanted in ("at or below", "at or above"):
                ends = [bound for bound in own.bounds if bound[1] == wanted]
                if not ends:
                    continue
                falls = (wanted == "at or below") == (what == "size")
                side = "at or below" if falls else "at or above"
                y = tuple(size if what == "size" else seen for _, _, size, seen in ends)
                marks.append(
                    Mark("bound", series, "" if named else label, tuple(each[0] * aside for each in ends), y,
                         direction="down" if falls else "up",
                         texts=tuple(f"at {data.budget_text(each[0])}: {side} {count_text(v)}"
                                     for each, v in zip(ends, y, strict=True)))
                )  # fmt: skip
                named = True
        label = N if what == "size" else "bytes of text seen by the best size"
        by_time = data.equal == "seconds"
        words = "device seconds by the bench" if by_time else f"training FLOPs ({data.accounting} accounting)"
        budget = Axis(f"budget, {words}", "seconds" if by_time else "flops", log=True)
        view = View("", budget, Axis(label, "count", log=True), tuple(marks), tuple(notes))
        said = (
            "Best size" if what == "size" else "Bytes that the best size sees"
        ) + (
            " at each budget by the fitted law, along what the series' own runs paid for a byte; only where the "
            "runs of that budget bracket it. Arrows are bounds: the runs' least loss is at an end of the sizes. "
            "Exponents are slopes over the optima drawn. Marks of one budget stand side by side."
        )  # fmt: skip
        title = "Best size against budget" if what == "size" else "Bytes at the best size against budget"
        figures.append(Figure(f"optimum_{what}", title, caption(data, said, laws), (view,)))
    return figures


def _short(value: Interval) -> str:
    """An interval with three digits."""
    assert value.value is not None
    if not value.draws:
        return f"{value.value:.3g}"
    ends = ("..." if end is None else f"{end:.3g}" for end in (value.low, value.high))
    return f"{value.value:.3g} [{', '.join(ends)}]"


def holdout(data: StudyData, laws: Laws) -> Figure:
    """Errors of laws that were fitted without the largest budget."""
    marks, notes, budgets, name = [], [], [], ""
    for series, law in laws.items():
        found = law.holdout
        if found is None:
            notes.append(f"{series_name(series)}: {law.no_holdout}")
            continue
        runs = [row for row in data.counted(series) if row["budget"] == found.budget]
        budgets.append(f"{data.budget_text(found.budget)}, {found.beyond:.3g} times the largest fitted")
        name = found.estimator
        marks.append(
            Mark("runs", series, f"{series_name(series)}: rms {found.rms:.4f}, mean {found.mean:+.4f}", found.sizes,
                 found.errors, runs=tuple(row["run"] for row in runs),
                 texts=tuple(f"predicted minus measured {error:+.4f}" for error in found.errors))
        )  # fmt: skip
    if not marks:
        raise NoData("; ".join(notes))
    what = f"The largest budget ({', '.join(dict.fromkeys(budgets))}) predicted by a law fitted without it."
    y = Axis("predicted minus measured, bits per byte", "number")
    view = View("", SIZE, y, tuple(marks), tuple(notes), 0.0)
    return Figure("holdout", "The largest budget held out", caption(data, what, estimator=name), (view,))


def patch_maps(data: StudyData, laws: Laws) -> list[Figure]:
    """Loss by model size and patch size at the largest budget, for families with several patch sizes."""
    families: dict[str, list[str]] = {}
    for row in data.rows:
        families.setdefault(row["family"], [])
        if row["series"] not in families[row["family"]]:
            families[row["family"]].append(row["series"])
    several = {family: names for family, names in families.items() if len(names) > 1}
    if not several:
        raise NoData("every family has one patch size")
    figures: list[Figure] = []
    for family, names in several.items():
        budget = max(row["budget"] for row in data.rows if row["family"] == family)
        rows = [r for r in data.rows if r["family"] == family and r["budget"] == budget]
        patches = sorted({row["series"] for row in rows}, key=lambda name: _patch(rows, name))
        sizes = sorted({row["parameters_non_embedding"] for row in rows})
        means = [row for name in patches for row in mean_over_seeds([r for r in rows if r["series"] == name])]
        cells = Mark(
            "cell", "", "", tuple(float(sizes.index(row["parameters_non_embedding"])) for row in means),
            tuple(float(patches.index(row["series"])) for row in means),
            value=tuple(row["heldout_bits_per_byte"] for row in means), runs=tuple(row["run"] for row in means),
        )  # fmt: skip
        y = Axis("mean patch, bytes", "number", names=tuple(f"{_patch(rows, name):.3g}" for name in patches))
        x = Axis(N, "count", names=tuple(count_text(size) for size in sizes))
        what = (
            f"Held-out bits per byte (means over seeds) at {data.budget_text(budget)} of training; darker is worse, "
            "the framed cell has the least. A least at the rim is a bound, no optimum."
        )
        name = slug(f"patch_map_{family}", [figure.name for figure in figures])
        title = f"Patch size and model size: {series_name(names[0]).split(' of ')[0]}"
        figures.append(Figure(name, title, caption(data, what), (View("", x, y, (cells,)),)))
    return figures


def _patch(rows: Sequence[Row], series: str) -> float:
    """Measured bytes per patch of a series."""
    return float(np.mean([row["bytes_per_unit"] for row in rows if row["series"] == series]))
