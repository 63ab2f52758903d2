import numpy as np
import pytest

from bltjax.scaling import turns
from bltjax.scaling.turns import FEWEST_TURNS, median_interval, speeds_in_turns


def test_actions_take_turns_one_way_and_then_the_other(monkeypatch):
    """And the first call, which compiles, is not among those that are timed."""
    order, now = [], [0.0]

    def action(name, seconds, amount):
        def act(turn):
            order.append((name, turn))
            now[0] += seconds if turn else 1000.0
            return amount

        return act

    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    actions = [action("one", 2.0, 10), action("other", 0.5, 20)]
    speeds = speeds_in_turns(actions, 0.0)
    np.testing.assert_array_equal(speeds, [[5.0] * FEWEST_TURNS, [40.0] * FEWEST_TURNS])
    assert order[:6] == [("one", 0), ("other", 0), ("other", 1), ("one", 1), ("one", 2), ("other", 2)]
    assert speeds_in_turns(actions, 25.0).shape == (2, 10), "a turn lasts 2.5 seconds"


@pytest.mark.parametrize("count", [6, 9, 40, 301])
def test_intervals_hold_the_median_as_often_as_they_say(count):
    """Of a skewed distribution, and hardly more often than so few values allow."""
    times, random = 4000, np.random.default_rng(count)
    held = 0
    for values in random.lognormal(size=(times, count)):
        low, high = median_interval(values)
        held += low <= 1 <= high
    assert 0.94 < held / times < (0.98 if count < 40 else 0.97)


def test_too_few_values_give_no_interval():
    assert median_interval(np.arange(float(FEWEST_TURNS))) == (0, FEWEST_TURNS - 1)
    with pytest.raises(ValueError, match="5 are too few"):
        median_interval(np.arange(FEWEST_TURNS - 1.0))
