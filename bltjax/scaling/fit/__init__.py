"""Laws fitted to measured losses, with intervals: optima, exponents, frontiers, gains and crossovers.

points = from_manifests(manifests, size="non_embedding")
fit = fit_law(points, "projection")          # or "huber", "parabola"; all of them: side_by_side(points)
print(fit)
gain = compute_equivalent_gain(fit_a.frontier(), fit_b.frontier())
cross = crossover(fit_a.frontier(), fit_b.frontier())
"""

from bltjax.scaling.fit.best import best_of_rates
from bltjax.scaling.fit.columns import Columns, own_table, points_of, read_points, read_table
from bltjax.scaling.fit.cost import Cost
from bltjax.scaling.fit.curve import Curve
from bltjax.scaling.fit.estimators import METHODS, Method, SideBySide, fit_law, side_by_side
from bltjax.scaling.fit.fitted import FittedLaw
from bltjax.scaling.fit.gain import Crossover, Gain, compute_equivalent_gain, crossover
from bltjax.scaling.fit.holdout import Holdout, hold_out_largest
from bltjax.scaling.fit.hull import frontier
from bltjax.scaling.fit.isoflops import FittedParabolas
from bltjax.scaling.fit.law import Law
from bltjax.scaling.fit.measured import measured_curve
from bltjax.scaling.fit.optimum import Optimum, scale_with_patch
from bltjax.scaling.fit.parabola import IsoFLOP, isoflop
from bltjax.scaling.fit.points import SIZES, About, Points, from_manifests
from bltjax.scaling.fit.resample import Interval

__all__ = [
    "METHODS",
    "SIZES",
    "About",
    "Columns",
    "Cost",
    "Crossover",
    "Curve",
    "FittedLaw",
    "FittedParabolas",
    "Gain",
    "Holdout",
    "Interval",
    "IsoFLOP",
    "Law",
    "Method",
    "Optimum",
    "Points",
    "SideBySide",
    "best_of_rates",
    "compute_equivalent_gain",
    "crossover",
    "fit_law",
    "from_manifests",
    "frontier",
    "hold_out_largest",
    "isoflop",
    "measured_curve",
    "own_table",
    "points_of",
    "read_points",
    "read_table",
    "scale_with_patch",
    "side_by_side",
]
