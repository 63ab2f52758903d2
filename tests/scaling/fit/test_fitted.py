import dataclasses
import json
import time

import numpy as np
import pytest

from bltjax.scaling.fit.cost import Cost, of_points, transformer
from bltjax.scaling.fit.fitted import fit_surface
from bltjax.scaling.fit.law import PatchTerm
from bltjax.scaling.fit.points import About, Points
from tests.scaling.fit.truths import CHINCHILLA, LOPSIDED, byte_level_cost, design


@pytest.fixture(scope="module")
def fit():
    return fit_surface(design().draw(0), "projection", draws=200, seed=3)


def test_the_fit_says_what_it_is(fit):
    text = str(fit)
    for words in (
        "variable projection", "N: N", "95% intervals by 200 bootstrap draws over trunks (resampled), seed 3",
        "cost: FLOPs (simulated)", "alpha", "beta", "a = ", "35 points of 35 trunks", "at 1e+17",
    ):  # fmt: skip
        assert words in text, words


def test_a_and_b_are_no_headline_numbers(fit):
    # They change with the units and swing with the exponents: 1.1 of the specification has A in [291, 738].
    assert not any(line.strip().startswith(("A ", "B ")) for line in str(fit).splitlines())
    assert set(fit.summary()["headline"]) == {"E", "alpha", "beta", "size_exponent", "bytes_exponent"}
    assert set(fit.summary()["law"]) >= {"A", "B"}
    relative = {name: fit.parameter(name) for name in ("A", "alpha")}
    swing = {name: (found.high - found.low) / found.value for name, found in relative.items()}
    assert swing["A"] > 5 * swing["alpha"]


def test_the_summary_is_json(fit):
    back = json.loads(json.dumps(fit.summary(), allow_nan=False))
    assert back["bootstrap"] == {"draws": 200, "seed": 3, "level": 0.95, "clusters": "resampled"}
    assert back["about"]["size"] == "N"
    assert len(back["optima"]) == 5
    assert back["residual_rms"] == pytest.approx(0.003, rel=0.4)


def test_the_same_seed_gives_the_same_fit(fit):
    again = fit_surface(design().draw(0), "projection", draws=200, seed=3)
    assert again.summary() == fit.summary()
    other = fit_surface(design().draw(0), "projection", draws=200, seed=4)
    assert other.parameter("alpha").value == fit.parameter("alpha").value
    assert other.parameter("alpha").low != fit.parameter("alpha").low


@pytest.mark.parametrize("method", ["projection", "huber"])
def test_the_truth_lies_in_the_intervals(method):
    truth = design(noise=0.002)
    found = fit_surface(truth.draw(5), method, draws=300, level=0.99)
    for name in ("E", "alpha", "beta"):
        interval = found.parameter(name)
        assert interval.low < getattr(CHINCHILLA, name) < interval.high, name
    for optimum in found.optima():
        size, data, loss = truth.optimum(optimum.budget)
        assert optimum.size.low < size < optimum.size.high
        assert optimum.bytes.low < data < optimum.bytes.high
        assert optimum.loss.value == pytest.approx(loss, abs=0.005)
    size, data = found.exponents()
    assert size.value + data.value == pytest.approx(1, abs=1e-6)
    assert size.low < 0.28 / 0.62 < size.high


def test_optima_lie_along_the_familys_own_cost():
    truth = design(cost=byte_level_cost(), noise=0.0)
    own = fit_surface(truth.draw(0), "projection", draws=0)
    assert isinstance(own.cost, Cost)
    by_6nd = fit_surface(truth.draw(0), "projection", transformer(), draws=0)
    for budget in truth.budgets[1:-1]:
        size, data, _ = truth.optimum(budget)
        assert own.optimum(budget).size.value == pytest.approx(size, rel=1e-2)
        assert own.optimum(budget).bytes.value == pytest.approx(data, rel=1e-2)
        assert by_6nd.optimum(budget).size.value != pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(("offset", "bound"), [(30, "at or below"), (1 / 30, "at or above")])
def test_a_minimum_at_the_end_of_the_sizes_is_a_bound(offset, bound):
    # All budgets, all sizes on one side of their optima.
    found = fit_surface(design(offset=offset, noise=0.0, width=3.0).draw(0), "projection", draws=50)
    edge = found.optimum(1e19 if bound == "at or above" else 1e17)
    assert edge.bound == bound
    assert edge.size.value is None and edge.bytes.value is None
    assert edge.bound_size == pytest.approx(found.reach.size[bound == "at or above"])
    assert "no optimum: N is" in str(edge)


def test_without_one_optimum_there_is_no_exponent():
    found = fit_surface(
        design(offset=100, noise=0.0, width=2.0, budgets=(1e18, 2e18, 4e18)).draw(0), "projection", draws=0
    )
    size, data = found.exponents()
    assert size.value is None and data.value is None
    assert "a = none" in str(found)


def test_an_optimum_beyond_the_budgets_says_so(fit):
    assert fit.optimum(1e18).extrapolated == ()
    far = fit.optimum(1e21)
    assert far.extrapolated[0] == "flops 100 times the largest measured"
    assert "EXTRAPOLATED" in str(far)


