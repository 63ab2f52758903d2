"""Two families compared: how much compute one saves the other, and where their curves cross."""

import dataclasses

import numpy as np
from jaxtyping import Float

from bltjax.scaling.fit.curve import Curve
from bltjax.scaling.fit.optimum import exponents
from bltjax.scaling.fit.resample import Interval, interval

_GRID = 257
_CROSSING = 0.975  # the share of draws that must cross for a crossover to be given


@dataclasses.dataclass(frozen=True)
class Gain:
    """Compute-equivalent gain of A over B: B's spending that reaches A's loss, divided by A's spending.

    More than 1: A is as good as B with so many times the compute. In seconds it is the time-equivalent gain.
    """

    a: str
    b: str
    x_label: str
    estimators: tuple[str, str]
    seeds: tuple[int, int]
    x: tuple[float, ...]
    gains: tuple[Interval, ...]  # value None: B reaches A's loss outside of what was measured of B; see `sides`
    sides: tuple[str, ...]  # "", or "more than" / "less than" the ratio in `limits`
    limits: tuple[float | None, ...]
    slope: Interval  # of ln gain over ln spending: whether the gain grows with scale
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"compute-equivalent gain of {self.a} over {self.b}, in {self.x_label}"]
        for x, gain, side, limit in zip(self.x, self.gains, self.sides, self.limits, strict=True):
            lines.append(f"  at {x:.3g}: {gain if not side else f'{side} {limit:.3g} (end of what was measured)'}")
        lines.append(f"  slope d ln gain / d ln spending: {self.slope}")
        lines.append(f"  estimators: {'; '.join(dict.fromkeys(self.estimators))}; seeds {self.seeds}")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


@dataclasses.dataclass(frozen=True)
class Crossover:
    """Where A becomes better than B, or B than A, as spending grows; or that they do not cross where measured."""

    a: str
    b: str
    x_label: str
    estimators: tuple[str, str]
    seeds: tuple[int, int]
    range: tuple[float, float]  # that both were measured over
    x: Interval | None  # None: none in range
    crossing: float  # share of draws that cross there; 1 or 0 without draws
    better_before: str  # at the low end of the range
    better_after: str  # at its high end
    notes: tuple[str, ...]
    draws: int = 0  # 0: no intervals

    def __str__(self) -> str:
        low, high = self.range
        where = f"from {low:.3g} to {high:.3g} {self.x_label}"
        share = f"{self.crossing:.1%} of the draws cross there" if self.draws else "no draws, so no interval"
        if self.x is None:
            end = f"better at its end: {self.better_after}"
            head = f"{self.a} and {self.b}: no crossover in range ({where}; {share}; {end})"
        else:
            head = f"{self.a} and {self.b}: {self.better_after} is better above {self.x} ({where}; {share})"
        return "\n".join([head, *(f"  note: {note}" for note in self.notes)])


def _check(a: Curve, b: Curve) -> None:
    for what, own, other in (
        ("x_label", a.x_label, b.x_label),
        ("loss", a.about.loss, b.about.loss),
        ("scored", a.about.scored, b.about.scored),
    ):
        if own != other:
            raise ValueError(f"{what}: {own!r} beside {other!r}; only like is compared with like.")
    if bool(len(a.draws)) != bool(len(b.draws)):
        raise ValueError(f"draws: {len(a.draws)} beside {len(b.draws)}; give both curves intervals or neither.")
    if a.level != b.level:
        raise ValueError(f"level: {a.level} beside {b.level}; fit both with one.")


def _notes(a: Curve, b: Curve) -> tuple[str, ...]:
    out = []
    for curve in (a, b):
        if curve.bounded.any():
            ends = curve.x[curve.bounded]
            out.append(
                f"{curve.about.name}: from {ends.min():.3g} to {ends.max():.3g} the best size is at an end of those "
                "measured, so that its loss there is an upper bound"
            )
    if a.estimator != b.estimator:
        out.append("the curves come from different estimators")
    return tuple(out)


def _pairs(a: Curve, b: Curve) -> int:
    """Draws of both; the families' runs are independent, so any pairing of draws will do."""
    return min(len(a.draws), len(b.draws))


