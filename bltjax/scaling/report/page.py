"""One HTML page of a whole study: it opens from disk, loads nothing, and keeps what came from data as text.

The page runs the one script and the one style that are written into it (its Content-Security-Policy names their
hashes) and can fetch nothing. Numbers and names lie in a block of JSON in which no character can end a script.
"""

import base64
import dataclasses
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from bltjax.scaling.plots import count_text, flops_text, series_name, series_style
from bltjax.scaling.report.data import Row, StudyData
from bltjax.scaling.report.draw import PARTS
from bltjax.scaling.report.marks import Figure, Mark, Report, View
from bltjax.scaling.report.tables import Table

_DIGITS = 6  # of numbers that are drawn; the CSV files have all
_COLUMNS = (
    ("bits", "bits per byte"),
    ("size", "N"),
    ("budget", "budget, FLOPs"),
    ("paper", "FLOPs, paper"),
    ("full", "FLOPs, full"),
    ("seconds", "device seconds"),
    ("bytes", "bytes seen"),
    ("epochs", "epochs"),
    ("unit", "bytes per unit"),
    ("seed", "seed"),
)


def page(data: StudyData, report: Report, tables: Sequence[Table]) -> str:
    """The HTML of a study; the same study gives the same bytes."""
    style, script = (
        files("bltjax.scaling.report").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    best = [table for table in tables if table.name == "best"]
    rest = [table for table in tables if table.name != "best"]
    title = html.escape(data.name)
    return "\n".join([
        "<!doctype html>",
        '<html lang="en" data-theme="system"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<link rel="icon" href="data:,"><title>{title}</title>',
        f"<style>{style}</style></head><body>",
        f"<header><h1>{title}</h1>",
        f"<p>{len(data.rows)} runs of {len(data.series)} series: {_names(data)}. {html.escape(data.text)}.</p>",
        *(f'<p class="soft">{html.escape(note)}</p>' for note in data.notes),
        '<p class="soft">Point at a mark, or go to it with Tab and the arrow keys, for the numbers of its run; a click '
        "or Enter shows the run's manifest.</p></header>",
        "<noscript><p>The figures need JavaScript; the tables below do not, and the same figures lie beside this page "
        "as files.</p></noscript>",
        _controls(data),
        "<main>",
        *map(_table, best),
        *map(_figure, report.figures),
        _left_out(report),
        *map(_table, rest),
        "</main>",
        '<div id="tip" role="tooltip" hidden></div>',
        '<dialog id="manifest" aria-labelledby="manifest-title"><div class="top"><h2 id="manifest-title"></h2>'
        '<button type="button" data-close>Close</button></div><div class="body"></div></dialog>',
        f'<script type="application/json" id="study">{embedded(_study(data, report))}</script>',
        f"<script>{script}</script></body></html>",
        "",
    ])  # fmt: skip


def embedded(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _names(data: StudyData) -> str:
    return html.escape(", ".join(series_name(series) for series in data.series))


def _controls(data: StudyData) -> str:
    axes = "".join(
        f'<button type="button" data-x="{axis}" aria-pressed="{str(axis == data.own_axis).lower()}">{words}</button>'
        for axis, (words, _, _) in data.axes.items()
    )
    families = "".join(
        f'<button type="button" class="family" data-series="{number}" aria-pressed="true">'
        f"{html.escape(series_name(series))}</button>"
        for number, series in enumerate(data.series)
    )
    themes = "".join(
        f'<button type="button" data-set="{name}" aria-pressed="{str(name == "system").lower()}">{name}</button>'
        for name in ("system", "light", "dark")
    )
    groups = (("horizontal axis", axes), ("series", families), ("colours", themes))
    return (
        '<div class="bar">'
        + "".join(f'<div class="group" role="group" aria-label="{w}"><span>{w}</span>{b}</div>' for w, b in groups)
        + "</div>"
    )


def _figure(figure: Figure) -> str:
    name = html.escape(figure.name)
    stems = [figure.name if len(figure.views) == 1 else f"{figure.name}.{view.axis}" for view in figure.views]
    listed = ", ".join(f"<code>{html.escape(stem)}</code>" for stem in stems)
    return (
        f'<figure id="figure-{name}"><h2>{html.escape(figure.title)}</h2><ul class="legend"></ul>'
        f'<div class="plot"></div><figcaption><p class="caption">{html.escape(figure.caption)}</p>'
        f'<ul class="notes"></ul><details class="files"><summary class="files">Files</summary>As PNG, SVG and PDF: '
        f"{listed}; the numbers: <code>{name}.csv</code>; in the folder <code>figures</code> of the report.</details>"
        "</figcaption></figure>"
    )


def _left_out(report: Report) -> str:
    if not report.left_out:
        return ""
    items = "".join(
        f"<li><strong>{html.escape(title)}</strong>: {html.escape(reason)}.</li>"
        for title, reason in report.left_out.items()
    )
    return f'<section><h2>Left out</h2><ul class="left-out">{items}</ul></section>'


def _table(table: Table) -> str:
    left = ' class="l"'

    def cells(kind: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{kind}{left if i < table.left else ''}>{html.escape(value)}</{kind}>" for i, value in enumerate(values)
        )

    listed = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    notes = f'<ul class="notes">{listed}</ul>' if listed else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    return (
        f'<section><h2>{html.escape(table.title)}</h2><div class="table" tabindex="0" role="region" '
        f'aria-label="{html.escape(table.title)}"><table><thead><tr>{cells("th", table.head)}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="caption">{html.escape(table.note)}</p>{notes}</section>'
    )


def _study(data: StudyData, report: Report) -> dict[str, Any]:
    series = []
    for name in data.series:
        colour, shape = series_style(name, data.series)
        series.append({"id": name, "name": series_name(name), "colour": colour, "shape": shape})
    return {
        "own": data.own_axis,
        "axes": {axis: words for axis, (words, _, _) in data.axes.items()},
        "series": series,
        "parts": PARTS,
        "columns": _COLUMNS,
        "runs": {row["run"]: _run(row) for row in data.rows},
        "manifests": dict(data.manifests),
        "figures": [
            {"name": figure.name, "title": figure.title, "views": [_view(view) for view in figure.views]}
            for figure in report.figures
        ],
    }


def _run(row: Row) -> dict[str, str]:
    out = {
        "preset": row["preset"],
        "bits": f"{row['heldout_bits_per_byte']:.4f}",
        "size": f"{row['parameters_non_embedding']:,.0f}",
        "budget": flops_text(row["budget"]),
        "paper": flops_text(row["training_flops_paper"]),
        "full": flops_text(row["training_flops_full"]),
        "seconds": f"{row['device_seconds']:.4g}",
        "bytes": count_text(row["bytes_seen"]),
        "unit": f"{row['bytes_per_unit']:.3g}",
        "seed": f"{row['seed']:.0f}",
    }
    return out if row["epochs"] is None else {**out, "epochs": f"{row['epochs']:.3g}"}


def _view(view: View) -> dict[str, Any]:
    def axis(which: Any) -> dict[str, Any]:
        own = getattr(view, which)
        ends = [_short(value) for value in view.span(which)]
        return {"label": own.label, "log": own.log, "range": ends, "ticks": view.ticks(which), "names": bool(own.names)}

    return {
        "axis": view.axis,
        "x": axis("x"),
        "y": axis("y"),
        "level": view.level,
        "notes": view.notes,
        "marks": [_mark(mark) for mark in view.marks],
    }


def _mark(mark: Mark) -> dict[str, Any]:
    """The fields of a mark that are not as usual."""
    usual = Mark(mark.kind, "", "", (), ())
    out: dict[str, Any] = {"kind": mark.kind}
    for field in dataclasses.fields(Mark):
        value = getattr(mark, field.name)
        if value != getattr(usual, field.name):
            out[field.name] = [_short(each) for each in value] if isinstance(value, tuple) else value
    if mark.kind == "line" and mark.runs:
        out["runs"] = mark.runs[:1]  # a line is of one run
    return out


def _short(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
