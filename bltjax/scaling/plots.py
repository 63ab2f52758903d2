"""The figures of a study, as PNG and SVG: the same rows give the same bytes.

Rows are those of `sweep.table_row`. Colours are Okabe and Ito's, which colour-blind readers can tell apart; every
series has a marker of its own besides.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from bltjax.scaling.fit import IsoFLOP, best_of_rates, frontier, isoflop
from bltjax.scaling.fit.vocabularies import chosen, swept
from bltjax.scaling.store import replace_file

Row = Mapping[str, Any]

FAMILY_NAMES = {
    "blt": "BLT, entropy patches",
    "byte": "flat bytes",
    "token": "BPE tokens",
    "megabyte": "MEGABYTE",
    "spacebyte": "SpaceByte",
    "blt-entropy": "BLT, entropy patches",
    "blt-monotonic": "BLT, entropy patches (monotonic)",
    "blt-strided": "BLT, patches of one length",
    "blt-space": "BLT, patches after spaces",
    "blt-bpe": "BLT, BPE patches",
}
_FAMILY_STYLE: dict[Any, Any] = {"blt": ("#D55E00", "o"), "byte": ("#0072B2", "s"), "token": ("#009E73", "^")}
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "bltjax",  # ids in an SVG are otherwise random
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def series_name(series: str) -> str:
    """What a series is called in figures: "BLT, entropy patches of 6 bytes"."""
    if series in FAMILY_NAMES:
        return FAMILY_NAMES[series]
    series, mark, variant = series.partition("+")
    if mark:
        return f"{series_name(series)}: {variant}"
    family, _, size = series.rpartition("-")
    return f"{FAMILY_NAMES.get(family, family)} of {size} bytes" if family else series


def series_style(series: str, all_series: Sequence[str]) -> tuple[str, str]:
    """Colour and marker: a family's own; of the others by number, from what those leave."""
    if series in _FAMILY_STYLE:
        return _FAMILY_STYLE[series]
    taken = [_FAMILY_STYLE[each] for each in all_series if each in _FAMILY_STYLE]
    colours = [colour for colour in COLOURS if colour not in {own for own, _ in taken}]
    markers = [marker for marker in MARKERS if marker not in {own for _, own in taken}]
    index = [each for each in all_series if each not in _FAMILY_STYLE].index(series)
    return colours[index % len(colours)], markers[(index + index // len(colours)) % len(markers)]


def count_text(value: float) -> str:
    """A number of parameters or bytes: 131k, 2.05M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if limit <= value < 1e3 * limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def flops_text(value: float) -> str:
    """A number of FLOPs: 6e10, 1.8e11."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def budget_text(budget: float, equal: str = "flops") -> str:
    """A budget with its unit: 8e10 FLOPs, 60 device-seconds."""
    return f"{flops_text(budget)} FLOPs" if equal == "flops" else f"{budget:g} device-seconds"


def equal_of(rows: Sequence[Row]) -> str:
    """What runs of one budget have in common: "flops", or "seconds"; tables older than the column: FLOPs."""
    return rows[0].get("equal", "flops")


def spending_of(rows: Sequence[Row]) -> str:
    """The column of what the budgets of rows are of, as it was spent."""
    return "training_flops" if equal_of(rows) == "flops" else "bench_seconds"


def save(figure: Figure, folder: Path, name: str, kinds: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Writes a figure in each kind of file, without the date and version that would make each file new."""
    metadata: dict[str, dict[str, str | None]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    paths = [folder / f"{name}.{kind}" for kind in kinds]
    for path, kind in zip(paths, kinds, strict=True):
        facts = metadata[kind]

        def write(temporary: Path, kind: str = kind, facts: dict[str, str | None] = facts) -> None:
            figure.savefig(temporary, format=kind, dpi=150, metadata=facts)

        with matplotlib.rc_context(STYLE):
            replace_file(path, write)
    return paths


def new_figure(caption: str, panels: int = 1, left: float = 0.11) -> tuple[Figure, list[Axes]]:
    """A figure with its caption below, and so many axes side by side."""
    lines = textwrap.wrap(caption, 108)
    margin = 0.25 + 0.15 * len(lines)  # inches below the axes' own labels
    height = 4.6 + margin
    figure = Figure(figsize=(7.2, height))
    FigureCanvasAgg(figure)
    bottom, tall, room = (margin + 0.5) / height, (height - margin - 0.95) / height, 0.97 - left
    wide = room / panels - 0.03 * (panels - 1) / panels
    axes = [figure.add_axes((left + (wide + 0.03) * place, bottom, wide, tall)) for place in range(panels)]
    figure.text(0.02, 0.02, "\n".join(lines), fontsize=7.5, color="#444444", va="bottom")
    return figure, axes


def _log_axis(axes: Axes, values: Sequence[float], text: Callable[[float], str], label: str) -> None:
    """A logarithmic x axis whose ticks are the values themselves, thinned until they do not collide."""
    axes.set_xscale("log")
    ticks: list[float] = []
    span = np.log(max(values) / min(values)) or 1.0
    for value in sorted(set(values)):
        if not ticks or np.log(value / ticks[-1]) > 0.09 * span:
            ticks.append(value)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(float(value))))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    axes.set_ylabel("bits per byte, held-out documents")


def _legend(axes: Axes) -> None:
    """A legend above all marks and curves, which leave none of its own places free."""
    share = 0.03 + 0.065 * len(axes.get_legend_handles_labels()[0])  # of the axes' height
    low, high = axes.get_ylim()
    axes.set_ylim(low, low + (high - low) / (1 - share))
    axes.legend(loc="upper left")


def frontier_figure(rows: Sequence[Row], caption: str) -> Figure:
    """Bits per byte against what budgets are of: every run a pale mark; a line through the family's frontier.

    The frontier is the lower convex hull of the best size at each budget (of the mean over seeds): runs at one budget
    differ in FLOPs by less than a step, and that difference says nothing.
    """
    spent = spending_of(rows)
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = new_figure(caption)
        all_series = list(dict.fromkeys(row["series"] for row in rows))
        for series in all_series:
            own = [row for row in rows if row["series"] == series]
            colour, marker = series_style(series, all_series)
            x, y = [row[spent] for row in own], [row["heldout_bits_per_byte"] for row in own]
            axes.plot(x, y, linestyle="", marker=marker, color=colour, markersize=5, alpha=0.45, markeredgewidth=0)
            best = best_of_budgets(own)
            x, y = [row[spent] for row in best], [row["heldout_bits_per_byte"] for row in best]
            hull = frontier(x, y)
            axes.plot(
                [x[i] for i in hull], [y[i] for i in hull], marker=marker, color=colour, markersize=7, linewidth=1.8,
                label=series_name(series),
            )  # fmt: skip
        by_time = spent == "bench_seconds"
        label = "device-seconds" if by_time else f"training FLOPs ({rows[0]['accounting']} accounting)"
        _log_axis(axes, [row["budget"] for row in rows], count_text if by_time else flops_text, label)
        axes.legend()
        equal = "accelerator time" if by_time else "training compute"
        axes.set_title(f"Bits per byte at equal {equal}", loc="left", fontsize=11)
        return figure


def speed_figure(rows: Sequence[Row], caption: str) -> Figure:
    """Bytes written in a second against bits per byte; rows of a series are joined in the order of their budgets."""
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = new_figure(caption)
        all_series = list(dict.fromkeys(row["series"] for row in rows))
        places = np.array([(row["heldout_bits_per_byte"], row["bytes_per_second"]) for row in rows])
        spans = np.maximum([np.ptp(places[:, 0]), places[:, 1].max()], 1e-9)

        def covers(place: tuple[float, float]) -> bool:
            """Whether a label to the upper right of a mark would lie on another mark, or on its label."""
            right, up = ((places - place) / spans).T
            return bool(((right > 0) & (right < 0.1) & (up > -0.02) & (up < 0.08)).any())

        for series in all_series:
            own = sorted((row for row in rows if row["series"] == series), key=lambda row: row["budget"])
            colour, marker = series_style(series, all_series)
            x, y = [row["heldout_bits_per_byte"] for row in own], [row["bytes_per_second"] for row in own]
            axes.plot(x, y, marker=marker, color=colour, markersize=7, linewidth=1.2, label=series_name(series))
            for row in own:
                place = row["heldout_bits_per_byte"], row["bytes_per_second"]
                aside = (5, -11) if covers(place) else (5, 5)
                axes.annotate(flops_text(row["budget"]), place, aside, textcoords="offset points", fontsize=7)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("bits per byte, held-out documents")
        axes.set_ylabel("bytes written per second")
        axes.set_title("How fast models write, and how well (best: upper left)", loc="left", fontsize=11)
        axes.legend()
        return figure


def mean_over_seeds(rows: Sequence[Row]) -> list[Row]:
    """One row for each preset and budget of a series, with means over its seeds, each at its best rate."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in best_of_rates(rows):
        groups.setdefault((row["preset"], row["budget"]), []).append(row)
    measured = (spending_of(rows), "heldout_bits_per_byte") if rows else ()
    return [
        {**group[0], **{name: float(np.mean([row[name] for row in group])) for name in measured}}
        for group in groups.values()
    ]


def best_of_budgets(rows: Sequence[Row]) -> list[Row]:
    """The size (and vocabulary) of least loss, mean over seeds, at each budget, cheapest first; rows of one series."""
    best: dict[float, Row] = {}
    for row in mean_over_seeds(chosen(rows)):
        found = best.get(row["budget"])
        if found is None or row["heldout_bits_per_byte"] < found["heldout_bits_per_byte"]:
            best[row["budget"]] = row
    return [best[budget] for budget in sorted(best)]


def isoflop_fits(rows: Sequence[Row]) -> dict[float, IsoFLOP]:
    """The parabola of each budget with three sizes or more, each at its best rate and vocabulary; of one series."""
    fits, rows = {}, chosen(best_of_rates(rows))
    for budget in sorted({row["budget"] for row in rows}):
        own = [row for row in rows if row["budget"] == budget]
        if len({row["parameters_non_embedding"] for row in own}) >= 3:
            sizes = [row["parameters_non_embedding"] for row in own]
            fits[budget] = isoflop(sizes, [row["heldout_bits_per_byte"] for row in own])
    return fits


def vocabularies_text(rows: Sequence[Row]) -> str:
    """Which vocabulary counts where a study has several, for captions; "" where it has not."""
    parts = []
    for series, all_of_them in swept(rows).items():
        best = best_of_budgets([row for row in rows if row["series"] == series])
        at = ", ".join(f"{row['vocabulary']:,.0f} at {budget_text(row['budget'], equal_of(rows))}" for row in best)
        words = ", ".join(f"{tokens:,}" for tokens in all_of_them)
        parts.append(f"{series_name(series)} of vocabularies {words}: at each budget that counts whose best size has "
                     f"the least loss (mean over seeds): {at}.")  # fmt: skip
    return " ".join(parts)


def isoflop_figure(rows: Sequence[Row], caption: str) -> Figure:
    """Bits per byte against model size at each budget, with parabolas and the optima that were bracketed.

    Of runs at several learning rates those at a size's best are drawn, as they are fitted; of several vocabularies at a
    budget all but the best are pale.
    """
    everything = best_of_rates(rows)
    series, fits, rows = rows[0]["series"], isoflop_fits(rows), chosen(everything)
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = new_figure(caption)
        for index, budget in enumerate(sorted({row["budget"] for row in rows})):
            own = sorted((r for r in rows if r["budget"] == budget), key=lambda r: r["parameters_non_embedding"])
            colour = COLOURS[index % len(COLOURS)]
            x, y = [r["parameters_non_embedding"] for r in own], [r["heldout_bits_per_byte"] for r in own]
            fit = fits.get(budget)
            pale = [r for r in everything if r["budget"] == budget and r not in own]
            axes.plot(
                [r["parameters_non_embedding"] for r in pale], [r["heldout_bits_per_byte"] for r in pale], linestyle="",
                marker=MARKERS[index % len(MARKERS)], color=colour, markersize=4, alpha=0.3, markeredgewidth=0,
            )  # fmt: skip
            axes.plot(
                x, y, linestyle="", marker=MARKERS[index % len(MARKERS)], color=colour, markersize=6,
                label=f"{budget_text(budget, equal_of(rows))}: {verdict(fit)}",
            )  # fmt: skip
            if fit is not None:
                curve = np.geomspace(min(x), max(x), 100)
                bracketed = fit.optimum is not None
                axes.plot(
                    curve, [fit(n) for n in curve], color=colour, linewidth=1.4, linestyle="-" if bracketed else ":"
                )
                if fit.optimum is not None and fit.loss is not None:
                    axes.plot(
                        [fit.optimum], [fit.loss], marker="*", color=colour, markersize=13, markeredgecolor="white"
                    )
        sizes = sorted({row["parameters_non_embedding"] for row in everything})
        _log_axis(axes, sizes, count_text, "parameters without byte, token and hash embeddings")
        _legend(axes)
        kind = "IsoFLOP" if equal_of(rows) == "flops" else "Equal accelerator time"
        axes.set_title(f"{kind}: {series_name(series)}", loc="left", fontsize=11)
        return figure


def verdict(fit: IsoFLOP | None) -> str:
    """What the runs at a budget say about the best size, in a few words."""
    if fit is None:
        return "too few sizes to fit"
    if fit.optimum is not None:
        return f"optimum {count_text(fit.optimum)}"
    if fit.bound is not None and fit.bound_size is not None:
        return f"optimum {fit.bound} {count_text(fit.bound_size)}"
    return "no bowl"
