import dataclasses
import json
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from bltjax.config import OptimConfig, RowsConfig
from bltjax.lock import Lock
from bltjax.metrics import Progress, read_journal
from bltjax.presets import preset
from bltjax.scaling import sweep, trunk
from bltjax.scaling.fit import own_table, points_of
from bltjax.scaling.fit.resample import weights
from bltjax.scaling.forecast import forecast
from bltjax.scaling.inputs import Inputs
from bltjax.scaling.plan import plan_run
from bltjax.scaling.store import read_json
from bltjax.scaling.study import Study
from bltjax.scaling.sweep import plan_study, run_of, run_study
from bltjax.scaling.trunk import Trunk, branch_off, computed, jobs, leave, saved_steps, trunk_hash
from bltjax.train import fit, load_params
from tests.scaling.conftest import tiny_study
from tests.scaling.test_plan import BYTES, blt_plan
from tests.studies import Cut

BUDGETS = (2e8, 4e8, 6e8, 8e8)
LEFT = [14, 27, 41, 54]  # of byte-tiny: 80 % of 17, 34, 51 and 68 steps
TIMES = ("device_seconds", "own_device_seconds")


def quiet(message):
    pass


def without_times(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def trunks_of(study):
    return sorted((study.out / "trunks").iterdir())


@pytest.fixture(scope="session")
def branched(texts, tmp_path_factory):
    """A study of one trunk, left at four budgets, done without a break, and its table."""
    study = tiny_study(texts, tmp_path_factory.mktemp("branched") / "study")
    study = dataclasses.replace(study, preset=("byte-tiny",), budgets=BUDGETS, schedule="wsd")
    return study, run_study(study, quiet)


@pytest.fixture
def part(branched, tmp_path):
    """A copy of it, in which the runs of the second and the fourth budget were never begun, nor the trunk for them."""
    study, _ = branched
    copy = dataclasses.replace(study, out=tmp_path / "study")
    shutil.copytree(study.out, copy.out)
    for plan in plan_study(copy, Inputs(copy, quiet)):
        if plan.budget in BUDGETS[1::2]:
            shutil.rmtree(run_of(copy, plan).folder)
            shutil.rmtree(Trunk(copy, plan).folder / f"to-{plan.branch_step}")
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byte-tiny", pytest.param("blt-tiny", marks=pytest.mark.thorough)])
def test_a_run_that_left_a_trunk_is_to_the_bit_one_that_was_never_broken(branched, texts, tmp_path, name):
    study, _ = branched
    if name != "byte-tiny":
        study = dataclasses.replace(tiny_study(texts, tmp_path / "s"), preset=(name,), budgets=BUDGETS, schedule="wsd")
        run_study(study, quiet)
    inputs = Inputs(study, quiet)
    plans = plan_study(study, inputs)
    assert name != "byte-tiny" or [plan.branch_step for plan in plans] == LEFT
    for plan in plans[::3]:
        folder = run_of(study, plan).folder
        assert (folder / "origin.json").is_file()
        source = inputs.source(plan.train.model, plan.wanted, "train")
        alone = fit(plan.train, source, tmp_path / str(plan.train.steps), progress=Progress(silent=True))
        _, params, step = load_params(folder)
        assert step == plan.train.steps
        jax.tree.map(np.testing.assert_array_equal, params, alone.params)
        rows = [read_journal(one / "metrics.jsonl") for one in (folder, alone.folder)]
        assert len(rows[0]) == len(rows[1]) == plan.train.steps  # one for each step: losses, rates, gradients
        assert [row | {"timing": 0} for row in rows[0]] == [row | {"timing": 0} for row in rows[1]]
        result = read_json(folder / "manifest.json")["result"]
        assert result["bytes_seen"] == alone.bytes_seen and result["fill"] == alone.fill


def test_a_run_is_charged_its_whole_path_and_computed_from_its_trunk_on(branched):
    study, rows = branched
    for row in rows:
        manifest = read_json(next((study.out / "runs").glob(f"*{row['run']}")) / "manifest.json")
        assert (manifest["trunk"], manifest["branch_step"]) == (row["trunk"], row["branch_step"])
        assert row["training_flops"] == pytest.approx(row["budget"], rel=0.05)
        assert row["training_flops"] == 3 * row["forward_flops_per_byte_paper"] * row["bytes_seen"]
        assert 0 < row["own_device_seconds"] < row["device_seconds"]
    assert [row["branch_step"] for row in rows] == LEFT and {row["schedule"] for row in rows} == {"wsd"}
    # The trunk is passed over once, however many runs left it; its name is that of the table.
    (folder,) = trunks_of(study)
    assert {row["trunk"] for row in rows} == {folder.name[-16:]}
    pieces = read_json(folder / "manifest.json")["result"]["pieces"]
    assert [(piece["first"], piece["last"]) for piece in pieces] == list(zip([0, *LEFT], LEFT, strict=False))
    seen, seconds = (np.cumsum([piece[name] for piece in pieces]) for name in ("bytes_seen", "device_seconds"))
    for row, bytes_seen, device_seconds in zip(rows, seen, seconds, strict=True):
        assert 0.75 < bytes_seen / row["bytes_seen"] < 0.85
        assert row["device_seconds"] - row["own_device_seconds"] == pytest.approx(device_seconds)
    assert "device seconds of training" in trunk.seconds_spent(study, rows)


def test_the_bootstrap_draws_the_runs_of_a_trunk_together(branched):
    rows = [{**row, "seed": copy, "trunk": f"{row['trunk']}{copy}"} for row in branched[1] for copy in range(6)]
    points = points_of(rows, own_table("byte"))
    assert len(points) == 24 and len(set(points.cluster)) == 6
    drawn = weights(points.cluster, 100, 0)
    for name in set(points.cluster):
        times = drawn[:, [one == name for one in points.cluster]]
        assert times.shape == (100, 4) and (times == times[:, :1]).all() and len(set(times[:, 0])) > 1


@pytest.mark.slow
def test_a_study_killed_in_trunks_in_runs_and_between_gives_the_same_table(branched, tmp_path, monkeypatch):
    study = dataclasses.replace(branched[0], out=tmp_path / "study", budgets=BUDGETS[:2])
    shutil.copytree(next(branched[0].out.glob("corpus-*")), study.out / next(branched[0].out.glob("corpus-*")).name)
    shutil.copy(branched[0].out / "study.json", study.out)
    monkeypatch.setattr(sweep, "Progress", Cut)
    monkeypatch.setattr(sweep, "CHECKPOINT_SECONDS", 0.0)  # after every step
    Cut.shown, Cut.at = 0, (3, 17, 24)  # in the trunk, in a run, in a further piece
    written = []

    def failing(path, value):
        written.append(path.name)
        if written.count(path.name) == 1:  # before the state is copied, and after a piece is trained
            raise KeyboardInterrupt
        write_json(path, value)

    write_json = trunk.write_json
    monkeypatch.setattr(trunk, "write_json", failing)
    stops = 0
    while True:
        try:
            rows = run_study(study, quiet)
            break
        except KeyboardInterrupt:
            stops += 1
            assert stops < 20
    assert stops == 5 and set(written) == {"origin.json", "piece.json"}
    assert without_times(rows) == without_times(branched[1])[:2]


@pytest.mark.parametrize("kept", [True, False])
def test_a_budget_added_later_goes_on_from_the_nearest_point_before_it(branched, part, kept):
    part = dataclasses.replace(part, keep_weights=kept)
    points = Trunk(part, plan_study(part, Inputs(part, quiet))[0])
    if not kept:
        points.forget()
    assert points.points() == ([14, 41] if kept else [41])
    rows = run_study(part, quiet)
    assert without_times(rows) == without_times(branched[1])
    # Behind the trunk's end it goes on; a step that it has passed is reached again from the last point before it.
    assert {piece["last"]: piece["first"] for piece in computed(points.folder)} == {
        14: 0, 27: 14 if kept else 0, 41: 27, 54: 41
    }  # fmt: skip
    assert points.points() == (LEFT if kept else [54])


def test_a_plan_bills_what_is_left_of_a_trunk(part):
    planned = forecast(part, quiet)
    assert [run.done for run in planned.runs] == [True, False, True, False]
    assert [(piece.first, piece.last) for piece in planned.pieces] == [(0, 14), (14, 27), (27, 41), (41, 54)]
    assert [piece.done for piece in planned.pieces] == [True, False, True, False]
    batch = planned.runs[0].plan.facts.mean_row_bytes * 8
    assert [piece.bytes for piece in planned.pieces] == pytest.approx([14 * batch, 13 * batch, 14 * batch, 13 * batch])
    # Without its first state the second run is to be reached from the start.
    Trunk(part, planned.runs[0].plan).forget()
    assert [piece.done for piece in forecast(part, quiet).pieces] == [False, False, True, False]
    only = dataclasses.replace(part, budgets=BUDGETS[::2])
    assert all(piece.done for piece in forecast(only, quiet).pieces)


def test_nothing_leaves_a_trunk_that_is_not_there_or_is_another(part, tmp_path):
    inputs = Inputs(part, quiet)
    plan = plan_study(part, inputs)[1]
    source = inputs.source(plan.train.model, None, "train")
    own = Trunk(part, plan)
    for piece, has in (("to-41", "only that of step 41"), ("to-99", "none")):
        with pytest.raises(ValueError, match=f"no sound checkpoint of that step, {has}"):
            leave(own.folder / piece, 27, tmp_path / piece, plan.train, source, own.id)
        assert not saved_steps(tmp_path / piece)
    other = dataclasses.replace(plan.train, optim=dataclasses.replace(plan.train.optim, peak_rate=0.1))
    with pytest.raises(ValueError, match=r"optim/peak_rate: 0\.032 before, 0\.1 now"):
        leave(own.folder / "to-14", 14, tmp_path / "other", other, source, own.id)
    # What can no longer be read of a trunk is an error as well, and no reason to begin anew.
    for path in (own.folder / "to-14" / "checkpoints" / "14" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of its checkpoints can be read"):
        branch_off(part, plan, tmp_path / "run", source, Progress(silent=True), 30.0)


def test_a_run_waits_for_another_process_that_trains_its_trunk(part, tmp_path):
    inputs = Inputs(part, quiet)
    plan = plan_study(part, inputs)[0]
    said = []

    class Heard(Progress):
        def say(self, message):
            said.append(message)

    source = inputs.source(plan.train.model, None, "train")
    arguments = (part, plan, tmp_path / "run", source, Heard(silent=True), 30.0)
    with Lock(Trunk(part, plan).folder / "trunk.lock"):
        waiting = threading.Thread(target=branch_off, args=arguments)
        waiting.start()
        while not said:
            time.sleep(0.01)
        assert waiting.is_alive() and said[0].startswith("waits: ") and not saved_steps(tmp_path / "run")
    waiting.join(timeout=60)
    assert saved_steps(tmp_path / "run") == [14]


def wsd(study, **changes):
    arguments = {"rows": RowsConfig(bytes=256, batch=4), "facts": BYTES, "budget": 1e10, "seed": 0, **changes}
    arguments.setdefault("rate", study.peak_rates[0])
    return plan_run(study, "byte-tiny", preset("byte-tiny"), **arguments)


STUDY = Study(preset=("byte-tiny",), budgets=(1e10, 1e11), schedule="wsd")


def test_a_trunk_is_known_by_what_decides_it_and_by_no_budget():
    known = trunk_hash(wsd(STUDY))
    same = [
        wsd(STUDY, budget=1e11),
        wsd(dataclasses.replace(STUDY, budgets=(1e10, 3e12)), budget=3e12),
        wsd(dataclasses.replace(STUDY, cooldown=0.1), budget=1e11),
        wsd(STUDY, inputs={"scoring": {"bytes": 3}}),
    ]
    assert {trunk_hash(plan) for plan in same} == {known}
    assert len({plan.branch_step for plan in same}) == 4
    others = [
        wsd(STUDY, seed=1),
        wsd(STUDY, inputs={"corpus": "another"}),
        wsd(dataclasses.replace(STUDY, peak_rates=(1e-3,))),
        wsd(dataclasses.replace(STUDY, warmup_steps=3)),
        wsd(STUDY, rows=RowsConfig(bytes=256, batch=8)),
        blt_plan(dataclasses.replace(STUDY, preset=("blt-tiny",)), 1e11),
    ]
    assert len({known, *map(trunk_hash, others)}) == 1 + len(others)


def test_a_smaller_budget_begins_another_trunk_unless_the_warm_up_is_given():
    smaller = dataclasses.replace(STUDY, budgets=(1e9, *STUDY.budgets))
    assert trunk_hash(wsd(smaller)) != trunk_hash(wsd(STUDY))
    warm = wsd(STUDY).train.optim.warmup_steps
    assert trunk_hash(wsd(dataclasses.replace(smaller, warmup_steps=warm))) == trunk_hash(wsd(STUDY))


def test_the_runs_of_a_trunk_are_one_job_smallest_budget_first():
    plans = [wsd(STUDY, budget=budget, seed=seed) for budget in (1e11, 1e10) for seed in (0, 1)]
    assert [[(plan.seed, plan.budget) for plan in job] for job in jobs(plans)] == [
        [(0, 1e10), (0, 1e11)], [(1, 1e10), (1, 1e11)]
    ]  # fmt: skip
    alone = dataclasses.replace(STUDY, schedule="cosine")
    assert [len(job) for job in jobs(wsd(alone, budget=budget) for budget in STUDY.budgets)] == [1, 1]


def test_a_run_too_short_to_share_a_step_is_trained_alone():
    step = wsd(STUDY).training_flops / wsd(STUDY).train.steps
    plan = wsd(dataclasses.replace(STUDY, budgets=(step,)), budget=step)
    assert (plan.train.steps, plan.branch_step) == (1, 0)
    assert plan.train.optim == OptimConfig(plan.train.optim.peak_rate, "wsd")


def test_the_manifest_of_a_trunk_says_what_it_is(branched):
    study, rows = branched
    manifest = json.loads((trunks_of(study)[0] / "manifest.json").read_text())
    assert (manifest["kind"], manifest["status"], manifest["preset"]) == ("trunk", "complete", "byte-tiny")
    assert manifest["id"] == rows[0]["trunk"] and manifest["result"]["points"] == LEFT
    assert manifest["config"]["optim"]["schedule"] == "constant" and "scoring" not in manifest["inputs"]
    assert [start["resumed_from"] for start in manifest["starts"]] == [None, *LEFT[:-1]]
