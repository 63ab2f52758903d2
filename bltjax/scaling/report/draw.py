"""Figures by Matplotlib: PNG, SVG and PDF. The same marks give the same bytes."""

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from bltjax.scaling import plots
from bltjax.scaling.plots import series_style
from bltjax.scaling.report.marks import Figure, Mark, View

KINDS = ("png", "svg", "pdf")
PARTS = ("#56B4E9", "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#999999")
_HATCHES = ("", "//", "", "\\\\", "", "..", "xx")  # parts differ without colour too
_LINES = {"solid": "-", "dashed": (0, (5, 3)), "dotted": (0, (1.2, 2))}
_ARROWS = {"left": "<", "right": ">", "up": "^", "down": "v"}
_WIDTH = 7.2  # inches
_LONGEST = 34  # letters of a name beside an axis
_INK, _SOFT = "#1c2230", "#444444"


def plain(text: str) -> str:
    """Text that came from data: no mathematics, on one line, and with a label that starts with a line shown."""
    text = " ".join(text.split()).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def shaded(colour: str, shade: float) -> tuple[float, float, float]:
    """A colour mixed with white: no marks shine through one another."""
    red, green, blue = (1 - shade * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def canvas(figure: Figure, view: View, all_series: Sequence[str]) -> Canvas:
    """A figure over one of its axes, its legend above it and its caption below."""
    with matplotlib.rc_context({**plots.STYLE, "hatch.linewidth": 0.4}):
        legend = [mark for mark in view.marks if mark.label]
        columns = 1 if any(len(mark.label) > 34 for mark in legend) else 3
        lines = [line for part in (figure.caption, *view.notes) for line in textwrap.wrap(plain(part), 128)]
        above = (0.62 if view.y.names and view.y.label else 0.42) + 0.2 * -(-len(legend) // columns)
        below = 0.6 + 0.142 * len(lines)
        names = max([min(len(name), _LONGEST) for name in view.y.names] or [0])
        widest = max(len(text) for _, text in view.ticks("y"))
        left = max(0.75, 0.45 + 0.08 * widest) if not names else min(2.9, 0.25 + 0.075 * names)
        inner = 3.9 if not view.y.names else 0.6 + 0.36 * len(view.y.names)
        height = above + inner + below
        out = Canvas(figsize=(_WIDTH, height))
        FigureCanvasAgg(out)
        axes = out.add_axes((left / _WIDTH, below / height, (_WIDTH - left - 0.28) / _WIDTH, inner / height))
        out.text(0.02, 0.09 / height, "\n".join(lines), fontsize=7, color=_SOFT, va="bottom", linespacing=1.35)
        out.text(0.02, 1 - 0.12 / height, plain(figure.title), fontsize=11.5, va="top", color=_INK)
        for which, axis in (("x", view.x), ("y", view.y)):
            ticks = view.ticks("x" if which == "x" else "y")
            getattr(axes, f"set_{which}scale")("log" if axis.log else "linear")
            getattr(axes, f"set_{which}lim")(*view.span("x" if which == "x" else "y"))
            own = getattr(axes, f"{which}axis")
            own.set_major_locator(FixedLocator([value for value, _ in ticks]))
            own.set_minor_locator(NullLocator())
            own.set_major_formatter(FixedFormatter([plain(_cut(text)) for _, text in ticks]))
            if which == "y" and axis.names:  # rows are few: there is no room for words along them
                axes.set_title(plain(axis.label), fontsize=9, loc="left", pad=4)
            else:
                getattr(axes, f"set_{which}label")(plain(axis.label), fontsize=9)
        if view.level is not None:
            axes.axhline(view.level, color="#666666", linewidth=1)
        _cells(axes, view)
        for order, mark in enumerate(view.marks):
            _draw(axes, view, mark, all_series, order)
        if legend:
            handles = [_handle(mark, all_series) for mark in legend]
            out.legend(
                handles, [plain(mark.label) for mark in legend], loc="upper left", ncols=columns, frameon=False,
                bbox_to_anchor=(0.015, 1 - 0.33 / height), fontsize=8.5, handlelength=1.8, columnspacing=1.6,
                borderpad=0.1, labelspacing=0.35,
            )  # fmt: skip
        return out


def _cut(text: str) -> str:
    """A name that fits beside an axis; the CSV has all of it."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _style(mark: Mark, all_series: Sequence[str]) -> tuple[Any, str]:
    if mark.colour is not None:
        return PARTS[mark.colour % len(PARTS)], "s"
    colour, marker = series_style(mark.series, all_series) if mark.series else (_INK, "o")
    return shaded(colour, mark.shade), mark.shape or marker


def _handle(mark: Mark, all_series: Sequence[str]) -> Any:
    colour, marker = _style(mark, all_series)
    if mark.kind == "bar":
        hatch = _HATCHES[(mark.colour or 0) % len(_HATCHES)]
        return Patch(facecolor=colour, edgecolor="white", hatch=hatch)
    if mark.kind == "line":
        return Line2D([], [], color=series_style(mark.series, all_series)[0], linestyle=_LINES[mark.line])
    return Line2D([], [], color=colour, marker=marker, linestyle="", markersize=6)


def _draw(axes: Axes, view: View, mark: Mark, all_series: Sequence[str], order: int) -> None:
    colour, marker = _style(mark, all_series)
    x, y = np.array(mark.x), np.array(mark.y)
    on_top: dict[str, Any] = {"zorder": 3 + order / 1000}
    if mark.kind == "runs":
        axes.plot(x, y, linestyle="", marker=marker, color=colour, markersize=6, markeredgecolor="white",
                  markeredgewidth=0.6, **on_top)  # fmt: skip
    elif mark.kind == "line":
        width = 0.9 if mark.runs else 1.8
        axes.plot(x, y, color=colour, linewidth=width, linestyle=_LINES[mark.line], zorder=2.5)
    elif mark.kind == "band":
        low, high = np.array(mark.low, float), np.array(mark.high, float)
        axes.fill_between(x, low, high, color=series_style(mark.series, all_series)[0], alpha=mark.shade, linewidth=0)
    elif mark.kind == "optimum":
        axes.plot(x, y, linestyle="", marker="*", color=colour, markersize=14, markeredgecolor="white", **on_top)
    elif mark.kind == "bound":
        shape = _ARROWS[mark.direction or "up"]
        axes.plot(x, y, linestyle="", marker=shape, markerfacecolor="white", markeredgecolor=colour,
                  markersize=9, markeredgewidth=1.8, **on_top)  # fmt: skip
    elif mark.kind == "interval":
        floor, ceiling = view.span("y")
        for at, low, high in zip(mark.x, mark.low, mark.high, strict=True):
            ends = [floor if low is None else low, ceiling if high is None else high]
            axes.plot([at, at], ends, color=colour, linewidth=1.3, **on_top)
            closed = [end for end, given in zip(ends, (low, high), strict=True) if given is not None]
            axes.plot([at] * len(closed), closed, linestyle="", marker="_", color=colour, markersize=8, **on_top)
        axes.plot(x, y, linestyle="", marker=marker, color=colour, markersize=7, markeredgecolor="white", **on_top)
    elif mark.kind == "bar":
        hatch = _HATCHES[(mark.colour or 0) % len(_HATCHES)]
        low, high = np.array(mark.low, float), np.array(mark.high, float)
        axes.barh(y, high - low, left=low, height=0.7, color=colour, edgecolor="white", hatch=hatch, linewidth=0.5)
        axes.grid(False, axis="y")


def _cells(axes: Axes, view: View) -> None:
    """Squares with their values: darker is worse, the least has a frame."""
    cells = [mark for mark in view.marks if mark.kind == "cell"]
    if not cells:
        return
    values = [value for mark in cells for value in mark.value]
    low, spread = min(values), (max(values) - min(values)) or 1.0
    shades = matplotlib.colormaps["cividis_r"]
    for mark in cells:
        for x, y, value in zip(mark.x, mark.y, mark.value, strict=True):
            share = (value - low) / spread
            best = value == low
            axes.add_patch(
                Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=shades(0.1 + 0.8 * share),
                          edgecolor=_INK if best else "none", linewidth=2.2)
            )  # fmt: skip
            ink = "white" if share > 0.5 else _INK
            axes.text(x, y, f"{value:.4f}", ha="center", va="center", fontsize=9, color=ink,
                      fontweight="bold" if best else "normal")  # fmt: skip
    axes.grid(False)


def write_figure(figure: Figure, folder: Path, all_series: Sequence[str]) -> list[Path]:
    """Writes a figure over each of its axes in every kind of file."""
    paths = []
    for view in figure.views:
        name = figure.name if len(figure.views) == 1 else f"{figure.name}.{view.axis}"
        with warnings.catch_warnings():
            # A name in the data may hold letters that no font here has; they are drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            paths += plots.save(canvas(figure, view, all_series), folder, name, KINDS)
    return paths
