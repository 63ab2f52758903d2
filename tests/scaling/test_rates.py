import math

import numpy as np
import pytest

from bltjax.config import TransferConfig
from bltjax.presets import preset
from bltjax.scaling.rates import BestRate, best_rate, learning_rate_rule, peak_rate, rate_suffix, shift_text


def test_the_learning_rate_follows_the_narrowest_tower():
    assert learning_rate_rule(8e-3, preset("blt-8b")) == pytest.approx(4e-4)
    assert learning_rate_rule(8e-3, preset("token-470m")) == pytest.approx(4e-4)
    assert learning_rate_rule(8e-3, preset("megabyte-1.3b")) == pytest.approx(5e-4)  # its local model's width is 1,024
    assert learning_rate_rule(8e-3, preset("spacebyte-793m")) == pytest.approx(8e-3 * 64 / 768)


def test_a_transferred_rate_is_that_of_the_base():
    transfer = TransferConfig("width", preset("blt-cpu-0"))
    assert peak_rate(8e-3, preset("blt-cpu-2"), None) == pytest.approx(8e-3 * 64 / 32)
    assert peak_rate(8e-3, preset("blt-cpu-2"), transfer) == pytest.approx(8e-3 * 64 / 16)


def test_a_name_has_the_rate_unless_it_is_the_usual_one():
    assert [rate_suffix(rate) for rate in (8e-3, 4e-3, 1.25e-2, 1 / 3)] == ["", "-r4e-3", "-r1.25e-2", f"-r{1 / 3}"]


def test_the_best_rate_is_the_vertex_of_the_three_around_the_least():
    rates = [1.6e-2, 1e-3, 8e-3, 4e-3, 2e-3]
    true = 5e-3
    losses = [2.0 + 0.1 * math.log2(rate / true) ** 2 for rate in rates]
    losses[1] = 9.0  # far from the least: it does not count
    found = best_rate(rates, losses)
    assert (found.rate, found.loss, found.bound) == (pytest.approx(true), pytest.approx(2.0), "")


def test_a_least_loss_at_an_end_is_a_bound():
    rates = [1e-3, 2e-3, 4e-3]
    assert best_rate(rates, [2.0, 2.1, 2.3]) == BestRate(1e-3, 2.0, "at most")
    assert best_rate(rates, [2.3, 2.1, 2.0]) == BestRate(4e-3, 2.0, "at least")
    assert str(best_rate(rates, [2.3, 2.1, 2.0])) == "at least 0.004"


@pytest.mark.parametrize("small", ["", "at most", "at least"])
@pytest.mark.parametrize("large", ["", "at most", "at least"])
@pytest.mark.parametrize("powers", [-2, 0.3, 2])
def test_a_shift_between_bounds_is_said_only_as_far_as_it_is_known(small, large, powers):
    """Against every pair of rates that the bounds allow."""
    said = shift_text(BestRate(1e-3, 2.0, small), BestRate(1e-3 * 2**powers, 2.0, large))
    free = {"": [0.0], "at most": -np.arange(9.0), "at least": np.arange(9.0)}
    shifts = [powers + more - less for more in free[large] for less in free[small]]
    agree = {abs(shift) <= 0.5 for shift in shifts}
    if agree == {False} and (min(shifts) > 0 or max(shifts) < 0):
        assert said.endswith("differs")
    elif agree == {True}:
        assert said == "+0.30, agrees"
    else:
        assert said == "not known"
    if said.startswith("at"):
        assert said.startswith("at least" if min(shifts) == powers else "at most") and f"{powers:+.2f}" in said
