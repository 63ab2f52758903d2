import dataclasses
import datetime
import math
import re
from pathlib import Path

import pytest

from bltjax.scaling.edges import Prediction
from bltjax.scaling.footprint import Footprint
from bltjax.scaling.forecast import forecast
from bltjax.scaling.machines import Machine
from bltjax.scaling.spend import OverCap, bill, input_positions, label_of, row_flops
from bltjax.scaling.study import Study

TODAY = datetime.date(2026, 1, 31)
MACHINE = Machine(
    "box", TODAY, "an accelerator", "gpu", 2, 1e9, {"float32": 1e9},
    fraction={"byte": 0.25, "default": 0.1}, price=3.6, currency="EUR",
)  # fmt: skip
SMALL = Footprint(4, 8, 4)
STUDY = Study(
    out=Path("nowhere/at/all"), corpus=("text",), preset=("byte-tiny",), budgets=(1e9,), row_bytes=256, batch=4,
    heldout_bytes=960,
)  # fmt: skip
WIDE = dataclasses.replace(
    STUDY, preset=("blt-tiny", "byte-tiny", "token-tiny"), budgets=(2e9, 6e9), seeds=(0, 1), corpus_bytes=100_000
)


def costed(study=STUDY, machine=MACHINE, footprint=SMALL, predictions=(), today=TODAY, done=()):
    planned = forecast(study, print)
    runs = tuple(dataclasses.replace(run, done=i in done) for i, run in enumerate(planned.runs))
    planned = dataclasses.replace(planned, runs=runs, entropy_done="entropy" in done)
    labels = {label_of(study, run.plan) for run in planned.runs}
    return bill(planned, machine, dict.fromkeys(labels, footprint), predictions, today=today)


# byte-tiny by hand: width 16, one layer, hidden 48, rows of 256 bytes, so that a query sees 128.5 keys in the mean.
FULL = 2 * 16 * (4 * 16) + 4 * 128.5 * 16 + 3 * 2 * 16 * 48 + 2 * 16 * 260  # 23,200 forward FLOPs per byte
PAPER = 2 * 2 * 4 * 16**2 + 4 * 2 * 16**2 + 4 * 16 * 128.5 + 2 * 16 * 256
STEPS = round(1e9 / (3 * PAPER * 256 * 4))  # 14


def test_a_run_costs_what_arithmetic_says():
    (item,) = costed().items
    plan = item.run.plan
    assert FULL == 23_200 and STEPS == 14 == plan.train.steps
    assert plan.bytes == STEPS * 4 * 256
    assert item.training == pytest.approx(3 * FULL * STEPS * 4 * 256)
    assert item.scoring == pytest.approx(FULL * 960 * 256 / 192)  # three quarters of each window are new
    seconds = (item.training + item.scoring) / (2 * 1e9 * 0.25)
    assert item.seconds == pytest.approx(seconds)
    assert item.device_seconds == pytest.approx(2 * seconds)
    assert item.money == pytest.approx(2 * seconds / 3600 * 3.6)
    assert row_flops(plan) == pytest.approx(3 * FULL * 256)
    assert input_positions(plan) == 256


def test_the_entropy_model_is_an_item_of_its_own_and_is_paid_once():
    study = dataclasses.replace(WIDE, entropy_model="entropy-tiny", entropy_bytes=20_000)
    *_, shared = costed(study).items
    # entropy-tiny: width 16, hidden 32, a window of 32 in rows of 256: the first 32 queries see 1 to 32 keys.
    keys = (32 * 33 / 2 + (256 - 32) * 32) / 256
    forward = 2 * 16 * 64 + 4 * keys * 16 + 3 * 2 * 16 * 32 + 2 * 16 * 260
    assert shared.run is None and shared.label == "entropy-tiny"
    assert shared.training == pytest.approx(3 * forward * 20_000)
    assert shared.scoring == pytest.approx(forward * 100_000)
    assert shared.fraction == 0.1
    assert not [i for i in costed(dataclasses.replace(study, preset=("byte-tiny",))).items if i.run is None]


def test_totals_add_up_by_series_and_in_all():
    found = costed(WIDE)
    *series, whole = found.totals()
    assert [total.of for total in series] == ["blt", "byte", "token", "entropy"] and whole.of == "all"
    assert whole.runs == sum(total.runs for total in series) == 12
    for name in ("work", "bytes", "seconds", "device_seconds", "money"):
        parts = math.fsum(getattr(total, name) for total in series)
        assert getattr(whole, name) == pytest.approx(parts, rel=1e-12)
    assert whole.money == pytest.approx(math.fsum(item.money for item in found.items))
    assert whole.device_seconds == pytest.approx(2 * whole.seconds)
    assert whole.paper == pytest.approx(sum(item.run.plan.training_flops for item in found.items if item.run))


