import dataclasses
import datetime
import re

import jax
import pytest

from bltjax.config import OptimConfig, PatcherConfig, RowsConfig
from bltjax.flops import parameters
from bltjax.scaling import footprint as room
from bltjax.scaling.footprint import Footprint, compiled, held
from bltjax.scaling.machines import Machine
from bltjax.scaling.plan import RowFacts, plan_run
from bltjax.scaling.study import Study

MACHINE = Machine("here", datetime.date(2026, 1, 1), "a processor", "cpu", 1, 8e9, {"float32": 1e11})


def plan(name, batch=2):
    study = Study(preset=(name,), budgets=(1e11,), row_bytes=64)
    (model,) = study.models().values()
    patcher = PatcherConfig() if model.reads_patches else None
    rows = RowsConfig(64, 18 if model.reads_patches else None, batch)
    facts = RowFacts(None, 64, 64.0, 4.0 if model.reads_patches else 1.0, 1.0, 1.0)
    return plan_run(study, name, model, rows, facts, 1e11, 0, 8e-3, patcher, patcher)


@pytest.mark.parametrize("name", ["byte-tiny", "blt-tiny", "megabyte-tiny"])
def test_one_device_holds_parameters_two_moments_and_gradients_in_four_bytes_each(name):
    count = sum(parameters(plan(name).train.model).values())
    found = held(plan(name), 1)
    assert (found.parameters, found.optimizer, found.gradients) == (4 * count, 8 * count, 4 * count)
    assert found.is_bound and found.total == 16 * count


def test_a_first_moment_of_two_bytes_is_counted_as_such():
    whole = plan("byte-tiny")
    less = dataclasses.replace(whole.train, optim=OptimConfig(first_moment="bfloat16"))
    assert held(dataclasses.replace(whole, train=less), 1).optimizer == 6 * held(whole, 1).parameters // 4


def test_devices_hold_parts_of_kernels_and_all_scales_of_norms():
    # byte-tiny: 260 x 16 in and out, 4 x 16^2 of attention, 3 x 16 x 48 of the feed-forward; three norms of 16.
    kernels, norms = 2 * 260 * 16 + 4 * 16**2 + 3 * 16 * 48, 3 * 16
    assert held(plan("byte-tiny"), 1).parameters == 4 * (kernels + norms)
    assert held(plan("byte-tiny"), 2).parameters == 4 * (kernels // 2 + norms)


def test_what_training_would_refuse_is_refused():
    with pytest.raises(ValueError, match=r"batch=2: rows do not divide over 3 devices"):
        held(plan("byte-tiny"), 3)
    with pytest.raises(ValueError, match=r"devices=3: parameter '\S+' of shape \(260, 16\)"):
        held(plan("byte-tiny", 3), 3)


def test_another_machine_without_a_topology_is_not_compiled_for():
    with pytest.raises(ValueError, match=re.escape("compile: [here] has no topology")):
        compiled(plan("byte-tiny"), dataclasses.replace(MACHINE, platform="gpu"), 64)
    many = dataclasses.replace(MACHINE, devices=16)
    with pytest.raises(ValueError, match=re.escape(f"sees {len(jax.devices())} cpu devices, not 16 of cpu")):
        compiled(plan("byte-tiny", 16), many, 64)


def test_a_topology_is_compiled_for_with_the_rows_of_the_study(monkeypatch):
    class Report:
        devices, scratch, batch = 4, 1000.0, 24.0

    asked = []
    monkeypatch.setattr(room, "compile_ahead", lambda plan: asked.append(plan) or Report)
    machine = dataclasses.replace(MACHINE, platform="tpu", devices=4, topology="v5e:2x2")
    found = compiled(plan("blt-tiny", 8), machine, 64)
    base = held(plan("blt-tiny", 8), 4)
    assert found == Footprint(base.parameters, base.optimizer, 0, 1024) and not found.is_bound
    assert (asked[0].topology, asked[0].rows, asked[0].positions, asked[0].slots) == ("v5e:2x2", 8, 64, 18)
    with pytest.raises(ValueError, match=r"topology='v5e:2x2' has 4 devices, not 8"):
        compiled(plan("blt-tiny", 8), dataclasses.replace(machine, devices=8), 64)


@pytest.mark.slow
def test_a_step_makes_more_than_its_gradients_and_more_rows_make_more():
    small, large = (compiled(plan("byte-tiny", batch), MACHINE, 64) for batch in (2, 64))
    assert small.total > held(plan("byte-tiny"), 1).total
    # 62 rows more, of which the logits alone are 64 x 260 numbers of four bytes.
    assert large.total - small.total > 62 * 64 * 260 * 4
