import dataclasses

import numpy as np
import pytest

from bltjax.scaling.report.captions import NoData
from bltjax.scaling.report.data import AXES
from bltjax.scaling.report.spending import (
    baseline,
    bits_per_byte,
    curve_marks,
    fixed_inference,
    gain,
    inference_classes,
    loss_curves,
)


def test_every_run_is_drawn_over_every_axis(data, laws):
    figure = bits_per_byte(data, laws)
    assert [view.axis for view in figure.views] == list(AXES)
    rows = {row["run"]: row for row in data.rows}
    for view in figure.views:
        seen = []
        for mark in view.marks:
            if mark.kind == "runs":
                seen += mark.runs
                assert mark.x == tuple(rows[run][AXES[view.axis][2]] for run in mark.runs)
                assert mark.y == tuple(rows[run]["heldout_bits_per_byte"] for run in mark.runs)
        assert sorted(seen) == sorted(rows)
    lines = [mark for view in figure.views if view.axis == "bytes_seen" for mark in view.marks if mark.kind == "line"]
    assert lines == []


def test_the_study_s_own_axis_comes_first(data, laws):
    full = dataclasses.replace(data, rows=tuple({**row, "accounting": "full-v1"} for row in data.rows))
    assert bits_per_byte(full, laws).views[0].axis == "flops_full"


def test_a_frontier_is_dotted_where_it_is_a_bound(laws):
    curve = laws["byte"].frontier("flops_paper")
    assert curve.bounded[0]
    assert not curve.bounded[-1]
    lines = [mark for mark in curve_marks("byte", curve) if mark.kind == "line"]
    assert [mark.line for mark in lines] == ["dotted", "solid"]
    assert lines[0].x[-1] == lines[1].x[0]
    assert len(lines[0].x) == 1 + curve.bounded.sum()


def test_without_a_law_the_hull_of_the_runs_is_drawn(data, laws):
    no_law = {"byte": dataclasses.replace(laws["byte"], fit=None, why="too few")}
    figure = bits_per_byte(data, no_law)
    (line,) = (mark for mark in figure.views[0].marks if mark.kind == "line")
    assert line.line == "dashed"
    assert set(line.y) <= {row["heldout_bits_per_byte"] for row in data.of("byte")}
    assert "too few" in figure.views[0].notes[0].lower()


def test_a_gain_is_the_baseline_s_spending_over_one_s_own(data, laws):
    assert baseline(data) == "token"
    view = gain(data, laws).views[0]
    base = laws["token"].frontier("flops_paper")
    own = laws["blt-6"].frontier("flops_paper")
    (mark,) = (m for m in view.marks if m.kind == "interval" and m.series == "blt-6")
    for x, value, low, high in zip(mark.x, mark.y, mark.low, mark.high, strict=True):
        loss = np.interp(np.log(x), np.log(own.x), own.loss)
        assert np.interp(np.log(x * value), np.log(base.x), base.loss) == pytest.approx(loss, abs=1e-3)
        assert (low is None or low <= value) and (high is None or value <= high)
    # Beyond what was measured of the baseline there is a bound and no number.
    bounds = [m for m in view.marks if m.kind == "bound" and m.series == "blt-6"]
    assert [mark.direction for mark in bounds] == ["up"]
    assert bounds[0].x[-1] == pytest.approx(3e13)
    assert "more than 1" in bounds[0].texts[-1]
    with pytest.raises(NoData, match="one series alone"):
        gain(data, {"token": laws["token"]})


def test_models_of_equal_inference_are_found(data, laws):
    classes = inference_classes(data)
    costs = {(row["series"], row["preset"]): row["forward_flops_per_byte_paper"] for row in data.rows}
    assert classes
    for members in classes:
        assert len({series for series, _, _ in members}) == len(members) > 1
        own = [costs[series, preset] for series, preset, _ in members]
        assert max(own) <= 1.05 * min(own)
    figure = fixed_inference(data, laws)[0]
    assert [view.axis for view in figure.views] == ["flops_paper", "bytes_seen", "device_seconds"]
    assert any("crossover" in note for note in figure.views[0].notes)
    # A study of one size for each series has no law; its models are compared as they were measured.
    without = fixed_inference(data, {series: dataclasses.replace(law, fit=None) for series, law in laws.items()})[0]
    assert "Lines join means over seeds" in without.caption and "Lines join" not in figure.caption
    (line, *_) = (mark for mark in without.views[0].marks if mark.kind == "line")
    measured = {(row["training_flops"], row["heldout_bits_per_byte"]) for row in data.of(line.series)}
    assert len(line.x) == 4 and set(zip(line.x, line.y, strict=True)) <= measured
    assert any("crossover" in note and "no draws" in note for note in without.views[0].notes)
    one = dataclasses.replace(data, rows=tuple(data.of("byte")))
    with pytest.raises(NoData, match="no two series"):
        fixed_inference(one, laws)


def test_training_curves_end_where_their_runs_do(data, laws, table_alone):
    views = {view.axis: view for view in loss_curves(data, laws).views}
    rows = {row["run"]: row for row in data.rows}
    for axis in ("flops_paper", "flops_full", "bytes_seen"):
        for mark in views[axis].marks:
            assert mark.x[-1] == pytest.approx(rows[mark.runs[0]][AXES[axis][2]])
    assert {mark.x for mark in views["device_seconds"].marks} == {(0.5, 1.0, 1.5, 2.0)}
    assert sum(bool(mark.label) for mark in views["flops_paper"].marks) == 4
    with pytest.raises(NoData, match=r"metrics\.jsonl"):
        loss_curves(table_alone, laws)
