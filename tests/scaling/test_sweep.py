import csv
import dataclasses
import json
import math
import shutil

import numpy as np
import pyarrow.parquet
import pytest

from bltjax.flops import flops_per_byte
from bltjax.lock import Busy
from bltjax.metrics import read_journal
from bltjax.presets import preset
from bltjax.runtime import Stopped
from bltjax.scaling import inputs, sweep
from bltjax.scaling.plots import best_of_budgets
from bltjax.scaling.store import read_json
from bltjax.scaling.sweep import claim, plan_study, run_study, summary, table_row
from bltjax.train import evaluate, load_params
from tests.studies import Cut

TIMES = ("device_seconds", "own_device_seconds")


def without_times(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def test_a_study_leaves_a_manifest_and_metrics_for_each_run_a_table_and_figures(unbroken):
    study, rows = unbroken
    folders = sorted((study.out / "runs").iterdir())
    assert len(rows) == len(folders) == 6
    found = [read_json(folder / "manifest.json") for folder in folders]
    assert {row["run"] for row in rows} == {manifest["id"] for manifest in found}
    for folder, manifest in zip(folders, found, strict=True):
        assert folder.name.endswith(manifest["id"])
        assert manifest["status"] == "complete"
        assert manifest["inputs"]["corpus"]
        assert {"git", "versions", "device"} <= set(manifest["environment"])
        metrics = read_journal(folder / "metrics.jsonl")
        assert metrics[-1]["step"] == manifest["config"]["steps"]
        assert metrics[-1]["bytes_seen"] == manifest["result"]["bytes_seen"]
    with open(study.out / "table.csv", newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == [row["run"] for row in rows]
    assert pyarrow.parquet.read_table(study.out / "table.parquet").to_pylist() == rows
    figures = {"bits_per_byte", "isoflop_blt", "isoflop_byte", "isoflop_token"}
    assert {path.name for path in study.out.glob("*.*g")} == {
        f"{name}.{kind}" for name in figures for kind in ("png", "svg")
    }


def test_every_number_of_a_row_follows_from_its_manifest(unbroken):
    study, rows = unbroken
    scored = set()
    for row in rows:
        (folder,) = (study.out / "runs").glob(f"*{row['run']}")
        manifest = read_json(folder / "manifest.json")
        assert table_row(manifest) == row
        sums = manifest["result"]["heldout_sums"]
        assert row["heldout_bits_per_byte"] == pytest.approx(sums["byte_nats"] / math.log(2) / sums["bytes"])
        assert 0.5 < row["heldout_bits_per_byte"] < 12
        assert row["training_flops"] == pytest.approx(row["budget"], rel=0.2)
        assert row["training_flops_paper"] == pytest.approx(3 * row["forward_flops_per_byte_paper"] * row["bytes_seen"])
        scored.add((sums["bytes"], sums["specials"]))
    # Every family is scored on the same bytes and the same ends of documents.
    assert len(scored) == 1
    patched = [row for row in rows if row["family"] == "blt"]
    assert all(2 < row["bytes_per_unit"] < 4 for row in patched)


def test_the_summary_prints_the_numbers_of_the_figures(unbroken):
    _, rows = unbroken
    text = summary(rows)
    for row in rows:
        assert f"{row['heldout_bits_per_byte']:.4f}" in text
    assert text.count(" *\n") == 6  # one size at each budget of each family is the best


@pytest.mark.slow
def test_every_family_is_trained_and_scored_by_the_same_loop(study, texts):
    rules = ("monotonic", "strided", "space", "bpe")
    names = ("megabyte-tiny", "spacebyte-tiny", *(f"blt-{rule}-tiny" for rule in rules), "byte-tiny")
    study = dataclasses.replace(study, preset=names, budgets=(6e8,), delimiter_tokens=296, patch_lengths=(3,))
    rows = run_study(study, lambda text: None)
    assert [row["series"] for row in rows] == [name.removesuffix("-tiny") for name in names]
    found = {path.name.split("-tiny")[0]: read_json(path / "manifest.json") for path in (study.out / "runs").iterdir()}
    # The same bytes of the same documents, whatever a family reads them as.
    sums = [manifest["result"]["heldout_sums"] for manifest in found.values()]
    assert len(sums) == 7 and len({(each["bytes"], each["specials"]) for each in sums}) == 1
    for row in rows:
        losses = [line["bits_per_byte"] for line in read_journal(folder_of(study, row) / "metrics.jsonl")]
        assert losses[-1] < losses[0] - 0.5 and row["heldout_bits_per_byte"] < 7
        assert row["training_flops"] == pytest.approx(row["budget"], rel=0.2)
    sizes = {row["series"]: row["bytes_per_unit"] for row in rows}
    assert 2.4 < sizes["blt-strided"] < 3  # the first patches of documents and rows are shorter
    assert sizes["byte"] == sizes["megabyte"] == 1
    assert sizes["spacebyte"] == sizes["blt-space"]
    by_entropy = {series for series, manifest in found.items() if manifest["entropy_model"] is not None}
    assert by_entropy == {"blt-monotonic"} == {s for s, m in found.items() if "entropies" in m["inputs"]}
    assert "tokenizer" in found["blt-bpe"]["inputs"]
    # MEGABYTE in two passes reads the same bytes.
    config, params, _ = load_params(folder_of(study, rows[0]))
    made = inputs.Inputs(study, lambda text: None)
    score = evaluate(dataclasses.replace(config.model, inference="strided"), params, made.heldout(config.model, None))
    assert score.bytes == rows[0]["heldout_bytes"]
    assert score.bits_per_byte == pytest.approx(rows[0]["heldout_bits_per_byte"], abs=0.1)


def folder_of(study, row):
    (folder,) = (study.out / "runs").glob(f"*{row['run']}")
    return folder


@pytest.mark.slow
def test_a_study_that_is_interrupted_again_and_again_gives_the_same_table(unbroken, study, monkeypatch):
    expected = [row for row in unbroken[1] if row["family"] == "blt"]
    study = dataclasses.replace(study, preset=("blt-tiny",))
    monkeypatch.setattr(sweep, "Progress", Cut)
    monkeypatch.setattr(sweep, "CHECKPOINT_SECONDS", 0.0)  # after every step
    Cut.shown, Cut.at = 0, (3, 4, 20)
    evaluations = iter([KeyboardInterrupt(), None, RuntimeError("lost device")])
    evaluate = sweep.evaluate

    def failing(*arguments):
        error = next(evaluations, None)
        if error is not None:
            raise error
        return evaluate(*arguments)

    monkeypatch.setattr(sweep, "evaluate", failing)
    stops = 0
    while True:
        try:
            rows = run_study(study, lambda text: None)
            break
        except (KeyboardInterrupt, RuntimeError):
            stops += 1
            assert stops < 20
    assert stops == 5
    assert without_times(rows) == without_times(expected)
    found = [read_json(folder / "manifest.json") for folder in sorted((study.out / "runs").iterdir())]
    resumed = [start["resumed_from"] for manifest in found for start in manifest["starts"]]
    assert len(resumed) == 2 + stops
    assert sum(step is not None for step in resumed) == stops

    # All is done: nothing is trained or scored again.
    def never(*_, **__):
        raise AssertionError("this run was complete")

    monkeypatch.setattr(sweep, "fit", never)
    monkeypatch.setattr(sweep, "evaluate", never)
    figures = {path: path.read_bytes() for path in study.out.glob("*.*g")}
    assert run_study(study, lambda text: None) == rows
    assert {path: path.read_bytes() for path in study.out.glob("*.*g")} == figures


def test_the_cheapest_run_is_done_first_and_the_table_is_in_the_order_of_the_study(study, monkeypatch):
    study = dataclasses.replace(study, preset=("token-tiny", "byte-tiny"), budgets=(6e8, 2e8))
    done = []
    monkeypatch.setattr(sweep, "execute", lambda study, plan, inputs, label: done.append(plan) or manifest_of(plan))
    monkeypatch.setattr(sweep, "draw", lambda *_: [])
    rows = run_study(study, lambda text: None)
    assert [plan.device_flops for plan in done] == sorted(plan.device_flops for plan in done)
    order = [("token-tiny", 2e8), ("byte-tiny", 2e8), ("token-tiny", 6e8), ("byte-tiny", 6e8)]
    assert [(row["preset"], row["budget"]) for row in rows] == order
    assert [(plan.name, plan.budget) for plan in done] != order


def manifest_of(plan):
    """As much of a complete run's manifest as its row needs."""
    flops = {name: {"version": name, "forward": 1.0} for name in ("paper", "full")}
    names = "heldout_bits_per_byte heldout_special_bits bytes_seen epochs heldout_unit_bytes device_seconds"
    result = dict.fromkeys(names.split(), 0.0)
    return {
        "id": sweep.run_hash(plan), "family": plan.family, "series": plan.series, "preset": plan.name,
        "budget": plan.budget, "accounting": "paper", "flops_per_byte": flops, "parameters": {"non_embedding": 1},
        "config": {"model": {"vocabulary_size": 300}, "seed": 0, "steps": 1,
                   "optim": {"peak_rate": 1.0, "schedule": "cosine"}},
        "rows": dataclasses.asdict(plan.facts),
        "result": {**result, "heldout_sums": {"bytes": 1}, "training_flops": {"paper": 1.0, "full": 1.0}},
    }  # fmt: skip


def planned(study):
    made = inputs.Inputs(study, lambda text: None)
    (plan,) = plan_study(study, made)
    return plan, made, sweep.run_of(study, plan)


def test_a_run_that_fails_says_why_and_may_be_done_again(study, monkeypatch):
    study = dataclasses.replace(study, preset=("byte-tiny",), budgets=(2e8,))
    plan, made, run = planned(study)
    score = evaluate
    monkeypatch.setattr(sweep, "evaluate", lambda *given: dataclasses.replace(score(*given), byte_nats=math.nan))
    with pytest.raises(FloatingPointError, match="held-out loss is not finite"):
        sweep.execute(study, plan, made)
    assert run.state == "failed" and read_json(run.manifest_path)["error"]["type"] == "FloatingPointError"
    for stop in (Stopped("as asked"), KeyboardInterrupt()):  # these are no failures
        monkeypatch.setattr(sweep, "evaluate", lambda *_, stop=stop: raised(stop))
        with pytest.raises(type(stop)):
            sweep.execute(study, plan, made)
        assert run.state == "interrupted"
    monkeypatch.setattr(sweep, "evaluate", score)
    assert sweep.execute(study, plan, made)["status"] == run.state == "complete"


def raised(error):
    raise error


def test_a_run_is_done_by_one_process_at_a_time_and_not_once_more_after_it(study, monkeypatch):
    study = dataclasses.replace(study, preset=("byte-tiny",), budgets=(2e8,))
    plan, made, run = planned(study)
    with run.hold(), pytest.raises(Busy, match="is doing this run"):
        sweep.execute(study, plan, made)
    # Another process completes it after this one has looked, and before it has the lock.
    hold, complete = type(run).hold, {"id": sweep.run_hash(plan)}

    def late(self):
        self.finish(self.begin(complete), {"heldout_bits_per_byte": 2.0})
        return hold(self)

    monkeypatch.setattr(type(run), "hold", late)
    monkeypatch.setattr(sweep, "fit", lambda *_, **__: pytest.fail("trained once more"))
    assert sweep.execute(study, plan, made)["result"] == {"heldout_bits_per_byte": 2.0}


def test_only_the_rows_of_one_model_are_made_for_it(study, monkeypatch):
    monkeypatch.setattr(inputs.Inputs, "_train_entropy_model", lambda self: pytest.fail("not needed"))
    monkeypatch.setattr(inputs, "train", lambda *_: pytest.fail("not needed"))
    made = inputs.Inputs(study, lambda text: None)
    assert {plan.name for plan in plan_study(study, made, ("byte-tiny", None))} == {"byte-tiny"}


def test_more_budgets_seeds_and_rates_only_add_runs(unbroken, tmp_path, monkeypatch):
    study, rows = unbroken
    shutil.copytree(study.out, tmp_path / "study")
    study = dataclasses.replace(study, out=tmp_path / "study")
    trained = []
    fit = sweep.fit
    monkeypatch.setattr(
        sweep, "fit", lambda config, *rest, **more: trained.append(config) or fit(config, *rest, **more)
    )
    more = dataclasses.replace(
        study, preset=("byte-tiny",), seeds=(0, 1), keep_weights=False, peak_rates=(8e-3, 4e-3), entropy_rate=1e-3
    )
    both = run_study(more, lambda text: None)
    assert len(both) == 8
    usual, half = 8e-3 * 64 / 16, 4e-3 * 64 / 16
    assert [(config.seed, config.optim.peak_rate) for config in trained] == 2 * [(0, half), (1, usual), (1, half)]
    kept = [row for row in rows if row["family"] == "byte"]
    assert [row for row in both if (row["seed"], row["peak_rate"]) == (0, usual)] == kept
    losses = [row["heldout_bits_per_byte"] for row in both]
    assert len(set(losses)) == 8
    best = [min(row["heldout_bits_per_byte"] for row in group) for group in (both[:2], both[2:4])]
    smallest, _ = best_of_budgets(both)
    assert smallest["heldout_bits_per_byte"] == pytest.approx(np.mean(best)), "the mean of each seed at its best rate"
    stars = [line for line in summary(both).splitlines() if line.endswith(" *")]
    assert len(stars) == 4, "one rate of each budget and seed counts"
    weights = {folder.name: (folder / "checkpoints").exists() for folder in (study.out / "runs").iterdir()}
    assert all(kept == ("-s1-" not in name and "-r4e-3-" not in name) for name, kept in weights.items())


def test_a_folder_of_something_else_is_left_alone(study, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="something else"):
        claim(dataclasses.replace(study, out=full))
    with pytest.raises(ValueError, match="is a file"):
        claim(dataclasses.replace(study, out=full / "thesis.tex"))
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]


def test_a_budget_below_one_step_is_found_before_any_run_begins(study, monkeypatch):
    # Only the measured size of tokens shows that it is too small: the plan is refused, nothing is trained.
    monkeypatch.setattr(sweep, "fit", lambda *_, **__: pytest.fail("a run was begun"))
    nominal_step = 32 * 8 * flops_per_byte(preset("token-tiny"), 4.0, 32).training
    small = dataclasses.replace(study, preset=("token-tiny",), budgets=(1.05 * nominal_step, 1e10))
    with pytest.raises(ValueError, match="less than one step of token-tiny"):
        run_study(small, lambda text: None)
    assert not (study.out / "runs").exists()


def test_a_text_too_short_for_its_tokenizer_is_refused_before_anything_is_trained(study, tmp_path, monkeypatch):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(60):
        (texts / f"{number}.txt").write_text(f"{number} " + "ab " * 20)
    monkeypatch.setattr(inputs, "fit", lambda *_, **__: pytest.fail("the entropy model was trained"))
    with pytest.raises(ValueError, match="vocabulary_size=296"):
        run_study(dataclasses.replace(study, corpus=(str(texts),)), lambda text: None)


def test_a_vocabulary_that_the_text_cannot_fill_is_refused_before_anything_is_trained(study, monkeypatch):
    monkeypatch.setattr(inputs, "fit", lambda *_, **__: pytest.fail("the entropy model was trained"))
    study = dataclasses.replace(study, vocabularies=(270, 4096))
    with pytest.raises(ValueError, match=r"vocabularies=\(270, 4096\): .* are enough for \d+ tokens only"):
        run_study(study, lambda text: None)
    made = inputs.Inputs(study, lambda text: None)
    with pytest.raises(ValueError, match="4096"):  # whichever run a process was to do
        plan_study(study, made, only=("token-tiny-v270", None))
    assert not (study.out / "runs").exists()


def test_settings_are_kept_beside_the_study(unbroken):
    study, _ = unbroken
    stored = json.loads((study.out / "study.json").read_text())
    assert stored["budgets"] == list(study.budgets)
    assert stored["peak_rates"] == list(study.peak_rates)
