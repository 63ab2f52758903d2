"""Rows of metrics are means and sums over the steps that trained."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.loss import Sums
from bltjax.step import StepMetrics
from bltjax.tally import Tally

ROOM = {"positions": 8, "patches": 4}


def metrics(nats=7.0, norm=2.0, skipped=False):
    sums = Sums(byte_nats=jnp.float32(nats), bytes=jnp.int32(5), special_nats=jnp.float32(1), specials=jnp.int32(1))
    return StepMetrics(
        sums=sums, gradient_norm=jnp.float32(norm), positions=jnp.int32(6), patches=jnp.int32(3),
        skipped=jnp.bool_(skipped), wish=jnp.int32(0),
    )  # fmt: skip


def test_a_row_is_of_its_interval_alone():
    tally = Tally()
    tally.add(1, metrics(), 0.5, devices=4)
    tally.row(1, 0.1, ROOM)
    tally.add(2, metrics(nats=3.0, norm=1.0), 0.5, devices=4)
    tally.add(3, metrics(nats=9.0, norm=4.0), 1.5, devices=4)
    row = tally.row(3, 0.2, ROOM)
    assert row["sums"] == {"byte_nats": 12.0, "bytes": 10, "special_nats": 2.0, "specials": 2}
    assert row["bits_per_byte"] == pytest.approx(1.2 / np.log(2))
    assert (row["bytes_seen"], row["gradient_norm"], row["rate"], row["skipped"]) == (15, 2.5, 0.2, 0)
    assert row["fill"] == {"positions": 12 / 16, "patches": 6 / 8}
    assert row["timing"] == {"seconds": 2.0, "seconds_per_step": 1.0, "bytes_per_second": 5.0}
    assert tally.device_seconds == 10.0


def test_a_skipped_step_is_counted_and_in_no_sum():
    tally = Tally()
    tally.add(1, metrics(nats=float("nan"), norm=float("inf"), skipped=True), 1.0, devices=1)
    assert tally.bad == [{"step": 1, "nats_per_byte": "nan", "gradient_norm": "inf"}]
    tally.add(2, metrics(), 1.0, devices=1)
    assert (tally.skipped, tally.bad) == (1, [])
    row = tally.row(2, 0.1, ROOM)
    assert (row["skipped"], row["bytes_seen"], row["gradient_norm"], row["fill"]["patches"]) == (1, 5, 2.0, 3 / 4)
    assert row["timing"]["seconds_per_step"] == 1.0


def test_a_row_without_a_step_that_trained_has_no_means():
    tally = Tally()
    tally.add(1, metrics(nats=float("nan"), skipped=True), 1.0, devices=1)
    row = tally.row(1, 0.1, ROOM)
    assert row["bits_per_byte"] is row["gradient_norm"] is row["fill"]["positions"] is None
    json.dumps(row, allow_nan=False)


def test_it_comes_back_from_json():
    tally = Tally()
    tally.add(1, metrics(nats=1 / 3), 0.1, devices=1)
    tally.add(2, metrics(nats=float("nan"), skipped=True), 0.1, devices=1)
    assert Tally(**json.loads(json.dumps(dataclasses.asdict(tally)))) == tally
