"""A law fitted to points, with what can be read from it: optima, exponents, frontiers, each with an interval."""

import dataclasses
import functools
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from bltjax.scaling.fit import huber, projection
from bltjax.scaling.fit.cost import Cost, Unit, of_points
from bltjax.scaling.fit.curve import Curve
from bltjax.scaling.fit.law import Frame, Law, at_edge
from bltjax.scaling.fit.optimum import Minima, Optimum, Reach, exponents, minimise
from bltjax.scaling.fit.points import Points
from bltjax.scaling.fit.refine import refine, squared
from bltjax.scaling.fit.resample import FEW_CLUSTERS, LEVEL, Interval, interval, weights

Surface = Literal["huber", "projection"]
HEADLINES = ("E", "alpha", "beta")  # A and B are not: they change with the units and with the exponents

_ESTIMATORS = {"huber": huber.NAME, "projection": projection.NAME}
_SMOOTH = {"huber": True, "projection": False}  # how clusters are drawn: each where its intervals hold what they say
_CURVE_POINTS = 65


@dataclasses.dataclass(frozen=True, eq=False)
class FittedLaw:
    """A surface L(N, D), or L(N, D, T), and its bootstrap draws.

    Attributes:
      points: that it was fitted to.
      method: "huber" or "projection".
      frame: in which `theta` and `draws` are rows of numbers.
      theta: the fit to all points.
      objective: what was minimised, at its minimum.
      cost: along which optima are sought.
      draws: of the bootstrap over clusters; no rows without one.
      seed: of the draws.
      warnings: what a reader should know.
    """

    points: Points
    method: Surface
    frame: Frame
    theta: Float[np.ndarray, " parameters"]
    objective: float
    cost: Cost
    draws: Float[np.ndarray, "draws parameters"]
    seed: int
    level: float
    warnings: tuple[str, ...]

    @property
    def estimator(self) -> str:
        return _ESTIMATORS[self.method]

    @property
    def drawn(self) -> str:
        """How the bootstrap draws clusters."""
        return "exponential weights" if _SMOOTH[self.method] else "resampled"

    @property
    def law(self) -> Law:
        return self.frame.law(self.theta)

    @functools.cached_property
    def reach(self) -> Reach:
        return Reach.of(self.points)

    def parameter(self, name: str) -> Interval:
        """E, A, alpha, B or beta with its interval."""
        return interval(getattr(self.law, name), self.frame.parameter(name, self.draws), self.level)

    def loss(self, size: float, bytes: float, patch_size: float | None = None) -> Interval:
        """Bits per byte that the law gives a model, with the interval of the mean (not of one run's noise)."""
        patch_sizes = None if patch_size is None else np.array([patch_size])
        coordinates = self.frame.place(np.array([size]), np.array([bytes]), patch_sizes)
        return interval(float(coordinates.predict(self.theta)[0]), coordinates.predict(self.draws)[..., 0], self.level)

    def residuals(self) -> Float[np.ndarray, " points"]:
        """Measured minus fitted, in bits per byte."""
        return self.points.loss - self.frame.coordinates(self.points).predict(self.theta)

    def optimum(self, budget: float, patch_size: float | None = None, unit: Unit | None = None) -> Optimum:
        """The best size at a budget, within the sizes measured; a bound where the least loss is at their end.

        Args:
          budget: FLOPs or seconds.
          patch_size: for a law that has one.
          unit: of the budget; None: that of the study's.
        """
        unit = unit or self.points.equal
        minima = self._minima(budget, patch_size, unit)
        edge, size = int(minima.edge[0]), float(minima.size[0])
        drawn, seen = minima.size[1:].copy(), minima.bytes[1:].copy()
        for side in (-1, 1):  # beyond an end a draw says no more than on which side it lies
            drawn[minima.edge[1:] == side], seen[minima.edge[1:] == side] = side * np.inf, -side * np.inf
        beyond: dict[str, float] = {unit: budget, "bytes": float(minima.bytes[0])}
        inner = edge == 0
        return Optimum(
            budget=budget,
            size=interval(size if inner else None, drawn, self.level),
            bytes=interval(float(minima.bytes[0]) if inner else None, seen, self.level),
            loss=interval(float(minima.loss[0]), minima.loss[1:], self.level),
            patch_size=patch_size,
            bound=None if inner else "at or below" if edge < 0 else "at or above",
            bound_size=None if inner else size,
            extrapolated=self.reach.beyond(**beyond),
        )

    def _minima(self, budget: float, patch_size: float | None, unit: Unit) -> Minima:
        """Of the fit to all points, and after it of the draws; sought once."""
        asked = budget, patch_size, unit
        if asked not in self._found:
            theta = np.concatenate([self.theta[None], self.draws])
            cost = self._cost_in(unit)
            self._found[asked] = minimise(theta, self.frame, cost, budget, self.reach.size, patch_size)
        return self._found[asked]

    @functools.cached_property
    def _found(self) -> dict[tuple[float, float | None, Unit], Minima]:
        return {}

    def _cost_in(self, unit: Unit) -> Cost:
        return self.cost if unit == self.cost.unit else of_points(self.points, unit)

    def budgets(self) -> Float[np.ndarray, " budgets"]:
        """Those of the points; without any, five from the least FLOPs of a point to the most."""
        if self.points.budget is not None:
            return self.points.budgets()
        return np.geomspace(*self._reach_in(self.points.equal), 5)

    def _reach_in(self, unit: Unit) -> tuple[float, float]:
        ends: tuple[float, float] | None = getattr(self.reach, unit)
        if ends is None:
            raise ValueError(f"unit={unit!r}: these points have no device seconds.")
        return ends

    def optima(self, patch_size: float | None = None) -> list[Optimum]:
        """The optimum, or bound, at each budget of the study."""
        return [self.optimum(float(budget), patch_size) for budget in self.budgets()]

    def exponents(self, patch_size: float | None = None) -> tuple[Interval, Interval]:
        """Of C in the best size and in the best number of bytes: slopes over the study's budgets with an optimum.

        A budget is left out where the minimum, or that of more than half of the draws, is at an end of the sizes.
        """
        budgets = self.budgets()
        minima = [self._minima(float(budget), patch_size, self.points.equal) for budget in budgets]
        edge = np.stack([each.edge for each in minima], axis=1)
        known = (edge[0] == 0) & ((edge[1:] != 0).mean(axis=0) <= 0.5 if len(self.draws) else True)
        out = []
        for name in ("size", "bytes"):
            values = np.stack([getattr(each, name) for each in minima], axis=1)
            slopes = exponents(budgets[known], np.where(edge == 0, values, np.nan)[:, known])
            out.append(interval(None if np.isnan(slopes[0]) else float(slopes[0]), slopes[1:], self.level))
        return out[0], out[1]

    def frontier(self, unit: Unit | None = None, patch_size: float | None = None) -> Curve:
        """The least loss at every budget of the measured range, in FLOPs or in seconds; None: as the budgets are."""
        unit = unit or self.points.equal
        if unit == self.points.equal:
            ends = float(self.budgets()[0]), float(self.budgets()[-1])
        else:
            ends = self._reach_in(unit)
        x = np.geomspace(*ends, _CURVE_POINTS)
        minima = [self._minima(float(budget), patch_size, unit) for budget in x]
        losses = np.stack([each.loss for each in minima], axis=1)
        bounded = np.array([each.edge[0] != 0 for each in minima])
        return self._curve(unit, "", x, losses, bounded)

    def at_size(self, size: float, unit: Unit | Literal["bytes"] = "flops", patch_size: float | None = None) -> Curve:
        """The loss of one size, trained for longer and longer: a curve of equal inference cost.

        Args:
          size: N.
          unit: of the horizontal axis; its range is that which this study's runs spent.
          patch_size: for a law that has one.
        """
        if self.reach.beyond(size=size):
            raise ValueError(f"size={size:g}: {self.reach.beyond(size=size)[0]}.")
        ends: tuple[float, float] | None = getattr(self.reach, unit)
        if ends is None:
            raise ValueError(f"unit={unit!r}: these points have no such column.")
        x = np.geomspace(ends[0], ends[1], _CURVE_POINTS)
        seen = x
        if unit != "bytes":
            cost = self._cost_in(unit)
            per_byte = cost.per_byte(np.array([size]), patch_size)
            seen = (x - cost.shared) / per_byte
            x, seen = x[seen > 0], seen[seen > 0]
        theta = np.concatenate([self.theta[None], self.draws])
        patch_sizes = None if patch_size is None else np.full(len(x), patch_size)
        losses = self.frame.place(np.full(len(x), size), seen, patch_sizes).predict(theta)
        return self._curve(unit, f" of N = {size:.4g}", x, losses, np.zeros(len(x), bool))

    def _curve(self, unit: str, what: str, x: np.ndarray, losses: np.ndarray, bounded: np.ndarray) -> Curve:
        label = {"flops": f"training FLOPs ({self.points.about.accounting})", "seconds": "device seconds"}
        about = dataclasses.replace(self.points.about, name=f"{self.points.about.name}{what}")
        return Curve(
            about=about,
            x_label=label.get(unit, "bytes seen"),
            estimator=self.estimator,
            x=x,
            loss=losses[0],
            draws=losses[1:],
            bounded=bounded,
            seed=self.seed,
            level=self.level,
        )

    def summary(self) -> dict[str, Any]:
        """All of it as JSON values; the headline numbers apart from those that mean nothing alone."""
        size, data = (None, None) if self.frame.patch_size is not None else self.exponents()
        law = dataclasses.asdict(self.law)
        return {
            "about": dataclasses.asdict(self.points.about),
            "estimator": self.estimator,
            "points": len(self.points),
            "clusters": len(set(self.points.cluster)),
            "bootstrap": {"draws": len(self.draws), "seed": self.seed, "level": self.level, "clusters": self.drawn},
            "cost": self.cost.label,
            "headline": {name: dataclasses.asdict(self.parameter(name)) for name in HEADLINES}
            | ({} if size is None else {"size_exponent": dataclasses.asdict(size)})
            | ({} if data is None else {"bytes_exponent": dataclasses.asdict(data)}),
            "law": law,
            "objective": self.objective,
            "residual_rms": float(np.sqrt((self.residuals() ** 2).mean())),
            "optima": [] if self.frame.patch_size is not None else [dataclasses.asdict(o) for o in self.optima()],
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        about = self.points.about
        lines = [
            f"{about.name}: L(N, bytes{'' if self.frame.patch_size is None else ', patch size'}) in {about.loss}",
            f"  estimator: {self.estimator}",
            f"  N: {about.size}; cost: {self.cost.label}; scored on {about.scored}; seeds {about.seeds}",
            f"  {len(self.points)} points of {len(set(self.points.cluster))} trunks; {_bootstrap(self)}",
            *(f"  {name:<5} {self.parameter(name)}" for name in HEADLINES),
        ]
        if self.frame.patch_size is None:
            size, data = self.exponents()
            lines += [f"  N* ~ C^a, a = {size}; bytes* ~ C^b, b = {data}"]
            lines += [f"  at {o.budget:.3g}: {o}" for o in self.optima()]
        lines += [f"  rms of residuals {np.sqrt((self.residuals() ** 2).mean()):.4f} {about.loss}"]
        return "\n".join(lines + [f"  note: {warning}" for warning in self.warnings])


def _bootstrap(fit: FittedLaw) -> str:
    if not len(fit.draws):
        return "no intervals"
    return f"{fit.level:.0%} intervals by {len(fit.draws)} bootstrap draws over trunks ({fit.drawn}), seed {fit.seed}"


def fit_surface(
    points: Points,
    method: Surface,
    cost: Cost | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> FittedLaw:
    """Fits L(N, D), or with patch sizes L(N, D, T), by one estimator; see `fit_law`."""
    frame = Frame.of(points)
    coordinates = frame.coordinates(points)
    needed = len(frame.parameters) + 1
    named = [column for column in (points.size, points.bytes, points.patch_size) if column is not None]
    different = len(np.unique(np.stack(named), axis=1).T)
    sizes, data = len(np.unique(points.size)), len(np.unique(points.bytes))
    if different < needed or sizes < 3 or data < 3:
        raise ValueError(
            f"points: {different} different ones of {sizes} sizes; this law of {needed - 1} numbers needs {needed}, "
            "with three sizes and three numbers of bytes at least."
        )
    estimator = huber.fit if method == "huber" else projection.fit
    theta, objective = estimator(coordinates, points.loss, np.ones(len(points)))
    warnings = [*points.warnings()]
    drawn = np.empty((0, len(theta)))
    if draws:
        times = weights(points.cluster, draws, seed, smooth=_SMOOTH[method])
        losses = np.tile(points.loss, (draws, 1))
        transform = huber.logarithmic if method == "huber" else squared
        drawn, converged = refine(coordinates, losses, times, np.tile(theta, (draws, 1)), transform)
        if not converged.all():
            warnings.append(f"{(~converged).sum()} of {draws} bootstrap draws did not converge")
        clusters = len(set(points.cluster))
        if clusters < FEW_CLUSTERS:
            warnings.append(f"only {clusters} trunks or runs of their own: intervals of so few are rough")
    edges = at_edge(frame.law(theta))
    if edges:
        warnings.append(f"the search for {' and '.join(edges)} ended at its end: the points do not determine it")
    if len(points) < 2 * len(theta):
        warnings.append(f"only {len(points)} points for {len(theta)} numbers")
    return FittedLaw(
        points, method, frame, theta, objective, cost or of_points(points, points.equal), drawn, seed, level,
        tuple(warnings),
    )  # fmt: skip
