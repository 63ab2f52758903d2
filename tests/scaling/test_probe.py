import dataclasses
import datetime
import re

import pytest

from bltjax.config import RowsConfig, TrainConfig
from bltjax.presets import preset
from bltjax.scaling import probe as room
from bltjax.scaling.forecast import forecast
from bltjax.scaling.machines import Machine
from bltjax.scaling.probe import fraction_toml, probe, probe_study
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
