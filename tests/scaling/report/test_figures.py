import re

from bltjax.scaling.report.figures import MAKERS, make_figures


def test_a_figure_is_drawn_or_left_out_with_a_reason(report, laws, table_alone):
    whole = report
    assert whole.left_out == {}
    assert len(whole.figures) >= len(MAKERS)
    names = [figure.name for figure in whole.figures]
    assert len(set(names)) == len(names)
    # The page may show an axis at a time, so a view is of one of each.
    assert all(len({view.axis for view in figure.views}) == len(figure.views) for figure in whole.figures)
    alone = make_figures(table_alone, laws)
    assert set(alone.left_out) == {
        "Training losses",
        "Where the FLOPs go",
        "Bits per byte by source of the text",
        "Bits per byte by script of the text",
    }
    assert all(alone.left_out.values())


def test_no_headline_is_a_or_b(report):
    for figure in report.figures:
        words = [mark.label for view in figure.views for mark in view.marks]
        assert not [word for word in words if re.search(r"\b[AB] = ", word)]
