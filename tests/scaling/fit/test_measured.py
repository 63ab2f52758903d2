import dataclasses

import numpy as np
import pytest

from bltjax.scaling.fit.gain import crossover
from bltjax.scaling.fit.measured import measured_curve
from bltjax.scaling.fit.points import About, Points

BUDGETS = np.array([1e10, 2e10, 4e10, 8e10])


def points(level, slope, seeds=8, noise=0.004, size=1e5, trunks=True):
    """Losses that fall straight over ln C, with an offset for each trunk."""
    generator = np.random.default_rng(seeds)
    budget = np.tile(BUDGETS, seeds)
    trunk = np.repeat(np.arange(seeds), len(BUDGETS))
    loss = level - slope * np.log(budget / BUDGETS[0]) + generator.normal(0, noise, seeds)[trunk]
    names = [f"t{i}" for i in trunk] if trunks else [f"r{i}" for i in range(len(budget))]
    return Points(
        size=np.full(len(budget), size), bytes=budget / 6e5, loss=loss, flops=1.01 * budget, cluster=tuple(names),
        about=About(f"slope {slope}", "N", "paper-v1", "nothing"), budget=budget, seconds=budget / 1e10,
    )  # fmt: skip


def test_a_curve_goes_through_the_means_at_each_budget():
    own = points(3.0, 0.1)
    curve = measured_curve(own, draws=0)
    np.testing.assert_allclose(curve.x, 1.01 * BUDGETS)
    np.testing.assert_allclose(curve.loss, own.loss.reshape(8, 4).mean(axis=0))
    assert curve.draws.shape == (0, 4) and curve.x_label == "training FLOPs (paper-v1)"
    assert measured_curve(own, "seconds", draws=0).x[0] == 1.0
    assert measured_curve(own, "bytes", draws=0).x_label == "bytes seen"


def test_two_models_cross_where_they_do_with_an_interval_from_their_trunks():
    steep, flat = points(3.06, 0.15), points(3.0, 0.1, seeds=9)
    truth = 1.01 * BUDGETS[0] * np.exp(0.06 / 0.05)
    found = crossover(measured_curve(steep), measured_curve(flat))
    assert found.x is not None and found.x.value == pytest.approx(truth, rel=0.1) and found.draws == 1000
    assert found.x.low < found.x.value < found.x.high and found.better_after == "slope 0.15"
    above = crossover(measured_curve(points(3.5, 0.15)), measured_curve(flat))
    assert above.x is None and above.crossing == 0 and "no crossover in range" in str(above)
    assert "no draws" in str(crossover(measured_curve(steep, draws=0), measured_curve(flat, draws=0)))


def test_a_draw_takes_whole_trunks():
    # A trunk's offset is in all its budgets: a difference of two budgets of one curve is the same in every draw.
    drawn = measured_curve(points(3.0, 0.1)).draws
    np.testing.assert_allclose(drawn[:, 0] - drawn[:, 3], 0.1 * np.log(8), atol=1e-12)
    apart = measured_curve(points(3.0, 0.1, trunks=False)).draws
    assert np.nanstd(apart[:, 0] - apart[:, 3]) > 1e-3


def test_too_few_trunks_and_several_models_are_refused():
    with pytest.raises(ValueError, match="an interval needs 6"):
        measured_curve(points(3.0, 0.1, seeds=5))
    own = points(3.0, 0.1)
    with pytest.raises(ValueError, match="several models"):
        measured_curve(dataclasses.replace(own, size=own.size + (own.budget > 2e10)))
    with pytest.raises(ValueError, match="needs two"):
        measured_curve(own.where(own.budget == 1e10))
