import numpy as np
import pytest

from bltjax.scaling.fit.resample import Interval, interval, weights

TRUNKS = tuple(f"trunk {number}" for number in range(8) for _ in range(3))


def test_the_runs_of_a_trunk_are_drawn_together():
    times = weights(TRUNKS, 500, seed=0)
    assert times.shape == (500, 24)
    by_trunk = times.reshape(500, 8, 3)
    assert (by_trunk == by_trunk[..., :1]).all()
    # As many trunks as there are, each on average once.
    assert (by_trunk[..., 0].sum(axis=1) == 8).all()
    assert by_trunk[..., 0].mean(axis=0) == pytest.approx(np.ones(8), abs=0.15)


def test_smooth_draws_weigh_trunks_and_leave_none_out():
    weighed = weights(TRUNKS, 2000, seed=0, smooth=True)
    by_trunk = weighed.reshape(2000, 8, 3)
    assert (by_trunk == by_trunk[..., :1]).all()
    assert by_trunk[..., 0].sum(axis=1) == pytest.approx(np.full(2000, 8.0))
    assert (weighed > 0).all()
    # The variance of a trunk's weight is nearly that of resampling, 7/9 beside 7/8.
    assert by_trunk[..., 0].var(axis=0) == pytest.approx(np.full(8, 7 / 9), rel=0.15)


def test_the_same_seed_gives_the_same_draws():
    assert (weights(TRUNKS, 50, 3) == weights(TRUNKS, 50, 3)).all()
    assert (weights(TRUNKS, 50, 3) != weights(TRUNKS, 50, 4)).any()


def test_an_interval_of_a_handful_of_trunks_is_refused():
    with pytest.raises(ValueError, match="only 5 trunks"):
        weights(tuple("abcde") * 20, 10, 0)


def test_a_percentile_interval():
    draws = np.arange(1000.0)
    found = interval(500.0, draws)
    assert (found.low, found.high) == pytest.approx((24.975, 974.025))
    assert 25 in found and 975 not in found
    narrow = interval(500.0, draws, level=0.5)
    assert narrow.low > found.low and narrow.high < found.high


def test_draws_beyond_what_was_measured_open_the_interval_there():
    draws = np.concatenate([np.linspace(1, 2, 950), np.full(50, np.inf)])
    found = interval(1.5, draws)
    assert found.low == pytest.approx(1.026, abs=0.01)
    assert found.high is None
    assert str(found) == f"1.5 [{found.low:.4g}, ...]"
    assert 1e9 in found and 0.5 not in found


def test_draws_that_gave_no_number_are_counted_and_too_many_leave_no_interval():
    draws = np.concatenate([np.linspace(1, 2, 600), np.full(400, np.nan)])
    found = interval(1.5, draws)
    assert found.outside == pytest.approx(0.4)
    assert found.low is not None
    assert interval(1.5, draws, least_inside=0.975).low is None
    assert interval(1.5, np.full(10, np.nan)) == Interval(1.5, None, None, outside=1.0, draws=10)


def test_a_number_that_is_not_there_has_no_interval():
    assert interval(None, np.ones(5)) == Interval(None, None, None, draws=5)
    assert str(interval(None, np.ones(5))) == "none"


def test_an_interval_open_on_both_sides_is_not_the_lack_of_one():
    assert str(interval(1.5, np.array([-np.inf, 1.5, np.inf]))) == "1.5 [..., ...]"
    assert str(interval(1.5, np.empty(0))) == "1.5"
