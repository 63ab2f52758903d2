"""Fits of measured losses: the IsoFLOP parabola and the frontier.

A parabola is a picture: away from a centred grid its vertex is biased. An optimum is reported only where it was
bracketed by measurements; otherwise there is a bound.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np


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


def isoflop(sizes: Sequence[float], losses: Sequence[float]) -> IsoFLOP:
    """Fits the parabola of Chinchilla's second approach by least squares.

    Args:
      sizes: parameters of the models, by the caller's convention.
      losses: bits per byte of each.

    Returns:
      The parabola. Its optimum is set only if the smallest loss is not at either end of the sizes and the vertex lies
      between the sizes next to that smallest loss; if the smallest loss is at an end, that end is a bound.

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
    if not distinct[best - 1] <= vertex <= distinct[best + 1]:
        return IsoFLOP(**parabola, optimum=None, loss=None, bound=None, bound_size=None)
    loss = level - slope**2 / (4 * curvature)
    return IsoFLOP(**parabola, optimum=float(np.exp(vertex)), loss=float(loss), bound=None, bound_size=None)


def frontier(flops: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Indices of the points on the lower convex hull of loss over log FLOPs, as far as it falls, cheapest first."""
    x, y = np.log(np.asarray(flops, float)), np.asarray(losses, float)
    hull: list[int] = []
    for index in sorted(range(len(x)), key=lambda i: (x[i], y[i])):
        if hull and y[index] >= y[hull[-1]]:
            continue  # costs at least as much and is no better
        while len(hull) >= 2 and _above(x, y, hull[-2], hull[-1], index):
            hull.pop()
        hull.append(index)
    return hull


def _above(x: np.ndarray, y: np.ndarray, left: int, middle: int, right: int) -> bool:
    """Whether the middle point lies on or above the line through its neighbours."""
    rise = (y[middle] - y[left]) * (x[right] - x[left])
    return bool(rise >= (y[right] - y[left]) * (x[middle] - x[left]))
