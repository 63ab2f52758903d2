import dataclasses

import numpy as np
import pytest

from bltjax.scaling.report.data import AXES
from bltjax.scaling.report.figures import make_figures
from bltjax.scaling.report.laws import band, fit_series
from bltjax.scaling.report.spending import x_axis


def test_frontiers_over_every_axis_but_bytes(laws):
    law = laws["blt-6"]
    for axis in ("flops_paper", "flops_full", "device_seconds"):
        curve = law.frontier(axis)
        assert (np.diff(curve.loss) < 0).all(), axis
    # What is charged besides moves the same losses to the right.
    assert law.frontier("flops_full").x[-1] > law.frontier("flops_paper").x[-1]
    with pytest.raises(ValueError, match="no frontier"):
        law.frontier("bytes_seen")
    assert set(AXES) == {"flops_paper", "flops_full", "device_seconds", "bytes_seen"}
    assert "full-v1" in x_axis("flops_full").label


def test_the_table_alone_gives_the_same_law(laws, table_alone):
    own = fit_series(table_alone, "byte", draws=0)
    assert own.fit.law.alpha == pytest.approx(laws["byte"].fit.law.alpha)
    assert own.no_interval == "none were asked for"


def test_a_band_is_of_the_draws(laws):
    curve = laws["byte"].frontier("flops_paper")
    low, high = band(curve)
    assert (low <= curve.loss + 1e-9).all()
    assert (high >= curve.loss - 1e-9).all()
    assert (high - low).max() < 0.1
    assert band(dataclasses.replace(curve, draws=curve.draws[:0])) is None


def test_budgets_of_seconds_give_the_same_law_over_seconds_by_the_bench(data, laws):
    """A second buys 1e10 FLOPs, whatever the runs' own clocks said: every number is that of FLOPs, over seconds."""
    changed = {"equal": "seconds", "device_seconds": 1.0}
    rows = tuple({**row, **changed, "budget": row["budget"] / 1e10, "bench_seconds": row["training_flops"] / 1e10}
                 for row in data.rows if row["series"] in ("byte", "token"))  # fmt: skip
    timed = dataclasses.replace(data, rows=rows, manifests={})
    assert timed.own_axis == "bench_seconds" and list(timed.axes) == ["bench_seconds", *AXES]
    own, flops = fit_series(timed, "byte", draws=0), laws["byte"]
    for seconds, other in zip(own.fit.optima(), flops.fit.optima(), strict=True):
        assert seconds.budget == other.budget / 1e10 and seconds.size.value == pytest.approx(other.size.value)
    curve = own.frontier("bench_seconds")
    assert curve.x_label == "device seconds"
    np.testing.assert_allclose(curve.x, flops.frontier("flops_paper").x / 1e10)
    np.testing.assert_allclose(curve.loss, flops.frontier("flops_paper").loss)
    assert own.frontier("flops_paper").x[-1] == pytest.approx(flops.frontier("flops_paper").x[-1])
    assert own.holdout.rms == pytest.approx(flops.holdout.rms)
    with pytest.raises(ValueError, match="no seconds of a bench"):
        flops.frontier("bench_seconds")
    figures = make_figures(timed, {"byte": own, "token": fit_series(timed, "token", draws=0)})
    first = {figure.name: figure.views[0] for figure in figures.figures}
    assert first["bits_per_byte"].axis == first["gain"].axis == "bench_seconds"
    assert first["optimum_size"].x.label == "budget, device seconds by the bench"
    words = " ".join(figure.caption for figure in figures.figures)
    assert "Budgets are device seconds by a bench" in words and "Budgets are FLOPs" not in words
    assert "100 device-seconds: " in " ".join(mark.label for mark in first["isoflop_byte"].marks)


def test_what_cannot_be_fitted_says_why(data):
    rows = tuple(row for row in data.rows if row["preset"] in ("token-120000", "token-240000"))
    law = fit_series(dataclasses.replace(data, rows=rows), "token", draws=10)
    assert law.fit is None
    assert "three sizes" in law.why
    with pytest.raises(ValueError, match="three sizes"):
        law.frontier("flops_paper")
    assert not law.bracketed(1e12)


def test_a_budget_is_bracketed_by_its_runs(laws):
    assert laws["byte"].parabolas[1e12].bound == "at or below"
    assert [laws["byte"].bracketed(budget) for budget in (1e12, 3e13)] == [False, True]
