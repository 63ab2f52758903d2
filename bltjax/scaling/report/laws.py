"""The laws of a study's series, each fitted once; what cannot be fitted says why."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bltjax.flops import ACCOUNTING_VERSIONS, Accounting
from bltjax.scaling.fit import (
    METHODS,
    Curve,
    FittedLaw,
    FittedParabolas,
    Holdout,
    IsoFLOP,
    Method,
    Points,
    fit_law,
    from_manifests,
    hold_out_largest,
    own_table,
    points_of,
)
from bltjax.scaling.fit.cost import of_points
from bltjax.scaling.plots import isoflop_fits
from bltjax.scaling.report.data import AXES, BY_BENCH, Row, StudyData

METHOD: Method = "projection"
DRAWS = 1000
SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Other:
    """What another estimator makes of a series.

    Attributes:
      fit: None where `why` says why not.
      no_interval: why there are no intervals; "" where there are.
      holdout: the largest budget predicted from the others; None for parabolas, which predict nothing beyond theirs.
    """

    fit: FittedLaw | FittedParabolas | None
    why: str
    no_interval: str
    holdout: Holdout | None


@dataclasses.dataclass(frozen=True, eq=False)
class SeriesLaw:
    """What was fitted to one series.

    Attributes:
      fit: the surface L(N, bytes); None where `why` says why not.
      no_interval: why there are no intervals; "" where there are.
      parabolas: one at each budget that has three sizes.
      holdout: the largest budget predicted from the others; None where `no_holdout` says why not.
      points: under each axis of FLOPs and of seconds.
      others: by the other estimators, to see what depends on the choice.
    """

    series: str
    fit: FittedLaw | None
    why: str
    no_interval: str
    parabolas: Mapping[float, IsoFLOP]
    holdout: Holdout | None
    no_holdout: str
    points: Mapping[str, Points]
    own_axis: str
    others: Mapping[Method, Other]

    def bracketed(self, budget: float) -> bool:
        """Whether the runs of a budget have their least loss between the ends of the sizes."""
        parabola = self.parabolas.get(budget)
        return parabola is not None and parabola.bound is None

    def frontier(self, axis: str) -> Curve:
        """The least loss over what was spent.

        Raises:
          ValueError: where there is none, with the reason.
        """
        found = self._frontiers[axis]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    @functools.cached_property
    def _frontiers(self) -> dict[str, Curve | str]:
        out: dict[str, Curve | str] = {}
        for axis in (*AXES, *BY_BENCH):
            try:
                out[axis] = self._sought(axis)
            except ValueError as error:
                out[axis] = str(error)
        return out

    def _sought(self, axis: str) -> Curve:
        if self.fit is None:
            raise ValueError(self.why)
        if axis == "bytes_seen":
            raise ValueError("at equal bytes the largest model is the best, so there is no frontier")
        if axis == self.own_axis:
            return self.fit.frontier()
        if axis not in self.points:
            raise ValueError("no seconds of a bench: budgets are FLOPs")
        points = dataclasses.replace(self.points[axis], budget=None)  # those are of something else
        unit = "seconds" if axis == "device_seconds" else "flops"
        return dataclasses.replace(self.fit, points=points, cost=of_points(points, unit)).frontier(unit)


def fit_series(data: StudyData, series: str, draws: int = DRAWS, seed: int = SEED) -> SeriesLaw:
    """Fits one series by variable projection, with intervals where there are runs enough for them."""
    rows = data.of(series)
    points = {axis: _points(data, series, axis) for axis in data.axes if axis != "bytes_seen"}
    own = points[data.own_axis]
    fit, why, no_interval = _fitted(own, METHOD, draws, seed)
    holdout, no_holdout = _held_out(own, METHOD)
    return SeriesLaw(
        series=series,
        fit=fit,
        why=why,
        no_interval=no_interval,
        parabolas=isoflop_fits(rows),
        holdout=holdout,
        no_holdout=no_holdout,
        points=points,
        own_axis=data.own_axis,
        others={method: _other(own, method, draws, seed) for method in METHODS if method != METHOD},
    )


def _fitted(points: Points, method: Method, draws: int, seed: int) -> tuple[Any, str, str]:
    """The fit, or why there is none; and why it has no intervals."""
    try:
        fit = fit_law(points, method, draws=0, seed=seed)
    except ValueError as error:
        return None, str(error), ""
    if not draws:
        return fit, "", "none were asked for"
    try:
        return fit_law(points, method, draws=draws, seed=seed), "", ""
    except ValueError as error:
        return fit, "", str(error)


def _held_out(points: Points, method: Method) -> tuple[Holdout | None, str]:
    if method == "parabola":
        return None, "parabolas predict no other budget"
    try:
        return hold_out_largest(points, method), ""
    except ValueError as error:
        return None, str(error)


def _other(points: Points, method: Method, draws: int, seed: int) -> Other:
    return Other(*_fitted(points, method, draws, seed), _held_out(points, method)[0])


def _points(data: StudyData, series: str, axis: str) -> Points:
    """From manifests where all are there, which know the shared part of the FLOPs; else from the table."""
    chosen = axis if axis.startswith("flops") else data.flops_axis
    accounting: Accounting = "full" if chosen == "flops_full" else "paper"
    rows = data.counted(series)
    if all(row["run"] in data.manifests and row["epochs"] is not None for row in rows):
        # One series holds one patch size that was asked for; what was measured may differ by a hair.
        return _timed(from_manifests([data.manifests[row["run"]] for row in rows], accounting=accounting), rows, axis)
    columns = dataclasses.replace(
        own_table(series),
        flops=AXES[chosen][2],
        accounting=ACCOUNTING_VERSIONS[accounting],
        epochs="epochs" if all(row["epochs"] is not None for row in rows) else None,
    )
    return _timed(points_of([{**row, "seed": int(row["seed"])} for row in rows], columns), rows, axis)


def _timed(points: Points, rows: Sequence[Row], axis: str) -> Points:
    """With the seconds that the runs themselves took, where these are asked for."""
    if axis != "device_seconds":
        return points
    return dataclasses.replace(points, seconds=np.array([row["device_seconds"] for row in rows], np.float64))


def fit_study(data: StudyData, draws: int = DRAWS, seed: int = SEED) -> dict[str, SeriesLaw]:
    """The laws of all series."""
    return {series: fit_series(data, series, draws, seed) for series in data.series}


def band(curve: Curve) -> tuple[np.ndarray, np.ndarray] | None:
    """The pointwise percentile band of a curve; None without draws."""
    if not len(curve.draws):
        return None
    tail = 50 * (1 - curve.level)
    low, high = np.nanpercentile(curve.draws, [tail, 100 - tail], axis=0)
    return low, high
