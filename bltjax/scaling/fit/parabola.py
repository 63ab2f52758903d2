"""The IsoFLOP parabola of one budget.

A parabola is a picture: away from a centred grid its vertex is biased. An optimum is reported only where it was
bracketed by measurements; otherwise there is a bound.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class IsoFLOP:
    """Bits per byte of one family at one budget, as a quadratic in the logarithm of the model's size.

    The loss at ln(size) = x is curvature x^2 + slope x + level.
    """

    curvature: float
    slope: float
    level: float
    optimum: float | None  # size at the vertex; None if the measurements do not bracket it
    loss: float | None  # bits per byte there
    bound: Literal["at or below", "at or above"] | None  # where an unbracketed optimum lies, seen from `bound_size`
    bound_size: float | None

    def __call__(self, size: float) -> float:
        x = np.log(size)
        return float(self.curvature * x * x + self.slope * x + self.level)


def isoflop(
    sizes: Sequence[float] | Float[np.ndarray, " points"], losses: Sequence[float] | Float[np.ndarray, " points"]
) -> IsoFLOP:
    """Fits the parabola of Chinchilla's second approach by least squares.

    Args:
      sizes: parameters of the models, by the caller's convention.
      losses: bits per byte of each.

    Returns:
      The parabola. Its optimum is set only if the smallest loss (mean over runs of one size) is not at either end of
      the sizes, and the parabola is a bowl whose vertex lies between them. If the smallest loss is at an end, that end
      is a bound.

    Raises:
      ValueError: for fewer than three distinct sizes or a loss that is not finite.
    """
    order = np.argsort(sizes, kind="stable")
    x, y = np.log(np.asarray(sizes, float))[order], np.asarray(losses, float)[order]
    if len(np.unique(x)) < 3:
        raise ValueError(f"sizes={list(sizes)!r}: a parabola needs at least three different sizes.")
    if not np.isfinite(y).all():
        raise ValueError(f"losses={list(losses)!r}: every loss must be a finite number.")
    centre = x.mean()
    curvature, slope, level = np.polyfit(x - centre, y, 2)
    parabola = {
        "curvature": float(curvature),
        "slope": float(slope - 2 * curvature * centre),
        "level": float(level - slope * centre + curvature * centre**2),
    }
    distinct = np.unique(x)
    best = int(np.argmin([y[x == value].mean() for value in distinct]))
    if best in (0, len(distinct) - 1):
        bound: Literal["at or below", "at or above"] = "at or below" if best == 0 else "at or above"
        return IsoFLOP(**parabola, optimum=None, loss=None, bound=bound, bound_size=float(np.exp(distinct[best])))
    vertex = centre - slope / (2 * curvature) if curvature > 0 else np.nan
    if not distinct[0] < vertex < distinct[-1]:
        return IsoFLOP(**parabola, optimum=None, loss=None, bound=None, bound_size=None)
    loss = level - slope**2 / (4 * curvature)
    return IsoFLOP(**parabola, optimum=float(np.exp(vertex)), loss=float(loss), bound=None, bound_size=None)
