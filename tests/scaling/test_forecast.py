import dataclasses

import pytest

from bltjax.config import PatcherConfig
from bltjax.presets import preset
from bltjax.scaling.forecast import expected_rows, forecast
from bltjax.scaling.inputs import EMBEDDED_BYTES, Inputs, corpus_folder
from bltjax.scaling.plan import MOST_EPOCHS, run_hash
from bltjax.scaling.study import Study
from bltjax.scaling.sweep import plan_study, run_of
from tests.scaling.conftest import tiny_study


def quiet(message: str) -> None:
    pass


def rows(name, wanted=None, **changes):
    config, facts = expected_rows(Study(**changes), preset(name), wanted, 1_000_000)
    return config.slots, facts


def test_rows_are_full_and_cut_as_wanted_before_the_text_is_read():
    slots, facts = rows("byte-tiny")
    assert (slots, facts.positions, facts.mean_row_bytes, facts.unit_bytes) == (None, 256, 256.0, 1.0)
    # 256 / 4.5 = 56.9 patches, so 57, and 2 more for the starts that every row is given.
    slots, facts = rows("blt-tiny", PatcherConfig(mean_patch_bytes=4.5))
    assert (slots, facts.unit_bytes, facts.byte_fill) == (59, 4.5, 1.0)
    assert facts.slot_fill == pytest.approx(256 / 4.5 / 59)
    assert rows("blt-tiny", PatcherConfig(rule="strided", size=8))[0] == 34
    # Where a size is no choice, 4 bytes: 64 of them, and 2, up to a multiple of 8.
    assert rows("token-tiny")[0] == rows("spacebyte-tiny", PatcherConfig(rule="space"))[0] == 72
    slots, facts = rows("blt-tiny", PatcherConfig(rule="bpe"))
    assert (slots, facts.positions, facts.byte_fill) == (74, 256 + 72, pytest.approx(256 / 328))


def test_a_row_shorter_than_a_patch_still_holds_one():
    slots, facts = rows("blt-tiny", PatcherConfig(mean_patch_bytes=50.0), row_bytes=32)
    assert (slots, facts.unit_bytes) == (3, 32.0)


def test_nothing_is_made_where_nothing_lies(study):
    planned = forecast(study, quiet)
    assert not study.out.exists()
    assert len(planned.runs) == 6 and not any(run.measured for run in planned.runs)
    assert planned.by_entropy and not planned.text.measured
    # A corpus of any size: nothing is said of epochs.
    assert planned.text.train_bytes is None and {run.plan.epochs for run in planned.runs} == {None}
    budgets = [run.plan.budget for run in planned.runs]
    assert budgets == sorted(budgets)


def test_a_limit_of_the_corpus_is_what_it_is_taken_to_have(tmp_path):
    text = forecast(Study(out=tmp_path / "a", heldout_percent=10.0), quiet).text
    assert (text.train_bytes, text.heldout_bytes) == (EMBEDDED_BYTES * 9 // 10, EMBEDDED_BYTES // 10)
    limited = Study(out=tmp_path / "a", corpus=("text",), corpus_bytes=1000, heldout_percent=10.0)
    assert forecast(limited, quiet).text.train_bytes == 900


def test_what_lies_there_is_measured_and_epochs_are_those_of_the_corpus(study, texts):
    study = dataclasses.replace(study, budgets=(2e8, 4e9))
    made = Inputs(study, quiet)
    trained = made.corpus.documents("train").total_bytes
    found = {run.plan.name: run.measured for run in forecast(study, quiet).runs}
    assert found == {"byte-tiny": True, "token-tiny": False, "blt-tiny": False}
    made.tokenizer(296)
    planned = forecast(study, quiet)
    assert {run.plan.name: run.measured for run in planned.runs} == {**found, "token-tiny": True}
    assert planned.text.train_bytes == trained and planned.text.measured
    for run in planned.runs:
        assert run.plan.epochs == pytest.approx(run.plan.bytes / trained)
    longest = max(run.plan.epochs for run in planned.runs)
    said = [" ".join(run.warnings()) for run in planned.runs]
    assert longest > MOST_EPOCHS and any(f"{longest:.1f} epochs" in text for text in said)
    assert [("epochs" in text) for text in said] == [run.plan.epochs > MOST_EPOCHS for run in planned.runs]
    # Runs that are measured are those that the study will do, by their hashes too.
    own = dataclasses.replace(study, preset=("byte-tiny", "token-tiny"))
    assert not any(run.done for run in planned.runs) and not planned.entropy_done
    finished = next(run.plan for run in planned.runs if run.measured)
    run_of(study, finished).finish({"id": "x"}, {})
    assert [run.plan for run in forecast(study, quiet).runs if run.done] == [finished]
    hashes = [run_hash(run.plan) for run in forecast(own, quiet).runs]
    assert hashes == [run_hash(plan) for plan in plan_study(own, Inputs(own, quiet))]


def test_how_full_rows_are_is_not_warned_of_before_it_is_measured(tmp_path):
    runs = forecast(Study(out=tmp_path / "a", families=("token",)), quiet).runs
    assert any("slots are empty" in warning for run in runs for warning in run.plan.warnings())
    assert not any(run.warnings() for run in runs)


@pytest.mark.slow
def test_prepared_every_run_is_the_one_that_the_study_does(study):
    planned = forecast(study, quiet, prepare=True)
    assert all(run.measured for run in planned.runs) and planned.entropy_done
    assert [run.plan for run in planned.runs] == plan_study(study, Inputs(study, quiet))
    assert [run.plan for run in forecast(study, quiet).runs] == [run.plan for run in planned.runs]
    assert (corpus_folder(study) / "manifest.json").is_file()


def test_another_study_of_the_folder_finds_only_its_own_corpus(study, texts, tmp_path):
    Inputs(study, quiet)
    assert forecast(study, quiet).text.measured
    other = dataclasses.replace(tiny_study(texts, study.out), heldout_percent=30.0)
    assert not forecast(other, quiet).text.measured
