import numpy as np
import pytest

from bltjax.scaling.fit.curve import Curve
from bltjax.scaling.fit.points import About

ABOUT = About("made up", "N", "paper-v1", "nothing")


def curve(x, losses, draws=None, about=ABOUT, label="training FLOPs (paper-v1)", bounded=None):
    x, losses = np.asarray(x, float), np.asarray(losses, float)
    drawn = np.empty((0, len(x))) if draws is None else np.asarray(draws, float)
    none = np.zeros(len(x), bool) if bounded is None else np.asarray(bounded)
    return Curve(about, label, "by hand", x, losses, drawn, none, seed=0, level=0.95)


def test_between_its_points_a_curve_is_straight_over_the_logarithm():
    made = curve([1e10, 1e12], [1.2, 1.0], [[1.4, 1.0], [1.3, 0.9]])
    loss, drawn = made.at(np.array([1e10, 1e11, 1e12]))
    np.testing.assert_allclose(loss, [1.2, 1.1, 1.0])
    np.testing.assert_allclose(drawn, [[1.4, 1.2, 1.0], [1.3, 1.1, 0.9]])
    assert curve([1, 2], [1, 0]).at(np.ones(3))[1].shape == (0, 3)


@pytest.mark.parametrize("x", [9e9, 1.1e12])
def test_a_curve_is_not_extrapolated(x):
    with pytest.raises(ValueError, match="measured from 1e\\+10 to 1e\\+12"):
        curve([1e10, 1e12], [1.2, 1.0]).at(np.array([x]))


def test_the_inverse_is_the_spending_that_reaches_a_loss():
    made = curve(np.geomspace(1e10, 1e12, 9), np.linspace(1.4, 1.0, 9))
    wanted = np.array([1.4, 1.3, 1.07, 1.0])
    reached = made.inverse(made.loss[None], wanted[None])[0]
    np.testing.assert_allclose(made.at(reached)[0], wanted, rtol=1e-12)


def test_what_a_curve_does_not_reach_is_infinite_and_what_it_begins_below_is_zero():
    made = curve([1e10, 1e12], [1.2, 1.0])
    assert made.inverse(made.loss[None], np.array([[1.3, 0.9]]))[0].tolist() == [0.0, np.inf]


def test_where_noise_makes_a_curve_rise_the_first_visit_counts():
    made = curve([1, 10, 100, 1000], [1.3, 1.1, 1.2, 1.0])
    assert made.inverse(made.loss[None], np.array([[1.15]]))[0, 0] == pytest.approx(10**0.75)
    assert made.inverse(made.loss[None], np.array([[1.05]]))[0, 0] > 100


def test_a_draw_without_a_number_stays_without():
    made = curve([1, 10], [1.3, 1.1])
    rows = np.array([[1.3, np.nan], [1.3, 1.1]])
    found = made.inverse(rows, np.full((2, 1), 1.2))
    assert np.isnan(found[0, 0]) and found[1, 0] == pytest.approx(10**0.5)


def test_a_curve_ascends():
    with pytest.raises(ValueError, match="ascending"):
        curve([2, 1], [1, 0])