def compute_equivalent_gain(a: Curve, b: Curve, x: Float[np.ndarray, " spendings"] | None = None) -> Gain:
    """The spending of B that reaches A's loss, divided by that of A, and how it changes with scale.

    Args:
      a, b: frontiers (or fixed sizes) of the two, over the same kind of spending.
      x: spendings of A at which it is asked for; by default five over the range of A.

    Raises:
      ValueError: if the curves are of different accountings, units or held-out texts, or for an x outside of A's.
    """
    _check(a, b)
    at = np.geomspace(a.x[0], a.x[-1], 5) if x is None else np.asarray(x, np.float64)
    loss, drawn = a.at(at)
    value = b.inverse(b.loss[None], loss[None])[0] / at
    pairs = _pairs(a, b)
    draws = b.inverse(b.draws[:pairs], drawn[:pairs]) / at if pairs else np.empty((0, len(at)))
    gains, sides, limits = [], [], []
    for index, ratio in enumerate(value):
        inside = 0 < ratio < np.inf
        gains.append(interval(float(ratio) if inside else None, _open(draws[:, index]), a.level))
        sides.append("" if inside else "more than" if ratio > 0 else "less than")
        limits.append(None if inside else float((b.x[-1] if ratio > 0 else b.x[0]) / at[index]))
    fine = np.geomspace(a.x[0], a.x[-1], _GRID)
    slope = _slopes(fine, b.inverse(b.loss[None], a.at(fine)[0][None]) / fine)
    slopes = np.empty(0)
    if pairs:
        slopes = _slopes(fine, b.inverse(b.draws[:pairs], a.at(fine)[1][:pairs]) / fine)
    return Gain(
        a=a.about.name,
        b=b.about.name,
        x_label=a.x_label,
        estimators=(a.estimator, b.estimator),
        seeds=(a.seed, b.seed),
        x=tuple(map(float, at)),
        gains=tuple(gains),
        sides=tuple(sides),
        limits=tuple(limits),
        slope=interval(None if np.isnan(slope[0]) else float(slope[0]), slopes, a.level, least_inside=_CROSSING),
        notes=_notes(a, b),
    )


def _open(draws: Float[np.ndarray, " draws"]) -> Float[np.ndarray, " draws"]:
    """A gain of zero is one below what was measured: an end that is open."""
    return np.where(draws == 0, -np.inf, draws)


def _slopes(x: Float[np.ndarray, " grid"], gains: Float[np.ndarray, "rows grid"]) -> Float[np.ndarray, " rows"]:
    """Of ln gain over ln x, from those that were measured."""
    return exponents(x, np.where((gains > 0) & np.isfinite(gains), gains, np.nan))


def crossover(a: Curve, b: Curve) -> Crossover:
    """Where the two curves cross within the range that both were measured over; nothing is extrapolated.

    It is given where the fitted curves cross once and at least 97.5 % of the draws cross; its interval is that of the
    crossings of the draws, with a draw that does not cross counted beyond the end where the curves are nearer.

    Raises:
      ValueError: if the curves are of different accountings, units or held-out texts, or have no common range.
    """
    _check(a, b)
    low, high = float(max(a.x[0], b.x[0])), float(min(a.x[-1], b.x[-1]))
    if low >= high:
        raise ValueError(
            f"{a.about.name} was measured from {a.x[0]:.3g} to {a.x[-1]:.3g}, {b.about.name} from {b.x[0]:.3g} to "
            f"{b.x[-1]:.3g} {a.x_label}: they have no range in common."
        )
    x = np.geomspace(low, high, _GRID)
    x[[0, -1]] = low, high
    (loss_a, drawn_a), (loss_b, drawn_b) = a.at(x), b.at(x)
    pairs = _pairs(a, b)
    found = _roots(x, loss_a - loss_b)
    notes = list(_notes(a, b))
    if len(found) > 1:
        notes.append(f"the fitted curves cross {len(found)} times, at {', '.join(f'{root:.3g}' for root in found)}")
    crossings = np.full(pairs, np.nan)
    for row in range(pairs):
        difference = drawn_a[row] - drawn_b[row]
        roots = _roots(x, difference)
        if len(roots):
            crossings[row] = roots[np.argmin(np.abs(np.log(roots / found[0])))] if len(found) else roots[0]
        elif np.isfinite(difference).all():
            crossings[row] = np.inf if abs(difference[-1]) < abs(difference[0]) else -np.inf
    share = float(np.isfinite(crossings).mean()) if pairs else float(len(found) > 0)
    given = len(found) == 1 and share >= _CROSSING
    first, last = loss_a[0] - loss_b[0], loss_a[-1] - loss_b[-1]
    return Crossover(
        a=a.about.name,
        b=b.about.name,
        x_label=a.x_label,
        estimators=(a.estimator, b.estimator),
        seeds=(a.seed, b.seed),
        range=(low, high),
        x=interval(float(found[0]), crossings, a.level) if given else None,
        crossing=share,
        better_before=a.about.name if first < 0 else b.about.name,
        better_after=a.about.name if last < 0 else b.about.name,
        notes=tuple(notes),
        draws=pairs,
    )


def _roots(x: Float[np.ndarray, " grid"], difference: Float[np.ndarray, " grid"]) -> Float[np.ndarray, " roots"]:
    """Where a curve changes its sign, by straight lines over ln x."""
    x, difference = x[difference != 0], difference[difference != 0]
    left = np.flatnonzero(difference[:-1] * difference[1:] < 0)
    share = difference[left] / (difference[left] - difference[left + 1])
    return np.exp(np.log(x[left]) + share * np.log(x[left + 1] / x[left]))
