"""The estimators side by side: one call for each, and one table of them all."""

import dataclasses
from typing import Any, Literal, overload

from bltjax.scaling.fit.cost import Cost
from bltjax.scaling.fit.fitted import FittedLaw, Surface, fit_surface
from bltjax.scaling.fit.holdout import Holdout, hold_out_largest
from bltjax.scaling.fit.isoflops import FittedParabolas, fit_parabolas
from bltjax.scaling.fit.points import Points
from bltjax.scaling.fit.resample import LEVEL, Interval

Method = Literal["huber", "projection", "parabola"]
METHODS: tuple[Method, ...] = ("projection", "huber", "parabola")


@overload
def fit_law(
    points: Points, method: Surface, cost: Cost | None = None, draws: int = 1000, seed: int = 0, level: float = LEVEL
) -> FittedLaw: ...


@overload
def fit_law(
    points: Points,
    method: Literal["parabola"],
    cost: Cost | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> FittedParabolas: ...


def fit_law(
    points: Points, method: Method, cost: Cost | None = None, draws: int = 1000, seed: int = 0, level: float = LEVEL
) -> FittedLaw | FittedParabolas:
    """Fits a law to the points of one family.

    Args:
      points: one family's final losses.
      method: "huber" and "projection" fit the surface L(N, D) = E + A / N^alpha + B / D^beta, with patch sizes the
        joint form of `law`; "parabola" fits one parabola a budget.
      cost: along which optima are sought; by default what the points' runs paid for a byte.
      draws: of the bootstrap over clusters; 0: no intervals.
      seed: of the draws; the same seed gives the same intervals.
      level: of the intervals.

    Raises:
      ValueError: for an unknown method, too few points, or too few clusters for intervals.
    """
    if method == "parabola":
        return fit_parabolas(points, cost, draws, seed, level)
    if method not in ("huber", "projection"):
        raise ValueError(f"method={method!r}: choose one of {', '.join(METHODS)}.")
    return fit_surface(points, method, cost, draws, seed, level)


@dataclasses.dataclass(frozen=True, eq=False)
class SideBySide:
    """Every estimator on the same points, with the error of each at the largest budget held out."""

    fits: tuple[FittedLaw | FittedParabolas, ...]
    holdouts: tuple[Holdout, ...]
    notes: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each estimator: a table."""
        out = []
        for fit in self.fits:
            size, data = fit.exponents()
            row: dict[str, Any] = {"estimator": fit.estimator}
            named: dict[str, Interval] = {"size_exponent": size, "bytes_exponent": data}
            if isinstance(fit, FittedLaw):
                named |= {name: fit.parameter(name) for name in ("E", "alpha", "beta")}
            for name, value in named.items():
                row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            out.append(row)
        return out

    def summary(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "fits": [fit.summary() for fit in self.fits],
            "holdouts": [{**dataclasses.asdict(h), "mean": h.mean, "rms": h.rms} for h in self.holdouts],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return "\n".join([*map(str, self.fits), *map(str, self.holdouts), *self.notes])


def side_by_side(points: Points, draws: int = 1000, seed: int = 0) -> SideBySide:
    """Fits points with budgets by every estimator and holds the largest budget out of each surface."""
    fits = tuple(fit_law(points, method, draws=draws, seed=seed) for method in METHODS)
    holdouts, notes = [], []
    for method in METHODS:
        if method == "parabola":
            continue
        try:
            holdouts.append(hold_out_largest(points, method))
        except ValueError as error:
            notes.append(f"the largest budget cannot be held out: {error}")
    return SideBySide(fits, tuple(holdouts), tuple(dict.fromkeys(notes)))
