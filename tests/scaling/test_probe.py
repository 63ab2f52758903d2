import dataclasses
import datetime
import re

import numpy as np
import pytest

from bltjax.config import RowsConfig, TrainConfig
from bltjax.presets import preset
from bltjax.scaling import probe as room
from bltjax.scaling.forecast import forecast
from bltjax.scaling.machines import Machine
from bltjax.scaling.probe import FIRST_STEPS, fraction_toml, probe, probe_study, random_batch, step_seconds
from bltjax.scaling.spend import label_of, row_flops
from bltjax.scaling.study import Study

HERE = Machine("here", datetime.date(2026, 1, 1), "a processor", "cpu", 2, 8e9, {"float32": 1e9})
TRAIN = TrainConfig(preset("byte-tiny"), 5, rows=RowsConfig(32, None, 8))


def test_the_fraction_is_flops_over_time_and_peak(monkeypatch):
    asked = []
    monkeypatch.setattr(room, "step_seconds", lambda *given: asked.append(given) or 0.5)
    found = probe(TRAIN, 32, 1e6, HERE)
    # Eight rows of 1e6 FLOPs in half a second are 1.6e7 FLOP/s of the 2e9 of two devices.
    assert found.fraction == pytest.approx(0.008) and (found.seconds, found.devices) == (0.5, 2)
    assert asked[0][1:3] == (32, 2) and asked[0][0].rows.batch == 8


def test_with_fewer_devices_each_keeps_its_rows(monkeypatch):
    asked = []
    monkeypatch.setattr(room, "step_seconds", lambda *given: asked.append(given) or 0.5)
    train = dataclasses.replace(TRAIN, rows=RowsConfig(32, None, 64))
    found = probe(train, 32, 1e6, dataclasses.replace(HERE, devices=16))
    assert found.devices == 8 and asked[0][0].rows.batch == 32
    assert found.fraction == pytest.approx(32 * 1e6 / 0.5 / 8e9)


def test_another_machine_is_not_measured_here():
    with pytest.raises(ValueError, match=re.escape("probe: [there] is a machine of gpu, and this process sees cpu")):
        probe(TRAIN, 32, 1e6, dataclasses.replace(HERE, name="there", platform="gpu"))
    with pytest.raises(ValueError, match="rows do not divide over the 3 devices"):
        probe(TRAIN, 32, 1e6, dataclasses.replace(HERE, devices=3))


def test_the_median_step_counts_and_the_first_ones_do_not(monkeypatch):
    class Step:
        def initial_state(self, seed):
            return 0

        def __call__(self, state, batch, rate):
            return state + 1, np.float32(state)

    durations = [100.0] * FIRST_STEPS + [1.0, 2.0, 3.0, 50.0, 4.0]
    times = iter(np.cumsum([[0.0, duration] for duration in durations]).ravel().tolist())
    monkeypatch.setattr(room, "compile_step", lambda *given: Step())
    assert step_seconds(TRAIN, 32, 1, 5, lambda: next(times)) == 3.0
    assert next(times, None) is None


@pytest.mark.parametrize("name", ["byte-tiny", "token-tiny", "blt-tiny"])
def test_random_rows_have_the_shape_of_real_ones(name):
    model = preset(name)
    rows = RowsConfig(64, 18 if name != "byte-tiny" else None, 3)
    positions = 18 if name == "token-tiny" else 64
    batch = random_batch(model, rows, positions)
    assert batch.ids.shape == batch.targets.shape == batch.target_bytes.shape == (3, positions)
    assert (batch.ids[:, 1:] == batch.targets[:, :-1]).all() and batch.ids.min() >= 4
    assert batch.ids.max() < (300 if name == "token-tiny" else 260)
    assert batch.ids.dtype == (np.int32 if name == "token-tiny" else np.int16)
    if name == "blt-tiny":
        counts = batch.starts[:, :-1].sum(axis=1)
        assert batch.starts.shape == (3, 65) and batch.starts[:, :2].all()
        assert (counts == 18).all()
    else:
        assert batch.starts is None


def test_every_model_and_the_entropy_model_are_measured_once(monkeypatch, tmp_path):
    study = Study(out=tmp_path / "s", preset=("blt-tiny", "byte-tiny"), budgets=(2e9, 6e9), patch_sizes=(3.0, 4.5))
    planned, asked, said = forecast(study, print), [], []
    monkeypatch.setattr(room, "step_seconds", lambda *given: asked.append(given) or 0.5)
    found = probe_study(planned, HERE, said.append)
    labels = ["blt-tiny-p3", "blt-tiny-p4.5", "byte-tiny", "entropy-cpu"]
    assert list(found) == labels and len(asked) == len(said) == 4
    for run in planned.runs:
        expected = 2 * row_flops(run.plan) / 0.5 / 2e9
        assert found[label_of(study, run.plan)].fraction == pytest.approx(expected)
    assert fraction_toml(HERE, found).splitlines()[:2] == [
        "[here.fraction]", f'"blt-tiny-p3" = {found["blt-tiny-p3"].fraction:.4g}'
    ]  # fmt: skip


@pytest.mark.slow
def test_real_steps_are_taken():
    study = Study(preset=("byte-tiny",), budgets=(2e9,), row_bytes=64)
    found = probe_study(forecast(study, print), dataclasses.replace(HERE, devices=1), print, steps=3)
    assert set(found) == {"byte-tiny"}
    assert all(1e-5 < one.seconds < 5 and one.fraction > 0 for one in found.values())
