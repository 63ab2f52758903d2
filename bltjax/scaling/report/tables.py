"""The tables of a report: Markdown for a page, LaTeX for a paper. Whatever came from data is escaped."""

import dataclasses
from collections.abc import Iterable, Mapping

from bltjax.scaling.fit import METHODS, FittedLaw, Interval, crossover
from bltjax.scaling.fit.fitted import HEADLINES
from bltjax.scaling.fit.law import at_edge
from bltjax.scaling.fit.vocabularies import swept
from bltjax.scaling.plots import Row, best_of_budgets, count_text, flops_text, series_name, vocabularies_text
from bltjax.scaling.report.data import StudyData
from bltjax.scaling.report.laws import METHOD, SeriesLaw
from bltjax.scaling.report.sizes import optima_of
from bltjax.scaling.report.spending import baseline

Laws = Mapping[str, SeriesLaw]

_NO_E = 1e-6  # bits per byte: below it a search for E has ended at nothing

_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
_MARKDOWN = {sign: f"\\{sign}" for sign in "\\`*_[]|~#"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of words; the first columns, `left` of them, are aligned to the left.

    Attributes:
      name: of its files.
      title: in words.
      head: of its columns.
      rows: of as many cells.
      note: what the numbers are.
      notes: what a reader should know besides.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
    left: int = 1
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        def line(cells: tuple[str, ...]) -> str:
            return "| " + " | ".join(map(markdown, cells)) + " |"

        rule = "|" + "|".join(":--" if i < self.left else "--:" for i in range(len(self.head))) + "|"
        body = [line(self.head), rule, *map(line, self.rows)]
        notes = (f"{markdown(note)}\n" for note in (self.note, *self.notes))
        return "\n".join([f"**{markdown(self.title)}**", "", *body, "", *notes])

    def latex(self) -> str:
        """A `table` with `booktabs` rules."""

        def line(cells: tuple[str, ...]) -> str:
            return " & ".join(map(latex, cells)) + r" \\"

        columns = "l" * self.left + "r" * (len(self.head) - self.left)
        return "\n".join([
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{latex(self.title)}. {latex(' '.join([self.note, *self.notes]))}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            line(self.head),
            r"\midrule",
            *map(line, self.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ])  # fmt: skip


def latex(text: str) -> str:
    """Text in which LaTeX finds nothing to obey."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


def markdown(text: str) -> str:
    """Text in which Markdown and HTML find nothing to obey."""
    return "".join(_MARKDOWN.get(sign, sign) for sign in " ".join(text.split()))


def make_tables(data: StudyData, laws: Laws) -> list[Table]:
    """Fits, by every estimator too, optima, where frontiers cross, best runs and all runs."""
    tables = [
        _fits(data, laws),
        _estimators(data, laws),
        _optima(data, laws),
        _crossovers(data, laws),
        _best(data),
        _runs(data),
    ]
    return [table for table in tables if table.rows]


def _text(value: Interval | None) -> str:
    if value is None or value.value is None:
        return "-"
    if not value.draws:
        return f"{value.value:.3g}"
    ends = ("..." if end is None else f"{end:.3g}" for end in (value.low, value.high))
    return f"{value.value:.3g} [{', '.join(ends)}]"


def _fits(data: StudyData, laws: Laws) -> Table:
    rows: list[tuple[str, ...]] = []
    notes: dict[str, list[str]] = {}
    for series, law in laws.items():
        if law.fit is None:
            notes.setdefault(f"not fitted: {law.why}", []).append(series_name(series))
            continue
        own = optima_of(law)
        rms = float((law.fit.residuals() ** 2).mean() ** 0.5)
        rows.append((
            series_name(series), *_parameters(law.fit),
            _text(own.size_exponent), _text(own.bytes_exponent), f"{rms:.4f}",
            "-" if law.holdout is None else f"{law.holdout.rms:.4f}",
            f"{len(law.fit.points)} / {len(set(law.fit.points.cluster))}",
        ))  # fmt: skip
        for warning in [*law.fit.warnings, *filter(None, [law.no_interval and f"no interval: {law.no_interval}"])]:
            notes.setdefault(warning, []).append(series_name(series))
    estimator = next((law.fit.estimator for law in laws.values() if law.fit is not None), "none")
    note = (
        f"L = E + A / N^alpha + B / D^beta, D in bytes, by {estimator}. a and b: exponents of the budget in the best "
        "size and its bytes, over the budgets whose runs bracket an optimum. Residuals and the error at the largest "
        "budget, held out, are root mean squares in bits per byte. Clusters are trunks and seeds."
    )
    head = ("series", "E", "alpha", "beta", "a", "b", "residual", "held out", "runs / clusters")
    listed = tuple(f"{'; '.join(names)}: {warning.rstrip('.')}." for warning, names in notes.items())
    return Table("fits", "Fitted laws", head, tuple(rows), note, notes=listed)


def _estimators(data: StudyData, laws: Laws) -> Table:
    budget = max(row["budget"] for row in data.rows)
    rows: list[tuple[str, ...]] = []
    notes: dict[str, list[str]] = {}
    for series, law in laws.items():
        for method in METHODS:
            found, who = law if method == METHOD else law.others[method], f"{series_name(series)}, {method}"
            fit, why = found.fit, found.no_interval
            if fit is None:
                notes.setdefault(f"not fitted: {found.why}", []).append(who)
                continue
            for warning in [*fit.warnings, *filter(None, [why and f"no interval: {why}"])]:
                notes.setdefault(warning, []).append(who)
            optimum = next((each for each in fit.optima() if each.budget == budget), None)
            if optimum is None:
                best = ("none", "-")
            elif optimum.bound is not None and optimum.bound_size is not None:
                best = (f"{optimum.bound} {count_text(optimum.bound_size)}", "-")
            else:
                best = (_count(optimum.size), _text_loss(optimum.loss))
            rows.append((
                series_name(series), method, *map(_text, fit.exponents()), *best,
                "-" if found.holdout is None else f"{found.holdout.rms:.4f}",
            ))  # fmt: skip
    note = (
        "Each estimator as it stands, its optima wherever its own minimum lies inside the sizes: projection, variable "
        "projection, on which the rest of this report stands; huber, LSE-Huber (summed); parabola, one in ln N at each "
        f"budget, biased off centre. Best size and its loss at {data.budget_text(budget)}; a and b: exponents of the "
        "budget in best size and bytes; held out: root mean square at the largest budget, bits per byte."
    )
    head = ("series", "estimator", "a", "b", "best size N", "bits per byte", "held out")
    listed = tuple(f"{'; '.join(names)}: {warning.rstrip('.')}." for warning, names in notes.items())
    return Table("estimators", "Estimators side by side", head, tuple(rows), note, left=2, notes=listed)


def _parameters(fit: FittedLaw) -> list[str]:
    """E, alpha and beta; one that ended at the end of its search is no estimate, and has no interval."""
    ended = at_edge(fit.law)
    out = []
    for name in HEADLINES:
        value = fit.parameter(name)
        if name in ended or (name == "E" and (value.value or 0.0) < _NO_E):
            out.append(f"{0.0 if name == 'E' else value.value:.3g}, its end")
        else:
            out.append(_text(value))
    return out


def _optima(data: StudyData, laws: Laws) -> Table:
    rows = []
    for series, law in laws.items():
        if law.fit is None:
            continue
        own = optima_of(law)
        lines = [(o.budget, _count(o.size), _count(o.bytes), _text_loss(o.loss)) for o in own.optima]
        for budget, side, size, seen in own.bounds:
            other = "at or above" if side == "at or below" else "at or below"
            lines.append((budget, f"{side} {count_text(size)}", f"{other} {count_text(seen)}", "-"))
        rows += [(series_name(series), flops_text(budget), *rest) for budget, *rest in sorted(lines)]
    note = "By the fitted law where the runs of a budget bracket an optimum; elsewhere a bound at the end of the sizes."
    head = ("series", "budget", "best size N", "its bytes", "bits per byte")
    return Table("optima", "Best sizes", head, tuple(rows), note)


def _count(value: Interval) -> str:
    if value.value is None:
        return "-"
    if not value.draws:
        return count_text(value.value)
    ends = ("..." if end is None else count_text(end) for end in (value.low, value.high))
    return f"{count_text(value.value)} [{', '.join(ends)}]"


def _text_loss(value: Interval) -> str:
    if value.value is None or not value.draws:
        return "-" if value.value is None else f"{value.value:.3f}"
    ends = ("..." if end is None else f"{end:.3f}" for end in (value.low, value.high))
    return f"{value.value:.3f} [{', '.join(ends)}]"


def _crossovers(data: StudyData, laws: Laws) -> Table:
    rows, base = [], baseline(data)
    for series, law in laws.items():
        if series == base:
            continue
        try:
            found = crossover(law.frontier(data.own_axis), laws[base].frontier(data.own_axis))
        except ValueError:
            continue
        low, high = found.range
        names = {each: series_name(each) for each in (series, base)}
        rows.append((
            names[series], "none in range" if found.x is None else _text(found.x), f"{found.crossing:.1%}",
            names.get(found.better_before, found.better_before), names.get(found.better_after, found.better_after),
            f"{flops_text(low)} to {flops_text(high)}",
        ))  # fmt: skip
    note = (
        "A crossover is given where the fitted frontiers cross once and 97.5 % of the bootstrap draws cross, within "
        f"what both measured ({data.budgets_text})."
    )
    head = ("series", "crossover at", "draws that cross", "better at the low end", "at the high end", "range")
    return Table("crossovers", f"Where frontiers cross that of {series_name(base)}", head, tuple(rows), note)


def _best(data: StudyData) -> Table:
    best = {series: {row["budget"]: row for row in best_of_budgets(data.of(series))} for series in data.series}
    budgets = sorted({row["budget"] for row in data.rows})
    rows = tuple(
        (series_name(series), *_best_cells((found.get(budget) for budget in budgets), series in swept(data.rows)))
        for series, found in best.items()
    )
    note = (
        "The least held-out bits per byte of the runs at each budget (means over seeds, each size at its best rate) "
        "with the size that has it, N without look-up tables; "
        f" budgets are {data.budgets_text}. {vocabularies_text(data.rows)}"
    ).strip()
    head = ("series", *(data.budget_text(budget) for budget in budgets))
    return Table("best", "The best run at each budget", head, rows, note)


def _best_cells(rows: Iterable[Row | None], with_vocabulary: bool) -> list[str]:
    def words(row: Row) -> str:
        tokens = f", {row['vocabulary']:,.0f} tokens" if with_vocabulary else ""
        return f"{row['heldout_bits_per_byte']:.4f} ({count_text(row['parameters_non_embedding'])}{tokens})"

    return ["-" if row is None else words(row) for row in rows]


def _runs(data: StudyData) -> Table:
    def line(row: Row) -> tuple[str, ...]:
        return (
            series_name(row["series"]), row["preset"], f"{row['seed']:.0f}", flops_text(row["budget"]),
            count_text(row["parameters_non_embedding"]), flops_text(row["training_flops_paper"]),
            flops_text(row["training_flops_full"]), f"{row['bytes_seen'] / 1e6:.2f}",
            "-" if row["epochs"] is None else f"{row['epochs']:.2f}", f"{row['bytes_per_unit']:.2f}",
            f"{row['device_seconds']:.3g}", "-" if row.get("peak_rate") is None else f"{row['peak_rate']:.3g}",
            f"{row['heldout_bits_per_byte']:.4f}",
        )  # fmt: skip

    head = (
        "series", "preset", "seed", "budget", "N", "FLOPs paper", "FLOPs full", "MB seen", "epochs", "bytes a unit",
        "device s", "rate", "bits per byte",
    )  # fmt: skip
    order = {series: number for number, series in enumerate(data.series)}
    rows = sorted(
        data.rows,
        key=lambda row: (order[row["series"]], row["budget"], row["parameters_non_embedding"], row["seed"]),
    )
    note = f"N without byte, token and hash embeddings. Split: {data.text}."
    return Table("runs", "All runs", head, tuple(map(line, rows)), note, left=2)
