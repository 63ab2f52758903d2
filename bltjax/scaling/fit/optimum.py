"""The best size at a budget: the least loss along the family's own cost, within the sizes that were measured.

A minimum at an end of those sizes is no optimum: the best size lies there or beyond, and that is what is said.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from bltjax.scaling.fit.cost import Cost
from bltjax.scaling.fit.law import Frame
from bltjax.scaling.fit.points import Points
from bltjax.scaling.fit.resample import Interval

Bound = Literal["at or below", "at or above"]

_GRID = 257  # sizes of the first search
_ZOOM, _ZOOMS = 9, 9  # sizes of the further ones, each between the neighbours of the best so far


@dataclasses.dataclass(frozen=True)
class Reach:
    """What was measured: beyond it a number is an extrapolation, and says so."""

    size: tuple[float, float]
    bytes: tuple[float, float]
    flops: tuple[float, float]
    seconds: tuple[float, float] | None
    patch_size: tuple[float, float] | None

    @classmethod
    def of(cls, points: Points) -> "Reach":
        def ends(values: np.ndarray) -> tuple[float, float]:
            return float(values.min()), float(values.max())

        return cls(
            ends(points.size),
            ends(points.bytes),
            ends(points.flops),
            None if points.seconds is None else ends(points.seconds),
            None if points.patch_size is None else ends(points.patch_size),
        )

    def beyond(self, **values: float) -> tuple[str, ...]:
        """In words, which of the values lie outside of what was measured, and how far.

        A value within 10 % of an end is not called an extrapolation: a run's FLOPs differ from its budget by a step.
        """
        out = []
        for name, value in values.items():
            low, high = getattr(self, name)
            if value > 1.1 * high:
                out.append(f"{name} {value / high:.3g} times the largest measured")
            elif value < low / 1.1:
                out.append(f"{name} {low / value:.3g} times below the least measured")
        return tuple(out)


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best model at a budget, or a bound on its size."""

    budget: float
    size: Interval  # value None: the minimum lies at an end of the sizes, see `bound`
    bytes: Interval
    loss: Interval  # of the best size within those measured; at a bound an upper bound of the optimum's
    patch_size: float | None = None
    bound: Bound | None = None
    bound_size: float | None = None
    extrapolated: tuple[str, ...] = ()

    def __str__(self) -> str:
        note = f"  EXTRAPOLATED: {'; '.join(self.extrapolated)}" if self.extrapolated else ""
        if self.bound is not None:
            return f"no optimum: N is {self.bound} {self.bound_size:.4g}, loss at most {self.loss}{note}"
        return f"N {self.size}, {self.bytes} bytes, loss {self.loss}{note}"


@dataclasses.dataclass(frozen=True, eq=False)
class Minima:
    """The least losses at one budget, for many rows of numbers at once."""

    size: Float[np.ndarray, " draws"]
    bytes: Float[np.ndarray, " draws"]
    loss: Float[np.ndarray, " draws"]
    edge: Int[np.ndarray, " draws"]  # -1: at the smallest size, 1: at the largest, 0: between


def minimise(
    theta: Float[np.ndarray, "draws parameters"],
    frame: Frame,
    cost: Cost,
    budget: float,
    sizes: tuple[float, float],
    patch_size: float | None = None,
) -> Minima:
    """The least losses along the cost at a budget, by a grid of sizes and finer ones around its best.

    Args:
      theta: laws in the frame.
      budget: in the cost's unit.
      sizes: between which the size is sought.
      patch_size: of laws that have one.
    """

    def losses(x: Float[np.ndarray, "rows grid"]) -> Float[np.ndarray, "draws grid"]:
        size = np.exp(x)
        patch_sizes = None if patch_size is None else np.full(x.shape, patch_size)
        return frame.place(size, cost.bytes_within(budget, size, patch_size), patch_sizes).predict(theta)

    rows = np.arange(len(theta))
    low, high = np.log(sizes[0]), np.log(sizes[1])
    x = np.linspace(low, high, _GRID)[None]
    best = losses(x).argmin(axis=1)
    edge = np.where(best == 0, -1, np.where(best == _GRID - 1, 1, 0))
    centre, width = x[0, best], (high - low) / (_GRID - 1)
    for _ in range(_ZOOMS):
        x = np.clip(centre[:, None] + width * np.linspace(-1, 1, _ZOOM), low, high)
        found = losses(x)
        best = found.argmin(axis=1)
        centre, width = x[rows, best], width * 2 / (_ZOOM - 1)
    # A minimum that the finer grids moved off the end of the sizes is one between them.
    edge = np.where((edge == -1) & (centre > low) | (edge == 1) & (centre < high), 0, edge)
    size = np.exp(centre)
    return Minima(size, cost.bytes_within(budget, size, patch_size), found[rows, best], edge)


def exponents(
    budgets: Float[np.ndarray, " budgets"], values: Float[np.ndarray, "draws budgets"]
) -> Float[np.ndarray, " draws"]:
    """Slopes of ln values over ln budgets by least squares, leaving out what is no number; nan with fewer than two."""
    given = np.isfinite(values)
    x = np.where(given, np.log(budgets), 0.0)
    y = np.where(given, np.log(np.where(given, values, 1.0)), 0.0)
    number = given.sum(axis=1)
    enough = number >= 2
    mean_x, mean_y = x.sum(axis=1) / np.maximum(number, 1), y.sum(axis=1) / np.maximum(number, 1)
    dx, dy = (x - mean_x[:, None]) * given, (y - mean_y[:, None]) * given
    spread = (dx**2).sum(axis=1)
    return np.where(enough, (dx * dy).sum(axis=1) / np.where(enough, spread, 1.0), np.nan)


@dataclasses.dataclass(frozen=True)
class PatchScaling:
    """N* = size C^size_flops T^size_patch, and D* likewise: how optima move with budget and patch size."""

    size: float
    size_flops: float
    size_patch: float
    bytes: float
    bytes_flops: float
    bytes_patch: float


def scale_with_patch(optima: list[Optimum]) -> PatchScaling:
    """The power laws of the optima in budget and patch size (the form of Compute Optimal Tokenization).

    Raises:
      ValueError: unless there are optima, not bounds, at two budgets and two patch sizes at least.
    """
    inner = [o for o in optima if o.bound is None and o.patch_size is not None]
    columns = [(np.log(o.budget), np.log(o.patch_size or 1.0)) for o in inner]
    design = np.array([(1.0, *row) for row in columns])
    if len(inner) < 3 or np.linalg.matrix_rank(design) < 3:
        raise ValueError(f"optima: {len(inner)} that are not bounds; give some at two budgets and two patch sizes.")
    size = np.linalg.lstsq(design, np.log([o.size.value or 1.0 for o in inner]), rcond=None)[0]
    data = np.linalg.lstsq(design, np.log([o.bytes.value or 1.0 for o in inner]), rcond=None)[0]
    return PatchScaling(
        float(np.exp(size[0])), float(size[1]), float(size[2]), float(np.exp(data[0])), float(data[1]), float(data[2])
    )
