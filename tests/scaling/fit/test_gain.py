import dataclasses
import json

import numpy as np
import pytest

from bltjax.scaling.fit.curve import Curve
from bltjax.scaling.fit.estimators import fit_law
from bltjax.scaling.fit.gain import compute_equivalent_gain, crossover
from bltjax.scaling.fit.points import About
from tests.scaling.fit.truths import CHINCHILLA, design

X = np.geomspace(1e15, 1e20, 101)


def power(name, level, slope, noise=0.0, x=X, draws=200, label="training FLOPs (paper-v1)", scored="text"):
    """E + level C^-slope at 1e18, each draw moved by a constant."""
    generator = np.random.default_rng(len(name))
    loss = 0.5 + level * (x / 1e18) ** -slope
    drawn = loss + generator.normal(0, noise, (draws, 1)) if noise else np.empty((0, len(x)))
    about = About(name, "N", "paper-v1", scored)
    return Curve(about, label, "by hand", x, loss, drawn, np.zeros(len(x), bool), seed=0, level=0.95)


def test_a_family_that_needs_half_the_compute_has_a_gain_of_two_everywhere():
    # b(2 C) = a(C): (2 C)^-s L' = C^-s L.
    a, b = power("a", 0.3, 0.1), power("b", 0.3 * 2**0.1, 0.1)
    found = compute_equivalent_gain(a, b, np.array([1e16, 1e18, 4e19]))
    assert [gain.value for gain in found.gains] == pytest.approx([2, 2, 2], rel=1e-3)
    assert found.slope.value == pytest.approx(0, abs=1e-3)
    back = compute_equivalent_gain(b, a, np.array([1e16, 1e18]))
    assert [gain.value for gain in back.gains] == pytest.approx([0.5, 0.5], rel=1e-3)


def test_a_gain_that_grows_with_scale_has_its_slope():
    # C_b(L_a(C)) = 1e18 (C / 1e18)^(0.11 / 0.1): d ln gain / d ln C = 0.1.
    found = compute_equivalent_gain(power("a", 0.3, 0.11), power("b", 0.3, 0.1), np.array([1e17, 1e18, 1e19]))
    assert [gain.value for gain in found.gains] == pytest.approx([10**-0.1, 1, 10**0.1], rel=1e-3)
    assert found.slope.value == pytest.approx(0.1, abs=1e-3)


def test_a_gain_beyond_what_was_measured_is_a_bound_and_not_a_number():
    a, b = power("a", 0.2, 0.1), power("b", 0.3, 0.1)  # b needs 57 times the compute
    found = compute_equivalent_gain(a, b, np.array([1e17, 1e19]))
    assert found.gains[0].value == pytest.approx(1.5**10, rel=1e-2)
    assert found.gains[1].value is None
    assert (found.sides[1], found.limits[1]) == ("more than", pytest.approx(10))
    assert "more than 10 (end of what was measured)" in str(found)
    less = compute_equivalent_gain(b, a, np.array([1e16]))
    assert (less.gains[0].value, less.sides[0]) == (None, "less than")
    assert less.limits[0] == pytest.approx(0.1)


def test_the_interval_of_a_gain_holds_it_and_opens_where_draws_leave_the_range():
    a, b = power("aa", 0.3, 0.1, noise=0.004), power("b", 0.3 * 2**0.1, 0.1, noise=0.004)
    found = compute_equivalent_gain(a, b, np.array([1e17, 4.9e19]))
    first, last = found.gains
    assert first.low < 2 < first.high
    assert last.low is not None and last.high is None  # half of the draws ask for more than b was given
    assert found.slope.low < 0 < found.slope.high


def test_curves_that_cross_cross_where_they_do():
    a, b = power("a", 0.3, 0.12), power("b", 0.3, 0.1)
    found = crossover(a, b)
    assert found.x is not None and found.x.value == pytest.approx(1e18, rel=1e-2)
    assert (found.better_before, found.better_after) == ("b", "a")
    assert found.notes == ()
    back = crossover(b, a)
    assert back.x is not None and back.x.value == pytest.approx(found.x.value)
    assert back.better_after == "a"


def test_curves_that_do_not_cross_in_range_are_not_extended_until_they_do():
    short = np.geomspace(1e15, 1e17, 51)
    found = crossover(power("a", 0.3, 0.12, x=short), power("b", 0.3, 0.1))
    assert found.x is None and found.crossing == 0
    assert found.range == pytest.approx((1e15, 1e17))
    assert "no crossover in range" in str(found)
    assert found.better_after == "b"


