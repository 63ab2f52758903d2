"""Chinchilla's second approach: a parabola for each budget, and power laws through the vertices.

A picture, and the estimator that is biased wherever alpha and beta differ or a grid is off its centre: the surfaces of
`fitted` give the numbers. It stands beside them so that the difference is seen.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from bltjax.scaling.fit.cost import Cost, Unit, of_points
from bltjax.scaling.fit.curve import Curve
from bltjax.scaling.fit.optimum import Optimum, Reach, exponents
from bltjax.scaling.fit.parabola import IsoFLOP, isoflop
from bltjax.scaling.fit.points import Points
from bltjax.scaling.fit.resample import LEVEL, Interval, interval, weights

NAME = "IsoFLOP parabola in ln N (biased off centre and where alpha and beta differ)"


@dataclasses.dataclass(frozen=True, eq=False)
class FittedParabolas:
    """The parabolas of all budgets and their bootstrap draws.

    Attributes:
      points: that they were fitted to.
      cost: that says how many bytes an optimum sees.
      parabolas: one for each budget, ascending; None where there are fewer than three sizes.
      sizes: vertices of each draw; nan where a draw has none, infinite with a sign where its minimum is at an end.
      losses: there, in bits per byte.
      seed: of the draws.
      warnings: what a reader should know.
    """

    points: Points
    cost: Cost
    parabolas: tuple[IsoFLOP | None, ...]
    sizes: Float[np.ndarray, "draws budgets"]
    losses: Float[np.ndarray, "draws budgets"]
    seed: int
    level: float
    warnings: tuple[str, ...]

    @property
    def estimator(self) -> str:
        return NAME

    def budgets(self) -> Float[np.ndarray, " budgets"]:
        return self.points.budgets()

    def optima(self) -> list[Optimum]:
        """The vertex, or a bound, at each budget that has a parabola."""
        reach, out = Reach.of(self.points), []
        for index, (budget, parabola) in enumerate(zip(self.budgets(), self.parabolas, strict=True)):
            if parabola is None or (parabola.optimum is None and parabola.bound is None):
                continue  # too few sizes, or no bowl: nothing is known, and `warnings` says so
            drawn, losses = self.sizes[:, index], self.losses[:, index]
            size, data = parabola.optimum, None
            if size is not None:
                data = float(self.cost.bytes_within(float(budget), np.array([size]))[0])
            finite = np.isfinite(drawn)
            seen = np.where(finite, 1.0, -drawn)
            seen[finite] = self.cost.bytes_within(float(budget), drawn[finite])
            out.append(
                Optimum(
                    budget=float(budget),
                    size=interval(size, drawn, self.level),
                    bytes=interval(data, seen, self.level),
                    loss=interval(parabola.loss, losses, self.level),
                    bound=parabola.bound,
                    bound_size=parabola.bound_size,
                    extrapolated=reach.beyond(**{self.points.equal: float(budget)}),
                )
            )
        return out

    def exponents(self) -> tuple[Interval, Interval]:
        """Of C in the best size and in the best number of bytes, over the budgets that have an optimum.

        A budget is left out where more than half of the draws have none.
        """
        inner = [p is not None and p.optimum is not None for p in self.parabolas]
        known = np.array(inner) & (np.isfinite(self.sizes).mean(axis=0) >= 0.5 if len(self.sizes) else True)
        budgets = self.budgets()
        first = np.array([[p.optimum if p is not None and p.optimum is not None else np.nan for p in self.parabolas]])
        sizes = np.concatenate([first, np.where(np.isfinite(self.sizes), self.sizes, np.nan)])[:, known]
        data = np.full(sizes.shape, np.nan)
        for index, budget in enumerate(budgets[known]):
            given = ~np.isnan(sizes[:, index])
            data[given, index] = self.cost.bytes_within(float(budget), sizes[given, index])
        out = []
        for values in (sizes, data):
            slopes = exponents(budgets[known], values)
            out.append(interval(None if np.isnan(slopes[0]) else float(slopes[0]), slopes[1:], self.level))
        return out[0], out[1]

    def frontier(self, unit: Unit | None = None) -> Curve:
        """Straight lines between the vertices' losses over ln C, from the first budget that has one to the last.

        Raises:
          ValueError: for another unit than that of the budgets, or with fewer than two vertices.
        """
        equal = self.points.equal
        if unit not in (None, equal):
            words = "FLOPs" if equal == "flops" else equal
            raise ValueError(f"unit={unit!r}: parabolas are fitted at equal {words}; fit a surface.")
        known = [i for i, p in enumerate(self.parabolas) if p is not None and p.optimum is not None]
        if len(known) < 2:
            raise ValueError(f"budgets: {len(known)} have a vertex; a frontier needs two.")
        first = np.array([p.loss for p in self.parabolas if p is not None and p.loss is not None])
        label = f"training FLOPs ({self.points.about.accounting})" if equal == "flops" else "device seconds"
        bounded = np.zeros(len(known), bool)
        losses = self.losses[:, known]
        about = self.points.about
        return Curve(
            about, label, NAME, self.budgets()[known], first, losses, bounded, self.seed, self.level
        )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """All of it as JSON values."""
        size, data = self.exponents()
        return {
            "about": dataclasses.asdict(self.points.about),
            "estimator": NAME,
            "points": len(self.points),
            "clusters": len(set(self.points.cluster)),
            "bootstrap": {"draws": len(self.sizes), "seed": self.seed, "level": self.level, "clusters": "resampled"},
            "cost": self.cost.label,
            "headline": {"size_exponent": dataclasses.asdict(size), "bytes_exponent": dataclasses.asdict(data)},
            "optima": [dataclasses.asdict(optimum) for optimum in self.optima()],
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        about, (size, data) = self.points.about, self.exponents()
        lines = [
            f"{about.name}: parabolas in {about.loss}",
            f"  estimator: {NAME}",
            f"  N: {about.size}; cost: {self.cost.label}; scored on {about.scored}; seeds {about.seeds}",
            f"  {len(self.points)} points of {len(set(self.points.cluster))} trunks",
            f"  N* ~ C^a, a = {size}; bytes* ~ C^b, b = {data}",
            *(f"  at {optimum.budget:.3g}: {optimum}" for optimum in self.optima()),
        ]
        return "\n".join(lines + [f"  note: {warning}" for warning in self.warnings])


def fit_parabolas(
    points: Points, cost: Cost | None = None, draws: int = 1000, seed: int = 0, level: float = LEVEL
) -> FittedParabolas:
    """Fits a parabola to each budget; see `fit_law`."""
    if points.patch_size is not None:
        raise ValueError("patch_size: a parabola is of one patch size; give the points of each apart.")
    budgets = points.budgets()
    parabolas, warnings = [], [*points.warnings()]
    for budget in budgets:
        own = points.where(points.budget == budget)
        if len(np.unique(own.size)) < 3:
            parabolas.append(None)
            warnings.append(f"at {budget:.3g}: fewer than three sizes, no parabola")
            continue
        parabolas.append(isoflop(own.size, own.loss))
        if parabolas[-1].optimum is None and parabolas[-1].bound is None:
            warnings.append(f"at {budget:.3g}: the points are no bowl, no optimum")
    sizes, losses = np.full((draws, len(budgets)), np.nan), np.full((draws, len(budgets)), np.nan)
    if draws:
        times = weights(points.cluster, draws, seed).astype(int)
        for index, budget in enumerate(budgets):
            own = points.budget == budget
            for draw in range(draws):
                sizes[draw, index], losses[draw, index] = _vertex(points.size[own], points.loss[own], times[draw, own])
    return FittedParabolas(
        points, cost or of_points(points, points.equal), tuple(parabolas), sizes, losses, seed, level, tuple(warnings)
    )


def _vertex(sizes: np.ndarray, losses: np.ndarray, times: np.ndarray) -> tuple[float, float]:
    """Size and loss at the vertex of one draw; an infinite size where the minimum is at an end."""
    sizes, losses = np.repeat(sizes, times), np.repeat(losses, times)
    if len(np.unique(sizes)) < 3:
        return np.nan, np.nan
    found = isoflop(sizes, losses)
    if found.optimum is not None and found.loss is not None:
        return found.optimum, found.loss
    return {"at or below": -np.inf, "at or above": np.inf}.get(found.bound or "", np.nan), np.nan
