"""The lower convex hull of final losses over compute: the frontier as it was measured, without a law."""

from collections.abc import Sequence

import numpy as np


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
