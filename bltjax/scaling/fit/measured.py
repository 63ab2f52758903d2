"""The curve of one model as it was measured: means over seeds at each budget, straight lines between them.

A law over sizes needs three sizes. One model, trained for longer and longer, has a curve without any: that is what the
fixed-inference figure compares.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from bltjax.scaling.fit.cost import Unit
from bltjax.scaling.fit.curve import Curve
from bltjax.scaling.fit.points import Points
from bltjax.scaling.fit.resample import LEVEL, weights

NAME = "means over seeds, straight lines between budgets"


def measured_curve(
    points: Points, unit: Unit | Literal["bytes"] = "flops", draws: int = 1000, seed: int = 0, level: float = LEVEL
) -> Curve:
    """Loss over what was spent, without a law.

    Args:
      points: of one model, at two budgets at least.
      unit: of the horizontal axis.
      draws: of the bootstrap over trunks; 0: no intervals.

    Raises:
      ValueError: for points of several models, of fewer than two budgets, without that unit, or of too few trunks for
        intervals.
    """
    sizes = np.unique(points.size)
    if len(sizes) > 1 or points.patch_size is not None:
        raise ValueError(f"size={sizes}: the points of several models; a measured curve is of one.")
    budgets = points.budgets()
    if len(budgets) < 2:
        raise ValueError(f"budget={budgets}: a curve needs two.")
    spent = getattr(points, unit)
    if spent is None:
        raise ValueError(f"unit={unit!r}: these points have no such column.")
    label = {"flops": f"training FLOPs ({points.about.accounting})", "seconds": "device seconds"}
    once = np.ones((1, len(points)))
    times = weights(points.cluster, draws, seed) if draws else np.empty((0, len(points)))
    return Curve(
        about=points.about,
        x_label=label.get(unit, "bytes seen"),
        estimator=NAME,
        x=_means(spent, points, once)[0],
        loss=_means(points.loss, points, once)[0],
        draws=_means(points.loss, points, times),
        bounded=np.zeros(len(budgets), bool),
        seed=seed,
        level=level,
    )


def _means(
    values: Float[np.ndarray, " points"], points: Points, times: Float[np.ndarray, "draws points"]
) -> Float[np.ndarray, "draws budgets"]:
    """At each budget; nan where a draw has none of its runs."""
    at = points.budget == points.budgets()[:, None]
    number = times @ at.T
    return np.divide((times * values) @ at.T, number, out=np.full(number.shape, np.nan), where=number > 0)
