"""Variable projection: at given exponents a law is linear in E, A and B, which non-negative least squares finds.

So the search is over two numbers instead of five: a grid, then Nelder and Mead. What is minimised is the sum of
squared errors in bits per byte. The coefficients of a patch size are linear too and may have either sign.
"""

import itertools

import numpy as np
from jaxtyping import Float
from scipy import optimize

from bltjax.scaling.fit.law import LARGEST_EXPONENT, LEAST_EXPONENT, Coordinates

NAME = "variable projection (non-negative least squares in bits per byte, grid and Nelder-Mead over exponents)"

GRID = np.geomspace(LEAST_EXPONENT, LARGEST_EXPONENT, 32)  # of each exponent


def fit(
    coordinates: Coordinates, loss: Float[np.ndarray, " points"], weights: Float[np.ndarray, " points"]
) -> tuple[Float[np.ndarray, " parameters"], float]:
    """The row of numbers of the least sum of squares, and that sum."""
    root = np.sqrt(weights)
    linear = [root * column for column in coordinates.linear_columns()]
    signed = [column for each in linear for column in (each, -each)]
    target = root * loss

    def inner(alpha: float, beta: float) -> tuple[np.ndarray, float]:
        columns = [root, root * np.exp(-alpha * coordinates.n), root * np.exp(-beta * coordinates.d), *signed]
        coefficients, norm = optimize.nnls(np.stack(columns, axis=1), target)
        return coefficients, norm**2

    start = min(itertools.product(GRID, GRID), key=lambda pair: inner(*pair)[1])
    corner, lowest, highest = np.log(start), np.log(GRID[0]), np.log(GRID[-1])
    inward = np.where(corner < (lowest + highest) / 2, 1, -1) * np.log(GRID[1] / GRID[0])
    simplex = np.stack([corner, corner + inward * [1, 0], corner + inward * [0, 1]])
    options = {"xatol": 1e-7, "fatol": 1e-14, "maxiter": 2000, "maxfev": 2000, "initial_simplex": simplex}
    found = optimize.minimize(
        lambda x: inner(*np.exp(x))[1],
        corner,
        method="Nelder-Mead",
        bounds=[(lowest, highest)] * 2,
        options=options,
    )
    alpha, beta = np.exp(found.x)
    coefficients, sum_of_squares = inner(alpha, beta)
    e, a, b = np.log(np.maximum(coefficients[:3], 1e-12))  # a term of no weight has no logarithm
    free = coefficients[3::2] - coefficients[4::2]
    return np.array([e, a, alpha, b, beta, *free]), float(sum_of_squares)
