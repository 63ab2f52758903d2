import dataclasses

import pytest

from bltjax.scaling.report.captions import NoData
from bltjax.scaling.report.sizes import bowls, holdout, optima_of, optimum_figures, patch_maps


def test_an_edge_minimum_is_a_bound_and_never_an_optimum(data, laws):
    figures = {figure.name: figure for figure in bowls(data, laws)}
    marks = figures["isoflop_byte"].views[0].marks
    stars = [mark for mark in marks if mark.kind == "optimum"]
    bounds = [mark for mark in marks if mark.kind == "bound"]
    inner = [fit for fit in laws["byte"].parabolas.values() if fit.optimum is not None]
    assert 0 < len(stars) == len(inner) < 4
    assert [star.x[0] for star in stars] == [fit.optimum for fit in inner]
    assert [(round(mark.x[0]), mark.direction) for mark in bounds] == [(40_000, "left")] * (4 - len(inner))
    # The law has minima inside its sizes at budgets where the runs have theirs at the end: these are bounds too.
    found = optima_of(laws["byte"])
    assert {o.budget for o in found.optima} <= {b for b in laws["byte"].parabolas if laws["byte"].bracketed(b)}
    assert {b[0] for b in found.bounds} | {o.budget for o in found.optima} == set(laws["byte"].parabolas)


def test_exponents_are_those_of_the_law(data, laws):
    found = optima_of(laws["byte"])
    # alpha .5, beta .45, C = 6 N D: N* ~ C^(.45 / .95)
    assert found.size_exponent.value == pytest.approx(0.45 / 0.95, abs=0.05)
    assert found.size_exponent.value + found.bytes_exponent.value == pytest.approx(1, abs=0.01)
    sizes, seen = (figure.views[0] for figure in optimum_figures(data, laws))
    labels = [mark.label for mark in sizes.marks if mark.series == "byte" and mark.label]
    assert labels == [f"flat bytes: a = {found.size_exponent.value:.3g} {labels[0].split(' ', 5)[5]}"]
    ways = {mark.direction for view in (sizes,) for mark in view.marks if mark.kind == "bound"}
    assert ways == {"down"}
    assert {mark.direction for mark in seen.marks if mark.kind == "bound"} == {"up"}


def test_one_optimum_gives_no_exponent(data, laws):
    fewer = dataclasses.replace(laws["token"], parabolas={})
    assert optima_of(fewer).optima == ()
    (sizes, _) = optimum_figures(data, {"token": laws["token"]})
    assert [mark.label for mark in sizes.views[0].marks if mark.label] == ["BPE tokens: no exponent"]
    assert "fewer than two budgets" in sizes.views[0].notes[0]


def test_the_held_out_budget_belongs_to_its_runs(data, laws):
    figure = holdout(data, laws)
    for mark in figure.views[0].marks:
        law = laws[mark.series]
        rows = {row["run"]: row for row in data.rows}
        assert [rows[run]["budget"] for run in mark.runs] == [3e13] * 5
        assert [rows[run]["parameters_non_embedding"] for run in mark.runs] == list(mark.x)
        assert mark.y == law.holdout.errors
        assert max(map(abs, mark.y)) < 0.03
    with pytest.raises(NoData, match="flat bytes: none"):
        holdout(data, {"byte": dataclasses.replace(laws["byte"], holdout=None, no_holdout="none")})


def test_a_map_of_patch_and_model_sizes(data, laws):
    (figure,) = patch_maps(data, laws)
    (cells,) = figure.views[0].marks
    assert figure.views[0].y.names == ("3", "6")
    assert len(cells.value) == 10
    rows = {row["run"]: row for row in data.rows}
    for run, x, y, value in zip(cells.runs, cells.x, cells.y, cells.value, strict=True):
        assert rows[run]["heldout_bits_per_byte"] == value
        assert rows[run]["bytes_per_unit"] == (3, 6)[int(y)]
        assert rows[run]["parameters_non_embedding"] == (4e4, 8e4, 1.6e5, 3.2e5, 6.4e5)[int(x)]
    one = dataclasses.replace(data, rows=tuple(data.of("byte")))
    with pytest.raises(NoData, match="one patch size"):
        patch_maps(one, laws)


def test_too_few_sizes_have_no_bowl(data, laws):
    with pytest.raises(NoData, match="no budget has three sizes"):
        bowls(data, {"byte": dataclasses.replace(laws["byte"], parabolas={})})
