"""The learning rates of a study: that of each model, how runs at several are named, and which is best.

One rate for models of all sizes says as much of the rate as of the size. So a study has its rates for a model of one
width, and a rule that takes them to all others: inverse to the width of the narrowest tower, or, with a transfer, from
a base, parameter by parameter (`bltjax.transfer`). Whether the rule holds is seen by several rates at two sizes
(experiments/learning_rates.py).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from bltjax.config import ModelConfig, TransferConfig, TransformerConfig
from bltjax.scaling.fit import isoflop
from bltjax.scaling.study import USUAL_RATE

RATE_WIDTH = 64  # the width for which Study.peak_rates are meant


def learning_rate_rule(rate: float, model: ModelConfig) -> float:
    """Peak learning rate of a model: one rule for all families, inverse to the width of its narrowest tower.

    For a BLT those are the local models. The usual rate gives 4e-4 at a width of 1,280, the paper's rate for its 8B.

    Args:
      rate: of a model whose narrowest tower is RATE_WIDTH wide.
    """
    widths = [tower.width for tower in vars(model).values() if isinstance(tower, TransformerConfig)]
    return rate * RATE_WIDTH / min(widths)


def peak_rate(rate: float, model: ModelConfig, transfer: TransferConfig | None) -> float:
    """The peak rate in the configuration of a run: that of the model, or of the base that it is transferred from."""
    return learning_rate_rule(rate, model if transfer is None else transfer.base)


def rate_suffix(rate: float) -> str:
    """What the name of a run at one of a study's rates ends with: nothing for the usual one, or -r4e-3."""
    if rate == USUAL_RATE:
        return ""
    mantissa, exponent = f"{rate:.6e}".split("e")
    short = f"{float(mantissa):g}e{int(exponent)}"
    return f"-r{short if float(short) == rate else rate}"


@dataclasses.dataclass(frozen=True)
class BestRate:
    """The best rate of one size by one rule: `rate` and `loss` of a parabola, or a bound at an end of the rates."""

    rate: float
    loss: float
    bound: Literal["", "at most", "at least"] = ""  # the least loss is at the lowest, or the highest, rate tried

    def __str__(self) -> str:
        return f"{self.bound} {self.rate:.2g}".strip()


def best_rate(rates: Sequence[float], losses: Sequence[float]) -> BestRate:
    """The vertex of the parabola in ln rate through the three points around the least loss, or a bound at an end."""
    order = np.argsort(rates)
    x, y = np.asarray(rates, float)[order], np.asarray(losses, float)[order]
    least = int(np.argmin(y))
    if least in (0, len(x) - 1):
        return BestRate(float(x[least]), float(y[least]), "at most" if least == 0 else "at least")
    found = isoflop(x[least - 1 : least + 2], y[least - 1 : least + 2])
    assert found.optimum is not None and found.loss is not None  # three points whose middle one is least
    return BestRate(found.optimum, found.loss)


def shift_text(small: BestRate, large: BestRate) -> str:
    """How far the best rate of the large size lies from that of the small one, in powers of two."""
    shift, sign = math.log2(large.rate / small.rate), {"": 0, "at most": -1, "at least": 1}
    sides = {sign[large.bound], -sign[small.bound]} - {0}
    if not sides:
        return f"{shift:+.2f}, {'agrees' if abs(shift) <= 0.5 else 'differs'}"
    if len(sides) == 2 or shift * min(sides) <= 0.5:
        return "not known"
    return f"at {'most' if sides == {-1} else 'least'} {shift:+.2f}, differs"
