"""What a figure shows, before it is drawn: marks with their numbers, which files, page and CSV share."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from bltjax.scaling.plots import count_text, flops_text

Kind = Literal["runs", "line", "band", "optimum", "bound", "interval", "bar", "cell"]
Scale = Literal["flops", "count", "seconds", "number", "share"]
Direction = Literal["left", "right", "up", "down"]

_MARGIN = 0.05  # of an axis, on both sides of what is drawn


@dataclasses.dataclass(frozen=True)
class Mark:
    """Something that is drawn.

    Attributes:
      kind: "runs" are measured points; "line" and "band" come from a fit; "optimum" is a star; "bound" an arrow at the
        end of what was measured; "interval" a point with an interval in y; "bar" a piece of a lying bar from `low` to
        `high`; "cell" a square with its value.
      series: whose colour and shape it has, and with which it is switched off; "" for none.
      label: in the legend; "" for none.
      x, y: where.
      low, high: ends in y (of a bar in x); None: the interval is open there.
      value: of a cell.
      runs: the run of each point.
      texts: what is said of each point besides.
      line: of a line.
      shade: strength of the colour, from 0 to 1.
      shape: a marker in the place of the series' own.
      colour: a place in the palette, in the place of the series' own.
      direction: of a bound.
    """

    kind: Kind
    series: str
    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    value: tuple[float, ...] = ()
    runs: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    line: Literal["solid", "dashed", "dotted"] = "solid"
    shade: float = 1.0
    shape: str = ""
    colour: int | None = None
    direction: Direction | None = None

    def __post_init__(self) -> None:
        for name in ("y", "low", "high", "value", "runs", "texts"):
            column = getattr(self, name)
            if (name == "y" or column) and len(column) != len(self.x):
                raise ValueError(f"{name}: {len(column)} entries beside {len(self.x)} of x.")

    def rows(self) -> Iterator[dict[str, Any]]:
        """One tidy row for each point."""
        for i, (x, y) in enumerate(zip(self.x, self.y, strict=True)):

            def at(column: Sequence[Any], index: int = i) -> Any:
                return column[index] if column else None

            yield {
                "kind": self.kind,
                "series": self.series,
                "label": self.label,
                "direction": self.direction,
                "x": x,
                "y": y,
                "low": at(self.low),
                "high": at(self.high),
                "value": at(self.value),
                "run": at(self.runs),
                "text": at(self.texts),
            }


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a figure; with names it has a place for each of them, from 0 on."""

    label: str
    scale: Scale
    log: bool = False
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class View:
    """A figure over one x axis.

    Attributes:
      axis: a name of `data.AXES`; "" where the figure has one x axis only.
      marks: those drawn first lie below.
      notes: what this view cannot show, and why.
      level: a line across at this y.
    """

    axis: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    notes: tuple[str, ...] = ()
    level: float | None = None

    def span(self, which: Literal["x", "y"]) -> tuple[float, float]:
        """The ends of an axis: all that is drawn, and a margin."""
        axis: Axis = getattr(self, which)
        if axis.names:
            return -0.5, len(axis.names) - 0.5
        values = [value for mark in self.marks for value in getattr(mark, which)]
        ends = "x" if any(mark.kind == "bar" for mark in self.marks) else "y"
        if which == ends:
            values += [v for mark in self.marks for v in (*mark.low, *mark.high) if v is not None]
        if which == "y" and self.level is not None:
            values.append(self.level)
        low, high = min(values), max(values)
        if any(mark.kind == "bar" for mark in self.marks):
            return 0.0, high
        if axis.log:
            margin = _MARGIN * (math.log(high / low) or 1.0)
            return low * math.exp(-margin), high * math.exp(margin)
        margin = _MARGIN * ((high - low) or 1.0)
        return low - margin, high + margin

    def ticks(self, which: Literal["x", "y"]) -> list[tuple[float, str]]:
        """Places and words of an axis' ticks."""
        axis: Axis = getattr(self, which)
        if axis.names:
            return [(float(place), name) for place, name in enumerate(axis.names)]
        return [(value, number_text(value, axis.scale)) for value in tick_places(*self.span(which), log=axis.log)]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of a report, over one x axis or several.

    Attributes:
      name: of its files.
      title: in words.
      caption: what its numbers are, all that a reader needs to know to quote them.
      views: the first is shown first.
    """

    name: str
    title: str
    caption: str
    views: tuple[View, ...]

    def rows(self) -> list[dict[str, Any]]:
        """All that is drawn, as a tidy table."""
        return [
            {"figure": self.name, "x_label": view.x.label, "y_label": view.y.label, **row}
            for view in self.views
            for mark in view.marks
            for row in mark.rows()
        ]


def number_text(value: float, scale: Scale) -> str:
    """A number of an axis in words."""
    if scale == "flops":
        return flops_text(value)
    if scale == "count":
        return count_text(value)
    if scale == "share":
        return f"{value:.0%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def tick_places(low: float, high: float, *, log: bool, most: int = 8) -> list[float]:
    """Round numbers between the ends: at most so many, and two at least where there is room for them."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        if last - first <= 1 or high / low < 3:
            linear = tick_places(low, high, log=False, most=6)
            if len(linear) >= 3 and high / low < 3:
                return linear
        for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            found = [value for value in found if low <= value <= high]
            if len(found) <= most:
                return found
        every = -(-(last - first + 1) // most)
        return [10.0**power for power in range(first, last + 1, every) if low <= 10.0**power <= high]
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(each * unit for each in (1, 2, 2.5, 5, 10) if each * unit >= rough * 0.999)
    start = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(start, math.floor(high / step + 1e-9) + 1)]


@dataclasses.dataclass(frozen=True)
class Report:
    """The figures of a study, and those that it has no data for, with the reason."""

    figures: tuple[Figure, ...]
    left_out: Mapping[str, str]  # title: reason
