import numpy as np
import pytest

from bltjax.scaling.fit import projection
from bltjax.scaling.fit.huber import Problem, fit, logarithmic
from bltjax.scaling.fit.law import Frame
from bltjax.scaling.fit.refine import refine, squared
from bltjax.scaling.fit.resample import weights
from tests.scaling.fit.truths import CHINCHILLA, LOPSIDED, design


def test_draws_are_what_each_estimator_finds_from_its_own_grid():
    points = design(LOPSIDED, noise=0.003).draw(0)
    frame = Frame.of(points)
    coordinates, one = frame.coordinates(points), np.ones(len(points))
    times = weights(points.cluster, 3, seed=1)
    losses = np.tile(points.loss, (len(times), 1))

    start, _ = projection.fit(coordinates, points.loss, one)
    drawn, converged = refine(coordinates, losses, times, np.tile(start, (3, 1)), squared)
    assert converged.all()
    for row, weight in zip(drawn, times, strict=True):
        _, alone = projection.fit(coordinates, points.loss, weight)
        ours = (weight * (coordinates.predict(row) - points.loss) ** 2).sum()
        assert ours == pytest.approx(alone, rel=1e-4, abs=1e-12)

    start, _ = fit(coordinates, points.loss, one)
    drawn, _ = refine(coordinates, losses, times, np.tile(start, (3, 1)), logarithmic)
    for row, weight in zip(drawn, times, strict=True):
        _, alone = fit(coordinates, points.loss, weight)
        assert float(Problem(coordinates, points.loss, weight).objective(row)) == pytest.approx(alone, rel=1e-2)


def test_a_draw_does_not_depend_on_the_others():
    points = design(noise=0.003).draw(3)
    frame = Frame.of(points)
    coordinates = frame.coordinates(points)
    times = weights(points.cluster, 6, seed=1)
    losses = np.tile(points.loss, (6, 1))
    start = np.tile(frame.theta(CHINCHILLA), (6, 1))
    together, _ = refine(coordinates, losses, times, start, squared)
    alone, _ = refine(coordinates, losses[4:5], times[4:5], start[4:5], squared)
    np.testing.assert_allclose(together[4], alone[0], rtol=1e-9)


def test_losses_without_noise_are_met_exactly():
    points = design(noise=0.0).draw(0)
    frame = Frame.of(points)
    start = frame.theta(CHINCHILLA) + np.array([0.1, -0.1, 0.05, 0.1, -0.03])
    times = weights(points.cluster, 5, seed=0)
    drawn, converged = refine(
        frame.coordinates(points), np.tile(points.loss, (5, 1)), times, np.tile(start, (5, 1)), squared
    )
    assert converged.all()
    for row in drawn:
        assert frame.law(row).alpha == pytest.approx(CHINCHILLA.alpha, rel=1e-3)
