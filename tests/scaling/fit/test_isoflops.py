import dataclasses
import json

import numpy as np
import pytest

from bltjax.scaling.fit.isoflops import fit_parabolas
from tests.scaling.fit.truths import CHINCHILLA, LOPSIDED, SYMMETRIC, design


def test_with_equal_exponents_and_centred_grids_the_vertices_are_the_optima():
    truth = design(SYMMETRIC, noise=0.0)
    found = fit_parabolas(truth.draw(0), draws=0)
    for optimum in found.optima():
        size, data, _ = truth.optimum(optimum.budget)
        assert optimum.size.value == pytest.approx(size, rel=1e-6)
        assert optimum.bytes.value == pytest.approx(data, rel=1e-6)
    size, data = found.exponents()
    assert size.value == pytest.approx(0.5, abs=1e-6)
    assert data.value == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("width", "error"), [(2, 0.003), (8, 0.029), (16, 0.051)])
def test_the_published_shift_of_the_vertex_for_chinchillas_surface(width, error):
    # Without noise, centred: 0.3, 2.9 and 5.1 % in D* for grids of +-2, +-8 and +-16 times.
    truth = design(CHINCHILLA, noise=0.0, width=float(width), sizes=15)
    for optimum in fit_parabolas(truth.draw(0), draws=0).optima():
        shift = abs(np.log(optimum.bytes.value / truth.optimum(optimum.budget)[1]))
        assert shift == pytest.approx(error, rel=0.5)
    size, _ = fit_parabolas(truth.draw(0), draws=0).exponents()
    assert size.value == pytest.approx(0.28 / 0.62, abs=1e-4)  # a constant shift: the slope is right


def test_a_grid_that_drifts_with_the_budget_bends_the_exponent():
    truth = design(LOPSIDED, noise=0.0, width=8.0, offset=3.0, drift=2.0, sizes=15)
    size, _ = fit_parabolas(truth.draw(0), draws=0).exponents()
    assert abs(size.value / truth.exponent() - 1) > 0.2


def test_a_budget_whose_minimum_is_at_an_edge_has_a_bound_and_no_say_in_the_exponent():
    truth = design(SYMMETRIC, noise=0.0)
    points = truth.draw(0)
    largest = truth.optimum(1e19)[0]
    kept = (points.budget < 9e18) | (points.size < 0.9 * largest)
    found = fit_parabolas(points.where(kept), draws=50)
    last = found.optima()[-1]
    assert (last.bound, last.size.value) == ("at or above", None)
    assert found.exponents()[0].value == pytest.approx(0.5, abs=1e-6)
    assert found.frontier().x[-1] < 9e18


def test_a_budget_at_whose_edge_most_draws_lie_has_no_say_either():
    truth = design(SYMMETRIC, noise=0.0)
    points = truth.draw(0)
    found = fit_parabolas(points, draws=50)
    sizes = found.sizes.copy()
    sizes[:30, -1] = np.inf
    moved = dataclasses.replace(found, sizes=np.where(np.isfinite(sizes), sizes, np.inf))
    tilted = dataclasses.replace(moved.parabolas[-1], optimum=moved.parabolas[-1].optimum * 5)
    moved = dataclasses.replace(moved, parabolas=(*moved.parabolas[:-1], tilted))
    assert moved.exponents()[0].value == pytest.approx(0.5, abs=1e-6)


def test_two_sizes_are_no_parabola_and_it_is_said():
    points = design(noise=0.0).draw(0)
    few = points.where((points.budget > 2e17) | (np.arange(len(points)) < 2))
    found = fit_parabolas(few, draws=0)
    assert found.parabolas[0] is None
    assert "at 1e+17: fewer than three sizes, no parabola" in found.warnings
    assert len(found.optima()) == 4


def test_points_without_budgets_have_no_parabola():
    with pytest.raises(ValueError, match="belong to no budgets"):
        fit_parabolas(dataclasses.replace(design().draw(0), budget=None), draws=0)


def test_the_interval_of_a_vertex_holds_it_and_all_is_json():
    truth = design(SYMMETRIC, noise=0.002, width=6.0, sizes=9)
    found = fit_parabolas(truth.draw(1), draws=100, seed=2)
    middle = found.optima()[2]
    assert middle.size.low < truth.optimum(middle.budget)[0] < middle.size.high
    json.dumps(found.summary(), allow_nan=False)
    text = str(found)
    assert "biased off centre" in text and "N: N" in text
