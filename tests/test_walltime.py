"""Every second of a run is booked once."""

import time

import pytest

from bltjax import walltime
from bltjax.walltime import BUCKETS, WallTime, table


def test_every_second_is_booked_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(walltime.time, "perf_counter", lambda: now[0])
    wall = WallTime()
    now[0] += 3
    wall.tick()
    wall.default = "step"
    now[0] += 5
    with wall.spent("data wait"):
        now[0] += 7
    now[0] += 11
    with pytest.raises(KeyError), wall.spent("checkpoint"):
        now[0] += 13
        raise KeyError
    now[0] += 17
    wall.skip()
    wall.add({"step": 100.0, "lost to restarts": 1.0})
    assert wall.seconds == {
        **dict.fromkeys(BUCKETS, 0.0), "start": 3, "data wait": 7, "step": 116, "checkpoint": 13, "lost to restarts": 1
    }  # fmt: skip
    assert sum(wall.seconds.values()) == now[0] - 100 - 17 + 101


def test_real_time_passes():
    wall = WallTime()
    time.sleep(0.02)
    wall.tick("compile")
    assert 0.02 <= wall.seconds["compile"] < 2


def test_the_table_has_a_line_for_each_bucket_that_took_time():
    text = table({**dict.fromkeys(BUCKETS, 0.0), "start": 1.0, "step": 3.0})
    assert [line.split() for line in text.splitlines()] == [
        ["start", "1.0", "s", "25.0%"],
        ["step", "3.0", "s", "75.0%"],
        ["all", "4.0", "s", "100.0%"],
    ]