def test_draws_at_an_end_open_the_interval_of_the_size(fit):
    # A budget whose optimum is just below the largest size: many draws have theirs beyond.
    share = 0.97 * fit.reach.size[1] / fit.optimum(1e19).size.value
    last = fit.optimum(1e19 * share ** (1 / fit.exponents()[0].value))
    assert last.bound is None and last.size.value < fit.reach.size[1]
    assert last.size.low is not None and last.size.high is None
    assert last.bytes.low is None and last.bytes.high is not None


@pytest.mark.parametrize("method", ["projection", "huber"])
def test_a_joint_law_with_patch_size_is_recovered(method):
    term = PatchTerm(0.03, 0.06, -0.01, patch_size=4.5, size=2e8)
    law = dataclasses.replace(CHINCHILLA, patch=term)
    sizes, patch_sizes = np.geomspace(3e7, 1.2e9, 6), np.array([2.0, 3.0, 4.5, 6.0, 9.0])
    grid = [(n, t, c) for n in sizes for t in patch_sizes for c in (1e17, 1e18, 1e19)]
    size, patch_size, flops = (np.array(column) for column in zip(*grid, strict=True))
    per_byte = 6 * (5e7 + size / patch_size)
    data = flops / per_byte
    loss = np.array([law.loss(*row) for row in zip(size, data, patch_size, strict=True)])
    loss += np.random.default_rng(0).normal(0, 0.001, len(loss))
    names = tuple(map(str, range(len(loss))))
    points = Points(size, data, loss, flops, names, About("b", "N", "p", "t"), budget=flops, patch_size=patch_size)
    found = fit_surface(points, method, draws=100)
    for value in (3.0, 4.5, 8.0):
        own = found.loss(3e8, 5e10, value)
        assert own.low <= law.loss(3e8, 5e10, value) <= own.high or own.value == pytest.approx(
            law.loss(3e8, 5e10, value), abs=1e-3
        )
    assert found.law.patch.quadratic == pytest.approx(0.06, abs=0.01)
    # Bytes get cheaper with the patch size, the law has its own minimum in it: the best lies between.
    losses = [found.optimum(1e18, value).loss.value for value in patch_sizes]
    assert 0 < int(np.argmin(losses)) < len(patch_sizes) - 1
    optimum = found.optimum(1e18, 4.5)
    assert optimum.bytes.value * of_points(points).per_byte(np.array([optimum.size.value]), 4.5)[0] == pytest.approx(
        1e18
    )


def test_points_that_determine_nothing_are_refused():
    points = design().draw(0)
    with pytest.raises(ValueError, match="5 different ones"):
        fit_surface(points.where(np.arange(35) < 5), "projection", draws=0)
    two = points.where(np.isin(points.size, np.unique(points.size)[:2]))
    with pytest.raises(ValueError, match="2 sizes"):
        fit_surface(two, "projection", draws=0)


def test_points_that_do_not_determine_an_exponent_are_said():
    # The loss does not depend on the bytes at all.
    points = design(noise=0.0).draw(0)
    flat = dataclasses.replace(points, loss=0.6 + 0.3 * (points.size / 2e8) ** -3.0)
    found = fit_surface(flat, "projection", draws=0)
    assert any("ended at its end" in warning for warning in found.warnings)


def test_few_trunks_are_said():
    points = design(sizes=5, width=3.0, trunks=True, seeds=2).draw(0)
    found = fit_surface(points, "projection", draws=20)
    assert "only 10 trunks or runs of their own: intervals of so few are rough" in found.warnings


def test_a_fixed_size_gives_the_curve_of_equal_inference_cost(fit):
    curve = fit.at_size(2e8)
    loss, _ = curve.at(np.array([1e18]))
    assert loss[0] == pytest.approx(fit.loss(2e8, 1e18 / 6 / 2e8).value, abs=1e-4)
    assert fit.at_size(2e8, "bytes").x_label == "bytes seen"
    # At its own optimal budget it touches the frontier, elsewhere it lies above.
    frontier = fit.frontier()
    x = np.geomspace(1.01e17, 0.99e19, 30)
    gap = curve.at(x)[0] - frontier.at(x)[0]
    assert gap.min() == pytest.approx(0, abs=2e-4)
    assert gap.min() > -1e-4 and gap.max() > 0.01
    with pytest.raises(ValueError, match="times the largest measured"):
        fit.at_size(1e12)


def test_the_frontier_falls_and_holds_the_optima(fit):
    curve = fit.frontier()
    assert (np.diff(curve.loss) < 0).all()
    assert curve.draws.shape == (200, len(curve.x))
    for optimum in fit.optima():
        assert curve.at(np.array([optimum.budget]))[0][0] == pytest.approx(optimum.loss.value, abs=1e-4)
    with pytest.raises(ValueError, match="no device seconds"):
        fit.frontier("seconds")


def test_mistake_14_repeated_text_is_said():
    points = design().draw(0)
    repeated = dataclasses.replace(points, epochs=np.linspace(0.1, 7, len(points)))
    found = fit_surface(repeated, "projection", draws=0)
    assert "15 of 35 runs repeat their text more than 4 times; no law has that" in found.warnings


def test_a_full_fit_with_a_thousand_draws_takes_less_than_a_minute():
    points = design(LOPSIDED, sizes=12, budgets=tuple(np.geomspace(1e17, 1e19, 5)), seeds=4).draw(0)
    assert len(points) == 240
    begun = time.monotonic()
    for method in ("projection", "huber"):
        assert str(fit_surface(points, method, draws=1000))
    assert time.monotonic() - begun < 60
