import dataclasses
import itertools

import pytest

from bltjax.flops import flops_per_byte
from bltjax.presets import preset
from bltjax.scaling.report.captions import NoData
from bltjax.scaling.report.costs import GROUPS, by_script, by_source, flops_by_part, training_shares


@pytest.mark.parametrize("name", ["blt-cpu-0", "byte-cpu-0", "token-cpu-0", "megabyte-cpu-0", "spacebyte-cpu-0"])
@pytest.mark.parametrize("accounting", ["paper", "full"])
def test_the_parts_of_every_family_have_their_place(name, accounting):
    unit = 4.0 if name.startswith(("blt", "token", "space")) else 1.0
    parts = flops_per_byte(preset(name), unit, 256, accounting).parts
    shares = training_shares(parts)
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) <= set(GROUPS)


def test_a_patcher_is_paid_once_and_the_rest_three_times():
    shares = training_shares({"encoder": 10.0, "patcher_inference": 20.0, "patcher_training": 10.0, "odd": 10.0})
    assert shares == {"patcher": pytest.approx(1 / 3), "encoder": pytest.approx(1 / 3), "odd": pytest.approx(1 / 3)}


def test_bars_fill_the_whole(data, laws, table_alone):
    figure = flops_by_part(data, laws)
    assert [view.axis for view in figure.views] == ["flops_paper", "flops_full"]
    for view in figure.views:
        pieces = {}
        for mark in view.marks:
            for y, low, high in zip(mark.y, mark.low, mark.high, strict=True):
                pieces.setdefault(y, []).append((low, high))
        assert len(pieces) == len(view.y.names) == 20
        for own in pieces.values():
            own.sort()
            assert own[0][0] == 0
            assert own[-1][1] == pytest.approx(1)
            assert all(a[1] == pytest.approx(b[0]) for a, b in itertools.pairwise(own))
    labels = [mark.label for mark in figure.views[1].marks if mark.label]
    assert labels == [name for name in GROUPS if name in labels]  # each once, in the data's way
    with pytest.raises(NoData, match="manifests"):
        flops_by_part(table_alone, laws)


def test_scores_by_source_are_those_of_the_best_run(data, laws, table_alone):
    figure = by_source(data, laws)
    (view,) = figure.views
    best = min(
        (row for row in data.of("byte") if row["budget"] == 3e13), key=lambda row: row["heldout_bits_per_byte"]
    )  # fmt: skip
    (mark,) = (mark for mark in view.marks if mark.series == "byte")
    assert set(mark.runs) == {best["run"]}
    assert mark.x == pytest.approx([1.442695, 2.019773])
    with pytest.raises(NoData, match=r"scripts/evaluate\.py"):
        by_source(table_alone, laws)


def test_scores_by_script_stand_apart_from_those_by_source(data, laws, table_alone):
    figure = by_script(data, laws)
    (view,) = figure.views
    assert view.y.names == ("Latin", "Cyrillic")
    assert len(view.marks) == len(data.series)
    for mark in view.marks:
        assert mark.x == pytest.approx((1.442695, 0.6 * 1.442695))
    with pytest.raises(NoData, match=r"scripts/evaluate\.py RUN"):
        by_script(table_alone, laws)
    latin = {run: {"Latin": 1.0} for run in data.scripts}
    with pytest.raises(NoData, match="one script: Latin"):
        by_script(dataclasses.replace(data, scripts=latin), laws)
