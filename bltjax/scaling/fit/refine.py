"""Many fits at once: the draws of a bootstrap from the fit to all points, or the best starts of a grid.

Damped Gauss-Newton steps (Levenberg and Marquardt), reweighted for the Huber loss, over all rows in one array. Its
minima are those of the two estimators.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from bltjax.scaling.fit.law import Coordinates, box

_STEPS = 200
_CONVERGED = 1e-9  # relative fall of the objective, promised or made by one step
_LARGEST_STEP = 0.5  # of a number; they are logarithms and exponents

Rows = Float[np.ndarray, "draws points"]
# From predicted and measured losses: the slope of what is summed over a curvature that bounds it; that curvature;
# what is summed.
Transform = Callable[[Rows, Rows], tuple[Rows, Rows, Rows]]


def squared(predicted: Rows, losses: Rows) -> tuple[Rows, Rows, Rows]:
    """Half the squared error in bits per byte."""
    residual = predicted - losses
    return residual, np.ones_like(residual), residual**2 / 2


def refine(
    coordinates: Coordinates,
    losses: Rows,
    weights: Rows,
    start: Float[np.ndarray, "draws parameters"],
    transform: Transform,
) -> tuple[Float[np.ndarray, "draws parameters"], Bool[np.ndarray, " draws"]]:
    """The numbers of every draw, and which of them converged.

    Args:
      coordinates: the points in their frame.
      losses: of each draw.
      weights: how often each point is in each draw.
      start: of each draw; for a bootstrap the fit to all points.
      transform: what is summed over the points.
    """
    low, high = box(coordinates)
    theta = start.copy()
    damping = np.full(len(losses), 1e-3)
    cost = np.full(len(losses), np.inf)
    converged = np.zeros(len(losses), bool)
    for _ in range(_STEPS):
        active = np.flatnonzero(~converged)
        if not len(active):
            break
        predicted, jacobian = coordinates.jacobian(theta[active])
        residual, curvature, rho = transform(predicted, losses[active])
        weight = weights[active] * curvature
        cost[active] = (weights[active] * rho).sum(axis=1)
        weighted = jacobian * weight[..., None]
        normal = weighted.swapaxes(1, 2) @ jacobian
        slope = (weighted * residual[..., None]).sum(axis=1)
        diagonal = np.einsum("dii->di", normal)
        floor = 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
        ridge = damping[active, None] * diagonal + floor
        step = np.linalg.solve(normal + ridge[..., None] * np.eye(normal.shape[-1]), slope[..., None])[..., 0]
        step *= np.minimum(1, _LARGEST_STEP / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
        candidate = np.clip(theta[active] - step, low, high)
        _, _, rho = transform(coordinates.predict(candidate), losses[active])
        now = (weights[active] * rho).sum(axis=1)
        better = now < cost[active]
        promised = ((theta[active] - candidate) * slope).sum(axis=1) / 2
        theta[active] = np.where(better[:, None], candidate, theta[active])
        little = _CONVERGED * cost[active]
        stuck = ~better & (damping[active] > 1e6)
        converged[active] = stuck | (promised <= little) | (better & (cost[active] - now <= little))
        damping[active] = np.where(better, np.maximum(damping[active] / 5, 1e-9), damping[active] * 5)
    return theta, converged
