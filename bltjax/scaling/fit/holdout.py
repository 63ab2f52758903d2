"""The largest budget held out: how far off a fit to the others is where it matters, beyond them."""

import dataclasses

import numpy as np

from bltjax.scaling.fit.fitted import Surface, fit_surface
from bltjax.scaling.fit.points import Points


@dataclasses.dataclass(frozen=True)
class Holdout:
    """Errors at the largest budget of a law fitted without it, in bits per byte: predicted minus measured."""

    estimator: str
    budget: float
    beyond: float  # times the largest budget that was fitted
    errors: tuple[float, ...]  # of each run held out
    sizes: tuple[float, ...]  # their N

    @property
    def mean(self) -> float:
        return float(np.mean(self.errors))

    @property
    def rms(self) -> float:
        return float(np.sqrt(np.mean(np.square(self.errors))))

    def __str__(self) -> str:
        return (
            f"held out {self.budget:.3g}, {self.beyond:.3g} times the largest fitted: mean error {self.mean:+.4f}, "
            f"rms {self.rms:.4f} bits per byte over {len(self.errors)} runs ({self.estimator})"
        )


def hold_out_largest(points: Points, method: Surface) -> Holdout:
    """Fits a law without the largest budget and predicts its runs.

    Raises:
      ValueError: with fewer than two budgets, or too few points without the largest.
    """
    budgets = points.budgets()
    if len(budgets) < 2:
        raise ValueError(f"budget={budgets}: holding the largest out leaves nothing to fit.")
    assert points.budget is not None
    largest = points.budget == budgets[-1]
    fit = fit_surface(points.where(~largest), method, draws=0)
    held = points.where(largest)
    errors = fit.frame.coordinates(held).predict(fit.theta) - held.loss
    return Holdout(
        fit.estimator, float(budgets[-1]), float(budgets[-1] / budgets[-2]), tuple(map(float, errors)), tuple(held.size)
    )
