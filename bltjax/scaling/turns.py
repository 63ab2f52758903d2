"""Speeds of several things on one machine, compared: they take turns, and a ratio is taken within each turn.

What slows a machine down for a while then slows both sides. In go actions; out come their speeds in each turn, and for
any number with one value a turn an interval of its median. Experiments that time models call this.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

LEVEL = 0.95  # of the intervals
FEWEST_TURNS = 6  # of which the smallest and the largest value are such an interval


def speeds_in_turns(actions: Sequence[Callable[[int], float]], seconds: float) -> Float[np.ndarray, "actions turns"]:
    """What each action gets done in a second, in each turn; turns go one way and then the other.

    Args:
      actions: each is given the number of the turn, and returns how much it has done. Turn 0, in which programs are
        compiled, is not timed.
      seconds: that turns go on for; longer where there are not yet as many as an interval needs.
    """

    def speed(action: Callable[[int], float], turn: int) -> float:
        begin = time.perf_counter()
        done = action(turn)
        return done / (time.perf_counter() - begin)

    for action in actions:
        action(0)
    turns: list[list[float]] = []
    begin = time.perf_counter()
    while len(turns) < FEWEST_TURNS or time.perf_counter() - begin < seconds:
        way = 1 if len(turns) % 2 else -1
        turns.append([speed(action, 1 + len(turns)) for action in actions[::way]][::way])
    return np.array(turns).T


def median_interval(values: Float[np.ndarray, "turns"], level: float = LEVEL) -> tuple[float, float]:
    """Two of the values, between which the median of what they were drawn from lies with at least that probability.

    How many independent values lie below their median is binomial, whatever their distribution.

    Raises:
      ValueError: for fewer values than reach that probability.
    """
    left_out = int(stats.binom.ppf((1 - level) / 2, len(values), 0.5)) - 1  # at either end
    if left_out < 0:
        raise ValueError(f"values: {len(values)} are too few for an interval of {level:.0%}; measure more turns.")
    ordered = np.sort(values)
    return float(ordered[left_out]), float(ordered[-1 - left_out])
