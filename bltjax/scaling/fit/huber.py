"""The estimator of Chinchilla's third approach: a Huber loss of log losses, summed, by L-BFGS from a grid of starts.

Two things went wrong with it in print and are held here. The sum is never averaged: an optimiser's tolerance is
absolute near zero, and a mean of small numbers stops it early. And the grid is screened in the frame of the points, so
that it does not depend on the units of N and D.
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float
from scipy import optimize
from threadpoolctl import threadpool_limits

from bltjax.scaling.fit.law import Coordinates, box
from bltjax.scaling.fit.refine import Rows, refine

DELTA = 1e-3  # of ln(loss), as published
NAME = f"LSE-Huber (summed, delta {DELTA:g} of ln loss, L-BFGS from a grid of starts)"

_EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 2.0)
_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the loss that is irreducible; of the rest that is size's
_BEST_STARTS, _FINALISTS = 64, 3  # of the grid, how many go on to damped steps, and of those to L-BFGS


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is minimised: points in a frame, with the weight of each."""

    coordinates: Coordinates
    loss: Float[np.ndarray, " points"]
    weights: Float[np.ndarray, " points"]

    def objective(self, theta: Float[np.ndarray, "*draws parameters"]) -> Float[np.ndarray, "*draws"]:
        """Sum of the Huber losses; infinite where a predicted loss is not positive."""
        predicted = self.coordinates.predict(theta)
        positive = (predicted > 0).all(axis=-1)
        residual = np.log(np.where(predicted > 0, predicted, 1.0) / self.loss)
        return np.where(positive, (self.weights * huber(residual)).sum(axis=-1), np.inf)

    def scaled(self, theta: Float[np.ndarray, " parameters"]) -> tuple[float, Float[np.ndarray, " parameters"]]:
        """The objective and its gradient in units of delta squared, in which the optimiser's tolerances are small."""
        predicted, jacobian = self.coordinates.jacobian(theta)
        if not (predicted > 0).all() or not np.isfinite(predicted).all():
            return np.inf, np.zeros_like(theta)
        residual = np.log(predicted / self.loss)
        slope = self.weights * np.clip(residual, -DELTA, DELTA) / predicted
        value = (self.weights * huber(residual)).sum()
        return float(value) / DELTA**2, jacobian.T @ slope / DELTA**2


def huber(residual: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Half the square up to delta, linear beyond."""
    size = np.abs(residual)
    return np.where(size <= DELTA, residual**2 / 2, DELTA * (size - DELTA / 2))


def logarithmic(predicted: Rows, losses: Rows) -> tuple[Rows, Rows, Rows]:
    """The Huber loss of ln(loss), for `refine`: its curvature is that of the parabola that touches it from above."""
    positive = predicted > 0
    size = np.where(positive, predicted, 1.0)
    residual = np.log(size / losses)
    curvature = np.minimum(1.0, DELTA / np.maximum(np.abs(residual), DELTA)) / size**2
    return residual * size, curvature, np.where(positive, huber(residual), np.inf)


def starts(problem: Problem) -> Float[np.ndarray, "starts parameters"]:
    """The grid: exponents, and shares of the middle loss among the three terms at the middle of the points."""
    lowest, middle = float(problem.loss.min()), float(np.median(problem.loss))
    extra = [0.0] * len(problem.coordinates.linear_columns())
    rows = []
    for share, part, alpha, beta in itertools.product(_SHARES, _SHARES, _EXPONENTS, _EXPONENTS):
        irreducible = share * lowest
        rest = middle - irreducible
        rows.append([np.log(irreducible), np.log(part * rest), alpha, np.log((1 - part) * rest), beta, *extra])
    return np.array(rows)


def fit(
    coordinates: Coordinates, loss: Float[np.ndarray, " points"], weights: Float[np.ndarray, " points"]
) -> tuple[Float[np.ndarray, " parameters"], float]:
    """The row of numbers of the least summed Huber loss, and that loss."""
    problem = Problem(coordinates, loss, weights)
    grid = starts(problem)
    chosen = grid[np.argsort(problem.objective(grid), kind="stable")[:_BEST_STARTS]]
    rows = (len(chosen), 1)
    near, _ = refine(coordinates, np.tile(loss, rows), np.tile(weights, rows), chosen, logarithmic)
    finalists = near[np.argsort(problem.objective(near), kind="stable")[:_FINALISTS]]
    # The matrices of L-BFGS have some ten rows: waking other threads for them takes longer than the rest of the fit.
    with threadpool_limits(1, "blas"):
        best = min((minimise(problem, start) for start in finalists), key=lambda found: found.fun)
    return best.x, float(problem.objective(best.x))


def minimise(problem: Problem, start: Float[np.ndarray, " parameters"]) -> optimize.OptimizeResult:
    """L-BFGS from one start, begun anew once where it ended."""
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-8}
    bounds = list(zip(*box(problem.coordinates), strict=True))

    def descend(point: Float[np.ndarray, " parameters"]) -> optimize.OptimizeResult:
        return optimize.minimize(problem.scaled, point, jac=True, method="L-BFGS-B", bounds=bounds, options=options)

    found = descend(start)
    again = descend(found.x)
    return again if again.fun < found.fun else found
