import pytest

from bltjax.scaling.report.marks import Axis, Figure, Mark, View, number_text, tick_places


def test_columns_of_a_mark_are_of_one_length():
    with pytest.raises(ValueError, match="y: 1 entries beside 2"):
        Mark("runs", "a", "", (1.0, 2.0), (1.0,))
    with pytest.raises(ValueError, match="runs: 1 entries"):
        Mark("runs", "a", "", (1.0, 2.0), (1.0, 2.0), runs=("r",))


def test_every_point_is_one_row():
    mark = Mark("interval", "a", "A", (1.0, 2.0), (3.0, 4.0), (None, 3.5), (3.2, None), texts=("p", "q"))
    view = View("flops_paper", Axis("x", "flops", log=True), Axis("y", "number"), (mark,))
    rows = Figure("f", "F", "", (view,)).rows()
    assert [(row["x"], row["y"], row["low"], row["high"], row["text"]) for row in rows] == [
        (1.0, 3.0, None, 3.2, "p"),
        (2.0, 4.0, 3.5, None, "q"),
    ]
    names = ("figure", "x_label", "series", "kind")
    assert {tuple(row[name] for name in names) for row in rows} == {("f", "x", "a", "interval")}


def test_an_axis_holds_all_that_is_drawn():
    marks = (
        Mark("runs", "a", "", (10.0, 1000.0), (1.0, 2.0)),
        Mark("band", "a", "", (20.0, 30.0), (1.0, 1.0), (0.5, 0.6), (2.5, 1.6)),
    )
    view = View("", Axis("x", "count", log=True), Axis("y", "number"), marks, level=3.0)
    low, high = view.span("x")
    assert low < 10 < 1000 < high < 2000
    low, high = view.span("y")
    assert low < 0.5 < 3.0 < high
    for which in ("x", "y"):
        ends = view.span(which)
        assert all(ends[0] <= value <= ends[1] for value, _ in view.ticks(which))


@pytest.mark.parametrize(
    ("low", "high", "log", "wanted"),
    [
        (7.2e10, 6e11, True, [1e11, 2e11, 3e11, 5e11]),
        (0.9, 1.1e6, True, [1, 10, 100, 1e3, 1e4, 1e5, 1e6]),
        (2.1, 3.6, False, [2.2, 2.4, 2.6, 2.8, 3.0, 3.2, 3.4, 3.6]),
        (-0.06, 0.21, False, [-0.05, 0, 0.05, 0.1, 0.15, 0.2]),
        (1.0e5, 1.2e5, True, [1e5, 1.05e5, 1.1e5, 1.15e5, 1.2e5]),
    ],
)
def test_ticks_are_round(low, high, log, wanted):
    assert tick_places(low, high, log=log) == pytest.approx(wanted)


def test_numbers_of_an_axis():
    assert [number_text(2e11, "flops"), number_text(27_152, "count"), number_text(0.25, "share")] == [
        "2e11",
        "27.2k",
        "25%",
    ]
    assert [number_text(12_345.6, "seconds"), number_text(2.5, "number")] == ["12,346", "2.5"]
