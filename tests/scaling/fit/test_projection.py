import numpy as np
import pytest

from bltjax.scaling.fit import projection
from bltjax.scaling.fit.law import Frame
from bltjax.scaling.fit.simulation import surface
from tests.scaling.fit.truths import CHINCHILLA, LOPSIDED, SYMMETRIC, design


def fitted(points):
    frame = Frame.of(points)
    theta, objective = projection.fit(frame.coordinates(points), points.loss, np.ones(len(points)))
    return frame.law(theta), objective, frame.coordinates(points).predict(theta)


@pytest.mark.parametrize("law", [SYMMETRIC, CHINCHILLA, LOPSIDED, surface(0.2, 0.5), surface(0.12, 0.9)])
@pytest.mark.parametrize(("offset", "drift"), [(1.0, 1.0), (3.0, 1.0), (0.5, 1.8)])
def test_known_constants_are_recovered_wherever_the_grid_lies(law, offset, drift):
    # The parabola is off on such grids even without noise: see test_isoflops.
    found, objective, _ = fitted(design(law, noise=0.0, offset=offset, drift=drift).draw(0))
    assert objective < 1e-16
    for name, tolerance in {"E": 1e-4, "alpha": 1e-4, "beta": 1e-4, "A": 1e-2, "B": 1e-2}.items():
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=tolerance), name


def test_the_sum_of_squares_is_what_it_says_and_no_start_finds_less():
    points = design(noise=0.003).draw(1)
    law, objective, predicted = fitted(points)
    assert objective == pytest.approx(((predicted - points.loss) ** 2).sum(), rel=1e-9)
    truth = np.array([CHINCHILLA.loss(n, d) for n, d in zip(points.size, points.bytes, strict=True)])
    assert objective <= ((truth - points.loss) ** 2).sum()
    assert law.E > 0 and law.A > 0 and law.B > 0


def test_a_weight_of_two_is_the_point_twice():
    points = design(noise=0.003).draw(2)
    frame = Frame.of(points)
    weights = np.ones(len(points))
    weights[5], weights[9] = 2, 0
    chosen = np.repeat(np.arange(len(points)), weights.astype(int))
    twice = points.where(np.arange(len(points)) >= 0)
    coordinates = frame.place(twice.size[chosen], twice.bytes[chosen])
    one, _ = projection.fit(frame.coordinates(points), points.loss, weights)
    other, _ = projection.fit(coordinates, points.loss[chosen], np.ones(len(chosen)))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_term_that_the_points_do_not_have_gets_no_weight():
    # Losses that depend on the size alone: the bytes' coefficient is zero, not negative.
    points = design(noise=0.0).draw(0)
    frame = Frame.of(points)
    loss = 0.6 + 0.3 * (points.size / 2e8) ** -0.34
    theta, objective = projection.fit(frame.coordinates(points), loss, np.ones(len(points)))
    assert objective < 1e-12
    assert np.exp(theta[3]) < 1e-4