def test_trunks_are_paid_once_and_charged_to_every_run_that_leaves_them():
    """T_K + 0.2 (T_1 + ... + T_K) steps on the devices, where T_1 + ... + T_K are charged."""
    alone, shared = costed(WIDE), costed(dataclasses.replace(WIDE, schedule="wsd"))
    assert (shared.total.paper, shared.total.runs, shared.total.bytes) == (
        alone.total.paper, alone.total.runs, alone.total.bytes
    )  # fmt: skip
    assert shared.total.alone == pytest.approx(alone.total.work) == pytest.approx(alone.total.alone)
    for name in ("blt-tiny", "byte-tiny", "token-tiny"):
        plans = [item.run.plan for item in shared.items if item.run is not None and item.label == name]
        longest = max(plan.branch_step for plan in plans)
        computed = 2 * longest + sum(plan.train.steps - plan.branch_step for plan in plans)  # of two seeds
        step = row_flops(plans[0]) * plans[0].train.rows.batch
        assert computed < 0.85 * sum(plan.train.steps for plan in plans)
        assert math.fsum(i.training for i in shared.items if i.label == name) == pytest.approx(computed * step)
        pieces = [item for item in shared.items if item.label == name and item.piece is not None]
        assert len(pieces) == 4 and all(item.scoring == 0 and not item.done for item in pieces)
        assert pieces[0].fraction == next(i.fraction for i in alone.items if i.label == name)
    *series, whole = shared.totals()
    assert [total.of for total in series] == ["blt", "byte", "token", "entropy"]
    for name in ("work", "alone", "bytes", "seconds", "device_seconds", "money"):
        assert getattr(whole, name) == pytest.approx(math.fsum(getattr(total, name) for total in series), rel=1e-12)
    assert shared.total.money < alone.total.money
    assert any(note.startswith("trunks are trained once") for note in shared.notes)
    assert not any("trunks" in note for note in alone.notes)


def test_what_a_cap_leaves_out_of_a_trunk_is_named():
    dear = costed(dataclasses.replace(WIDE, schedule="wsd"), dataclasses.replace(MACHINE, price=3600.0))
    with pytest.raises(OverCap, match=r"trunk to step [\d,]+, seed 0: "):
        dear.check(max_money=1.0)


def test_twice_the_price_is_twice_the_money_and_nothing_else():
    one, two = costed(WIDE), costed(WIDE, dataclasses.replace(MACHINE, price=7.2))
    assert two.total == dataclasses.replace(one.total, money=2 * one.total.money)


def test_twice_the_devices_halve_the_hours_and_leave_the_device_hours():
    one, two = costed().total, costed(machine=dataclasses.replace(MACHINE, devices=4)).total
    assert two.seconds == pytest.approx(one.seconds / 2)
    assert (two.device_seconds, two.money) == (pytest.approx(one.device_seconds), pytest.approx(one.money))


def test_a_fraction_of_half_takes_twice_the_time():
    one, two = costed().total, costed(machine=dataclasses.replace(MACHINE, fraction={"byte-tiny": 0.125})).total
    assert two.seconds == pytest.approx(2 * one.seconds)


def test_a_cap_a_cent_below_refuses_and_the_sum_itself_passes():
    found = costed(WIDE, dataclasses.replace(MACHINE, price=3600.0))
    sum_ = found.total.money
    found.check(max_money=sum_, max_device_hours=found.total.device_seconds / 3600)
    with pytest.raises(OverCap, match=re.escape(f"the study takes {sum_:,.2f} EUR")) as refused:
        found.check(max_money=sum_ - 0.01)
    dearest = sorted(found.items, key=lambda item: -item.money)[:5]
    names = ["; ".join(f"{item.name}: {item.money:,.2f}" for item in dearest)]
    assert names[0] in str(refused.value)
    with pytest.raises(OverCap, match="device-hours"):
        found.check(max_device_hours=0.999 * found.total.device_seconds / 3600)


def test_a_cap_is_held_to_what_is_left():
    dear = dataclasses.replace(MACHINE, price=3600.0)
    whole, part = costed(WIDE, dear), costed(WIDE, dear, done=(0, 3, "entropy"))
    assert part.total == whole.total and [total.of for total in part.totals()][-2:] == ["all", "left"]
    spent = sum(whole.items[i].money for i in (0, 3, -1))
    assert part.left.money == pytest.approx(whole.total.money - spent) and part.left.runs == 10
    part.check(max_money=part.left.money)
    with pytest.raises(OverCap) as refused:
        part.check(max_money=part.left.money - 0.01)
    assert part.items[-1].money > 0 and "entropy-cpu" not in str(refused.value)
    assert any(note.startswith("3 of 13 are done already") for note in part.notes)
    assert whole.left.money == whole.total.money and "left" not in [total.of for total in whole.totals()]