def test_a_crossover_that_draws_doubt_is_none_in_range():
    # The curves cross near the end of the range: many draws do not.
    x = np.geomspace(1e15, 1.5e18, 101)
    a, b = power("aa", 0.3, 0.12, 0.002, x), power("b", 0.3, 0.1, 0.002, x)
    doubtful = crossover(a, b)
    assert 0.3 < doubtful.crossing < 0.975
    assert doubtful.x is None
    certain = crossover(power("aa", 0.3, 0.12, 0.0005), power("b", 0.3, 0.1, 0.0005))
    assert certain.x is not None and certain.crossing == 1
    assert certain.x.low < 1e18 < certain.x.high


def test_curves_that_cross_twice_have_no_crossover():
    wave = power("wave", 0.3, 0.1)
    bent = dataclasses.replace(wave, loss=wave.loss + 0.01 * (np.log(X / 1e18) ** 2 - 4))
    found = crossover(bent, wave)
    assert found.x is None
    assert "cross 2 times" in found.notes[0]


def test_a_point_of_the_grid_where_the_curves_are_equal_is_a_crossing():
    x = np.array([1.0, 10, 100])
    a, b = power("a", 0.3, 0.1, x=x), power("b", 0.3, 0.1, x=x)
    a = dataclasses.replace(a, loss=np.array([3.0, 2, 1]))
    b = dataclasses.replace(b, loss=np.array([2.5, 2, 1.5]))
    found = crossover(a, b)
    assert found.x is not None and found.x.value == pytest.approx(10)


def test_mistake_1_frontiers_in_different_accountings_are_not_compared():
    paper, full = power("a", 0.3, 0.1), power("b", 0.3, 0.1, label="training FLOPs (full-v1)")
    for compare in (compute_equivalent_gain, crossover):
        with pytest.raises(ValueError, match="paper-v1"):
            compare(paper, full)


def test_mistake_8_losses_of_different_texts_are_not_compared():
    with pytest.raises(ValueError, match="only like is compared with like"):
        crossover(power("a", 0.3, 0.1), power("b", 0.3, 0.1, scored="another text"))


def test_curves_without_a_common_range_are_refused():
    with pytest.raises(ValueError, match="no range in common"):
        crossover(power("a", 0.3, 0.1, x=np.geomspace(1, 10, 5)), power("b", 0.3, 0.1, x=np.geomspace(20, 50, 5)))


def test_an_upper_bound_is_noted():
    a, b = power("a", 0.3, 0.1), power("b", 0.4, 0.1)
    bounded = dataclasses.replace(a, bounded=X < 3e15)
    (note,) = compute_equivalent_gain(bounded, b).notes
    assert note.startswith("a: from 1e+15 to 2.8") and "upper bound" in note


def test_fitted_families_give_the_true_gain_with_an_interval():
    # B is A with every byte twice as dear: the gain of A over B is exactly two.
    kinds = design(CHINCHILLA, noise=0.002)
    cheap = kinds.draw(0)
    # The same (N, D), at twice the FLOPs; its noise is its own.
    other = kinds.draw(1)
    dear = dataclasses.replace(
        other, flops=other.flops * 2, budget=other.budget * 2, about=dataclasses.replace(other.about, name="dear")
    )
    a, b = (fit_law(points, "projection", draws=200).frontier() for points in (cheap, dear))
    a = dataclasses.replace(a, about=dataclasses.replace(a.about, name="cheap"))
    found = compute_equivalent_gain(a, b, np.array([3e17, 1e18, 5e18]))
    for gain in found.gains:
        assert gain.low < 2 < gain.high
        assert gain.high / gain.low < 1.3
    assert found.slope.low < 0 < found.slope.high
    json.dumps(dataclasses.asdict(found), allow_nan=False)
    json.dumps(dataclasses.asdict(crossover(a, b)), allow_nan=False)
    assert "no crossover" in str(crossover(a, b))


def test_the_time_equivalent_gain_is_the_same_in_seconds():
    points = design(noise=0.001).draw(0)
    slow = dataclasses.replace(points, seconds=points.flops / 1e12)
    fast = dataclasses.replace(points, seconds=points.flops / 3e12)
    a, b = (fit_law(each, "projection", draws=0).frontier("seconds") for each in (fast, slow))
    found = compute_equivalent_gain(a, b, np.array([1e6]))
    assert found.x_label == "device seconds"
    assert found.gains[0].value == pytest.approx(3, rel=1e-2)
