import matplotlib.pyplot as plt
import numpy as np
import pytest

from bltjax.scaling.report.draw import canvas, plain, write_figure
from bltjax.scaling.report.marks import Axis, Figure, Mark, View


@pytest.fixture(scope="module")
def figures(report):
    return {figure.name: figure for figure in report.figures}


def test_what_is_drawn_is_what_the_table_says(figures, data):
    figure = figures["bits_per_byte"]
    axes = canvas(figure, figure.views[0], data.series).axes[0]
    drawn = {
        (round(float(x), 6), round(float(y), 9))
        for line in axes.lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    rows = [row for row in figure.rows() if row["x_label"] == figure.views[0].x.label and row["kind"] != "band"]
    assert {(round(row["x"], 6), round(row["y"], 9)) for row in rows} == drawn
    bands = [row for row in figure.rows() if row["x_label"] == figure.views[0].x.label and row["kind"] == "band"]
    corners = np.concatenate([path.vertices for area in axes.collections for path in area.get_paths()])
    for row in bands:
        here = np.isclose(corners[:, 0], row["x"])
        assert np.isclose(corners[here, 1], row["low"]).any()
        assert np.isclose(corners[here, 1], row["high"]).any()


@pytest.mark.parametrize(
    "name",
    ["isoflop_byte", "optimum_size", "gain", "patch_map_blt", "flops_by_part", "by_source", "by_script", "holdout"],
)
def test_nothing_is_drawn_outside_of_the_canvas(figures, data, name):
    figure = figures[name]
    out = canvas(figure, figure.views[0], data.series)
    out.draw_without_rendering()
    width, height = out.bbox.size
    words = [*out.texts, *out.axes[0].texts, out.axes[0].xaxis.label, out.axes[0].yaxis.label]
    words += [*out.axes[0].get_xticklabels(), *out.axes[0].get_yticklabels()]
    words += [text for legend in out.legends for text in legend.get_texts()]
    for text in words:
        box = text.get_window_extent()
        if text.get_text():
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text.get_text()
    legend = [each.get_window_extent() for each in out.legends]
    assert all(not box.overlaps(out.axes[0].get_window_extent()) for box in legend)
    assert plt.get_fignums() == []  # nothing that a notebook would show besides


def test_one_family_has_one_colour_in_every_figure(figures, data):
    def colours(name):
        figure = figures[name]
        out = canvas(figure, figure.views[0], data.series)
        (legend,) = out.legends
        return {
            text.get_text().split(":")[0]: (handle.get_color(), handle.get_marker())
            for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
        }

    first = colours("bits_per_byte")
    assert len(set(first.values())) == 4
    assert len({marker for _, marker in first.values()}) == 4
    assert colours("holdout") == first
    assert colours("by_source") == first


def test_the_same_marks_give_the_same_files(tmp_path):
    # A name may look like mathematics, or have letters that no font has.
    marks = (Mark("runs", "byte", "_$x_{1$ \\frac 日本 \U0001f600", (1.0, 10.0), (1.0, 2.0), runs=("a", "b")),)
    view = View("", Axis("x $", "count", log=True), Axis("y", "number"), marks)
    figure = Figure("odd", "A $ title", "caption " * 60, (view,))
    files = [{p.name: p.read_bytes() for p in write_figure(figure, tmp_path / n, ["byte"])} for n in ("a", "b")]
    assert sorted(files[0]) == ["odd.pdf", "odd.png", "odd.svg"]
    assert files[0] == files[1]
    assert b"$x_{1$" in files[0]["odd.svg"]


def test_plain_text():
    assert plain("a\nb $x$") == r"a b \$x\$"
    assert plain("_hidden").strip() == "_hidden"