def test_without_price_or_fraction_money_is_unknown_and_no_cap_can_be_kept():
    free = costed(WIDE, dataclasses.replace(MACHINE, price=None, currency=None))
    assert free.total.money is None and free.total.seconds is not None
    assert any("[box] has no price" in note for note in free.notes)
    with pytest.raises(ValueError, match=re.escape("max_money=9: can't be checked, [box] has no price")):
        free.check(max_money=9)
    partly = costed(WIDE, dataclasses.replace(MACHINE, fraction={"byte": 0.25}))
    assert (partly.total.seconds, partly.total.money) == (None, None)
    assert [total.money is None for total in partly.totals()] == [True, False, True, True, True]
    note = next(note for note in partly.notes if "no measured fraction" in note)
    assert all(label in note for label in ("blt-tiny", "token-tiny", "entropy-cpu")) and "byte-tiny" not in note
    for cap in ({"max_money": 9}, {"max_device_hours": 9}):
        with pytest.raises(ValueError, match="fraction of peak"):
            partly.check(**cap)


def test_a_text_of_unknown_size_leaves_its_scoring_out_and_says_so():
    found = costed(dataclasses.replace(STUDY, heldout_bytes=None))
    assert found.items[0].scoring is None
    assert found.items[0].seconds == pytest.approx(3 * FULL * STEPS * 1024 / (2 * 1e9 * 0.25))
    assert any("how many bytes are to be scored is not known" in note for note in found.notes)
    # What is known is a lower bound: it can refuse, but it can't allow.
    with pytest.raises(OverCap):
        found.check(max_device_hours=found.total.device_seconds / 3601)
    with pytest.raises(ValueError, match="can't be checked: how many bytes byte-tiny must score"):
        found.check(max_device_hours=found.total.device_seconds / 3599)
    found.check()


def test_rows_that_rest_on_wishes_are_said_to():
    notes = costed(WIDE).notes
    assert "rows not measured yet (marked ~): all models; --prepare makes what measures them" in notes
    assert "the text is not read yet, taken to have 100,000 bytes, its limit" in notes


def test_what_does_not_fit_into_a_device_is_said():
    said = [note for note in costed(footprint=Footprint(10**9, 1, 0)).notes if "does not fit" in note]
    assert said == ["does not fit: byte-tiny needs at least 1.0 GB of 1.0"]
    said = [note for note in costed(footprint=Footprint(10**9, 1, 0, 10**9)).notes if "does not fit" in note]
    assert said == ["does not fit: byte-tiny needs 2.0 GB of 1.0"]
    assert not [note for note in costed(footprint=Footprint(10**9, 0, 0)).notes if "does not fit" in note]


def test_few_steps_and_edges_and_old_figures_are_warned_of():
    edge = Prediction("byte", 1e9, 7536.0, "at or below", "60 bytes a parameter")
    inside = Prediction("byte", 1e10, 7536.0, None, "60 bytes a parameter")
    notes = costed(predictions=[edge, inside]).notes
    assert [note for note in notes if "edge" in note] == [f"at an edge: {edge}"]
    assert not [note for note in notes if "steps" in note or "days ago" in note]
    few = costed(dataclasses.replace(STUDY, budgets=(6.3e8, 3e8, 1e9))).notes  # 9.1, 4.3 and 14.4 steps
    assert [note for note in few if "steps" in note] == [
        "only 4 steps: byte-tiny at 3e8", "only 9 steps: byte-tiny at 6.3e8"
    ]  # fmt: skip
    assert "400 days ago" in costed(today=TODAY + datetime.timedelta(days=400)).notes[-1]


def test_patch_sizes_tell_models_apart_only_where_there_are_several():
    several = dataclasses.replace(STUDY, preset=("blt-tiny",), budgets=(2e9,), patch_sizes=(3.0, 4.5))
    machine = dataclasses.replace(MACHINE, fraction={"blt-tiny-p3": 0.5, "blt": 0.25, "entropy": 0.1})
    found = costed(several, machine)
    assert [(item.label, item.fraction) for item in found.items] == [
        ("blt-tiny-p3", 0.5), ("blt-tiny-p4.5", 0.25), ("entropy-cpu", 0.1)
    ]  # fmt: skip
    assert costed(dataclasses.replace(several, patch_sizes=(3.0,)), machine).items[0].label == "blt-tiny"


def test_a_machine_without_the_dtype_of_the_study_is_refused():
    with pytest.raises(ValueError, match=re.escape("[box.peak] has no bfloat16")):
        costed(dataclasses.replace(STUDY, dtype="bfloat16"))
