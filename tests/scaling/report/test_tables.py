import dataclasses
import html
import re

import pytest

from bltjax.scaling.fit import METHODS, fit_law, hold_out_largest
from bltjax.scaling.report.tables import Table, latex, make_tables, markdown


def test_all_runs_are_there(tables, data):
    assert set(tables) == {"fits", "estimators", "optima", "crossovers", "best", "runs"}
    assert len(tables["runs"].rows) == len(data.rows)
    for table in tables.values():
        assert all(len(row) == len(table.head) for row in table.rows)


def test_the_best_run_of_a_budget(tables, data):
    row = next(row for row in tables["best"].rows if row[0] == "flat bytes")
    least = min(r["heldout_bits_per_byte"] for r in data.of("byte") if r["budget"] == 3e13)
    assert row[-1].startswith(f"{least:.4f} (")


def test_a_and_b_are_no_headlines(tables):
    assert "A" not in tables["fits"].head
    assert "B" not in tables["fits"].head
    row = next(row for row in tables["fits"].rows if row[0] == "flat bytes")
    assert re.fullmatch(r"0\.\d+ \[0\.\d+, 0\.\d+\]", row[2])


def test_every_estimator_stands_beside_the_others(tables, data, laws):
    rows = {row[:2]: row for row in tables["estimators"].rows}
    names = {row[0] for row in rows.values()}
    assert len(names) == len(data.series)
    assert set(rows) == {(name, method) for name in names for method in METHODS}
    points = laws["byte"].points[data.own_axis]
    for method in METHODS:
        fit = fit_law(points, method, draws=12)
        row = rows["flat bytes", method]
        slope = fit.exponents()[0].value
        assert row[2].split()[0] == ("-" if slope is None else f"{slope:.3g}")
        assert row[5].split()[0] == f"{fit.optima()[-1].loss.value:.3f}"
    assert rows["flat bytes", "parabola"][-1] == "-"
    assert rows["flat bytes", "huber"][-1] == f"{hold_out_largest(points, 'huber').rms:.4f}"
    notes = " ".join(tables["estimators"].notes)
    assert "flat bytes, huber" in notes or not fit_law(points, "huber", draws=12).warnings


def test_bounds_are_said_as_bounds(tables):
    rows = [row for row in tables["optima"].rows if row[0] == "flat bytes"]
    assert rows[0][2:] == ("at or below 40k", "at or above 4.17M", "-")
    assert rows[-1][2].count("[") == 1


def test_an_estimate_at_the_end_of_its_search_has_no_interval(data, laws):
    fit = laws["byte"].fit
    theta = fit.theta.copy()
    theta[0], theta[2] = -28.0, 2.0
    ended = {**laws, "byte": dataclasses.replace(laws["byte"], fit=dataclasses.replace(fit, theta=theta))}
    row = next(row for row in make_tables(data, ended)[0].rows if row[0] == "flat bytes")
    assert row[1:3] == ("0, its end", "2, its end")


@pytest.mark.parametrize("text", ["<b>&amp;", "a|b", "$x_1$ \\ {y} ~^#%", "[link](x) `code` *b*", "two\nlines"])
def test_nothing_in_a_table_is_obeyed(text):
    table = Table("t", text, ("series", text), ((text, "1"),), text, notes=(text,))
    for line in table.markdown().splitlines():
        bare = line.replace("**" + markdown(text) + "**", "").replace(markdown(text), "")
        assert not re.search(r"[<>\[\]`*]", bare)
        assert line.count("|") - line.count("\\|") in (0, 3)
    assert html.unescape(re.sub(r"\\(.)", r"\1", markdown(text))) == " ".join(text.split())
    body = latex(text)
    for command in ("textbackslash{}", "textasciitilde{}", "textasciicircum{}", "textless{}", "textgreater{}"):
        body = body.replace(f"\\{command}", "")
    body = body.replace("\\textbar{}", "")
    assert not re.search(r"(?<!\\)[&%$#_{}~^<>|]", body)
    assert table.latex().count("\\\\\n") == 2
