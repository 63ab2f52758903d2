"""Loss as a function of what was spent: the curves that gains and crossovers are read from."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from bltjax.scaling.fit.points import About


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """A falling curve of loss over spending, with its bootstrap draws.

    Attributes:
      about: of the points behind it.
      x_label: what is spent, unit and accounting in words; curves with other words are not compared.
      estimator: that made it.
      x: ascending, over the measured range and not beyond.
      loss: bits per byte.
      draws: the same from each draw; no rows without a bootstrap.
      bounded: where the best size was at an end of those measured, so that the loss is an upper bound.
      seed: of the draws.
    """

    about: About
    x_label: str
    estimator: str
    x: Float[np.ndarray, " grid"]
    loss: Float[np.ndarray, " grid"]
    draws: Float[np.ndarray, "draws grid"]
    bounded: Bool[np.ndarray, " grid"]
    seed: int
    level: float

    def __post_init__(self) -> None:
        if len(self.x) < 2 or (np.diff(self.x) <= 0).any() or self.x[0] <= 0:
            raise ValueError("x: a curve needs two ascending positive values at least.")

    def at(self, x: Float[np.ndarray, " any"]) -> tuple[Float[np.ndarray, " any"], Float[np.ndarray, "draws any"]]:
        """Losses by straight lines over ln x, of the curve and of each draw.

        Raises:
          ValueError: beyond the measured range.
        """
        slack = 1e-9
        if (x < self.x[0] * (1 - slack)).any() or (x > self.x[-1] * (1 + slack)).any():
            raise ValueError(f"x={x}: this curve was measured from {self.x[0]:.4g} to {self.x[-1]:.4g} {self.x_label}.")
        at, grid = np.log(x), np.log(self.x)
        drawn = [np.interp(at, grid, draw) for draw in self.draws]
        return np.interp(at, grid, self.loss), np.array(drawn).reshape(len(self.draws), len(x))

    def inverse(
        self, curves: Float[np.ndarray, "rows grid"], losses: Float[np.ndarray, "rows any"]
    ) -> Float[np.ndarray, "rows any"]:
        """The spending at which each of this curve's rows first comes down to each loss.

        Infinite where a row never does; zero where it lies lower from its beginning; nan where it is no number.
        """
        out = np.empty(losses.shape)
        ln_x = np.log(self.x)
        for row, (curve, wanted) in enumerate(zip(curves, losses, strict=True)):
            lowest = np.minimum.accumulate(curve)  # where noise makes a curve rise, the first visit counts
            keep = np.concatenate([[True], np.diff(lowest) < 0])
            found = np.exp(np.interp(-wanted, -lowest[keep], ln_x[keep]))
            found = np.where(wanted > lowest[0], 0.0, np.where(wanted < lowest[-1], np.inf, found))
            out[row] = np.where(np.isnan(wanted) | np.isnan(curve).any(), np.nan, found)
        return out
