import itertools

import numpy as np
import pytest
from scipy import optimize

from bltjax.scaling.fit.huber import DELTA, Problem, fit, huber, logarithmic, minimise, starts
from bltjax.scaling.fit.law import Frame
from bltjax.scaling.fit.refine import refine
from bltjax.scaling.fit.simulation import surface
from tests.scaling.fit.truths import CHINCHILLA, LOPSIDED, SYMMETRIC, design


def problem_of(law, seed=0, **changes):
    points = design(law, **changes).draw(seed)
    frame = Frame.of(points)
    return frame, Problem(frame.coordinates(points), points.loss, np.ones(len(points)))


@pytest.mark.parametrize("law", [SYMMETRIC, CHINCHILLA, LOPSIDED, surface(0.2, 0.5)])
def test_known_constants_are_recovered_from_losses_without_noise(law):
    frame, problem = problem_of(law, noise=0.0)
    theta, objective = fit(problem.coordinates, problem.loss, problem.weights)
    found = frame.law(theta)
    assert objective < 1e-12
    for name in ("E", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-2), name


def test_the_published_grid_of_starts_finds_no_lower_minimum():
    # Chinchilla's own: alpha and beta in 0 .. 2, e in -1 .. 1, a and b in 0 .. 25, in N and D themselves.
    frame, problem = problem_of(CHINCHILLA)
    _, ours = fit(problem.coordinates, problem.loss, problem.weights)
    exponents, levels = (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
    grid = np.array(list(itertools.product((-1, -0.5, 0, 0.5, 1), levels, exponents, levels, exponents)))
    grid[:, 1] -= grid[:, 2] * np.log(frame.size)
    grid[:, 3] -= grid[:, 4] * np.log(frame.bytes)
    order = np.argsort(problem.objective(grid), kind="stable")
    generator = np.random.default_rng(0)
    chosen = [*order[:3], *generator.choice(order[10:1000], 3, replace=False)]
    theirs = min(float(problem.objective(minimise(problem, grid[index]).x)) for index in chosen)
    assert ours <= theirs * (1 + 1e-6)


def test_a_mean_in_the_place_of_the_sum_stops_early():
    # What went wrong in print: the optimiser's tolerance is absolute near zero. The sum in units of delta is safe.
    _, problem = problem_of(CHINCHILLA)
    start = starts(problem)[len(starts(problem)) // 2]
    careful = minimise(problem, start)

    def averaged(theta):
        value, slope = problem.scaled(theta)
        number = len(problem.loss) / DELTA**2
        return value / number, slope / number

    careless = optimize.minimize(averaged, start, jac=True, method="L-BFGS-B")
    assert careless.success
    assert float(problem.objective(careless.x)) > 1.5 * float(problem.objective(careful.x))


def test_the_gradient_is_that_of_the_objective():
    frame, problem = problem_of(LOPSIDED)
    theta = frame.theta(LOPSIDED) + 0.05
    value, slope = problem.scaled(theta)
    assert value * DELTA**2 == pytest.approx(float(problem.objective(theta)))
    numeric = optimize.approx_fprime(theta, lambda row: problem.scaled(row)[0], 1e-8)
    np.testing.assert_allclose(slope, numeric, rtol=1e-4)


def test_huber_is_a_square_inside_and_straight_outside():
    inside, outside = DELTA / 2, 5 * DELTA
    assert huber(np.array([inside, -inside])) == pytest.approx([inside**2 / 2] * 2)
    assert huber(np.array([outside, -outside])) == pytest.approx([DELTA * (outside - DELTA / 2)] * 2)


def test_one_run_gone_wrong_moves_it_less_than_least_squares():
    points = design(CHINCHILLA, noise=0.001).draw(0)
    loss = points.loss.copy()
    loss[17] += 0.1
    frame = Frame.of(points)
    theta, _ = fit(frame.coordinates(points), loss, np.ones(len(points)))
    without = frame.coordinates(points).predict(theta)
    assert abs(without[17] - points.loss[17]) < 0.01


def test_the_minimum_is_a_fixed_point_of_the_draws_steps():
    _, problem = problem_of(CHINCHILLA)
    theta, objective = fit(problem.coordinates, problem.loss, problem.weights)
    again, _ = refine(problem.coordinates, problem.loss[None], problem.weights[None], theta[None], logarithmic)
    assert float(problem.objective(again[0])) == pytest.approx(objective, rel=1e-5)
    np.testing.assert_allclose(problem.coordinates.predict(again[0]), problem.coordinates.predict(theta), atol=2e-4)


def test_a_prediction_that_is_not_positive_is_no_candidate():
    predicted, losses = np.array([[-0.1, 1.0]]), np.array([[1.0, 1.0]])
    assert logarithmic(predicted, losses)[2][0, 0] == np.inf
