import numpy as np
import pytest
from scipy import optimize

from bltjax.scaling.fit.cost import transformer
from bltjax.scaling.fit.law import Frame
from bltjax.scaling.fit.optimum import Optimum, Reach, exponents, minimise, scale_with_patch
from bltjax.scaling.fit.resample import Interval
from bltjax.scaling.fit.simulation import surface
from tests.scaling.fit.truths import CHINCHILLA, LOPSIDED, SYMMETRIC, byte_level_cost, design

FRAME = Frame(1e8, 1e10, None)


@pytest.mark.parametrize("law", [SYMMETRIC, CHINCHILLA, LOPSIDED, surface(0.2, 0.6)])
@pytest.mark.parametrize("budget", [1e16, 1e18, 3e20])
def test_along_6nd_it_is_the_closed_form(law, budget):
    found = minimise(FRAME.theta(law)[None], FRAME, transformer(), budget, (1e4, 1e13))
    size, data = law.closed_form(budget)
    assert found.edge[0] == 0
    assert found.size[0] == pytest.approx(size, rel=1e-5)
    assert found.bytes[0] == pytest.approx(data, rel=1e-5)
    assert found.loss[0] == pytest.approx(law.loss(size, data), rel=1e-10)


def test_along_a_familys_own_cost_it_is_elsewhere():
    # Where bytes cost more than 6 N the best model is another than 6 N D would have it.
    cost = byte_level_cost()
    found = minimise(FRAME.theta(CHINCHILLA)[None], FRAME, cost, 1e17, (1e5, 1e11))
    assert found.bytes[0] * cost.per_byte(found.size)[0] == pytest.approx(1e17)

    def loss(ln_size):
        size = np.exp(ln_size)
        return CHINCHILLA.loss(size, float(cost.bytes_within(1e17, np.array([size]))[0]))

    exact = optimize.minimize_scalar(
        loss, bounds=(np.log(1e5), np.log(1e11)), method="bounded", options={"xatol": 1e-9}
    )
    assert found.size[0] == pytest.approx(np.exp(exact.x), rel=1e-4)
    assert abs(np.log(found.size[0] / CHINCHILLA.closed_form(1e17)[0])) > 0.3


def test_a_minimum_at_an_end_of_the_sizes_is_marked():
    size = CHINCHILLA.closed_form(1e18)[0]
    theta = np.stack([FRAME.theta(CHINCHILLA)] * 2)
    below = minimise(theta, FRAME, transformer(), 1e18, (size * 1.5, size * 30))
    above = minimise(theta, FRAME, transformer(), 1e18, (size / 30, size / 1.5))
    assert below.edge.tolist() == [-1, -1]
    assert above.edge.tolist() == [1, 1]
    assert below.size[0] == pytest.approx(size * 1.5)
    assert above.size[0] == pytest.approx(size / 1.5)


def test_each_row_of_numbers_has_a_minimum_of_its_own():
    laws = [SYMMETRIC, CHINCHILLA, LOPSIDED]
    together = minimise(np.stack([FRAME.theta(law) for law in laws]), FRAME, transformer(), 1e19, (1e5, 1e12))
    for index, law in enumerate(laws):
        alone = minimise(FRAME.theta(law)[None], FRAME, transformer(), 1e19, (1e5, 1e12))
        assert together.size[index] == alone.size[0]


def test_the_exponents_of_a_law_along_6nd():
    budgets = np.geomspace(1e16, 1e20, 5)
    minima = [minimise(FRAME.theta(LOPSIDED)[None], FRAME, transformer(), b, (1e3, 1e14)) for b in budgets]
    a = exponents(budgets, np.array([[m.size[0] for m in minima]]))[0]
    b = exponents(budgets, np.array([[m.bytes[0] for m in minima]]))[0]
    assert a == pytest.approx(0.2 / 0.7, abs=1e-4)
    assert a + b == pytest.approx(1, abs=1e-6)


def test_an_exponent_is_that_of_the_numbers_that_are_there():
    budgets = np.array([1e10, 1e11, 1e12, 1e13])
    values = np.stack([budgets**0.5, np.where(budgets > 1e12, np.nan, budgets**0.4), np.full(4, np.nan)])
    values[2, 0] = 1.0
    assert exponents(budgets, values) == pytest.approx([0.5, 0.4, np.nan], nan_ok=True)


def test_beyond_what_was_measured_is_said():
    reach = Reach.of(design().draw(0))
    assert reach.beyond(flops=1e19) == ()
    assert reach.beyond(flops=1.05e19) == ()  # a step's difference
    (text,) = reach.beyond(flops=1e22)
    assert text == "flops 1e+03 times the largest measured"
    assert "below the least" in reach.beyond(flops=1e15)[0]


def optimum(budget, patch_size, size, data, bound=None):
    given = None if bound else size
    return Optimum(
        budget, Interval(given, None, None), Interval(data, None, None), Interval(1, None, None), patch_size, bound
    )


def test_the_power_law_in_budget_and_patch_size_is_recovered():
    optima = [
        optimum(c, t, 0.1 * c**0.47 * t**0.2, 3 * c**0.5 * t**0.4) for c in (1e17, 1e18, 1e19) for t in (3.0, 4.5, 8.0)
    ]
    optima.append(optimum(1e20, 8.0, 1.0, 1.0, bound="at or above"))  # a bound is no optimum
    found = scale_with_patch(optima)
    assert found.size == pytest.approx(0.1)
    assert (found.size_flops, found.size_patch) == pytest.approx((0.47, 0.2))
    assert (found.bytes, found.bytes_flops, found.bytes_patch) == pytest.approx((3, 0.5, 0.4))
    with pytest.raises(ValueError, match="two patch sizes"):
        scale_with_patch([o for o in optima if o.patch_size == 3.0])


def test_an_optimum_is_read_in_a_line():
    text = str(
        Optimum(1e18, Interval(2e8, 1e8, 4e8, draws=9), Interval(1e9, None, None), Interval(0.9, 0.89, 0.91, draws=9))
    )
    assert text == "N 2e+08 [1e+08, 4e+08], 1e+09 bytes, loss 0.9 [0.89, 0.91]"
    edge = Optimum(
        1e18, Interval(None, None, None), Interval(None, None, None), Interval(0.9, None, None),
        bound="at or above", bound_size=3e7, extrapolated=("flops 10 times the largest measured",),
    )  # fmt: skip
    assert "no optimum: N is at or above 3e+07" in str(edge)
    assert "EXTRAPOLATED: flops 10 times" in str(edge)
