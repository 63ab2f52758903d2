import pyarrow.parquet
import pytest

from bltjax.presets import preset
from bltjax.scaling.fit import from_manifests, own_table, points_of
from bltjax.scaling.fit.vocabularies import best_vocabulary, chosen, swept, vocabulary_of
from bltjax.scaling.sweep import summary, table_row
from tests.scaling.test_sweep import without_times


def row(preset="token-a", vocabulary=512, loss=2.0, budget=1e10, seed=0, series="token"):
    return {
        "series": series, "preset": preset if vocabulary is None else f"{preset}-v{vocabulary}",
        "vocabulary": vocabulary, "budget": budget, "seed": seed, "heldout_bits_per_byte": loss,
    }  # fmt: skip


def kept(rows):
    return [(each["preset"], each["budget"], each["seed"]) for each in chosen(rows)]


def test_every_budget_has_one_choice_for_all_its_sizes():
    rows = [
        row("token-a", 512, 2.0), row("token-a", 1024, 2.1), row("token-a", 512, 1.9, 3e10),
        row("token-a", 1024, 1.8, 3e10), row("token-b", 512, 2.2), row("token-b", 1024, 2.15),
    ]  # fmt: skip
    # At 1e10 token-b is better with 1,024, but the best of all sizes has 512.
    expected = [("token-a-v512", 1e10, 0), ("token-a-v1024", 3e10, 0), ("token-b-v512", 1e10, 0)]
    assert kept(rows) == expected
    assert kept([{name: str(value) for name, value in each.items()} for each in rows]) == [
        (name, str(budget), str(seed)) for name, budget, seed in expected
    ]
    assert swept(rows) == {"token": (512, 1024)} and swept(rows[:1]) == {}


def test_one_lucky_seed_does_not_choose_and_all_seeds_have_the_same():
    rows = [row(loss=2.0, seed=0), row(loss=2.02, seed=1)]
    rows += [row(vocabulary=1024, loss=1.9, seed=0), row(vocabulary=1024, loss=2.3, seed=1)]
    assert kept(rows) == [("token-a-v512", 1e10, 0), ("token-a-v512", 1e10, 1)]
    # A vocabulary of which only the lucky seed is complete is not yet compared.
    assert kept(rows[:3]) == [("token-a-v512", 1e10, 0), ("token-a-v512", 1e10, 1)]


def test_what_reads_no_tokens_and_older_tables_stay_whole():
    rows = [row("byte-a", None, series="byte"), row("byte-a", None, seed=1, series="byte"), row("token-a", 512)]
    assert best_vocabulary(rows) == [0, 1, 2]
    older = [{name: value for name, value in each.items() if name != "vocabulary"} for each in rows]
    assert best_vocabulary(older) == [0, 1, 2]
    assert best_vocabulary([{**each, "vocabulary": ""} for each in rows]) == [0, 1, 2]


def test_the_vocabulary_of_a_run_counts_its_tokens_without_special_ids():
    model = {"vocabulary_size": preset("token-cpu-0").vocabulary_size}
    assert vocabulary_of({"family": "token", "config": {"model": model}}) == 2048
    assert vocabulary_of({"family": "byte", "config": {"model": {"vocabulary_size": 260}}}) is None


@pytest.mark.slow
def test_a_study_of_vocabularies_keeps_all_its_runs_and_fits_the_best(vocabularies):
    study, rows, manifests = vocabularies
    assert [(r["preset"], r["vocabulary"]) for r in rows] == [
        ("token-tiny-v270", 270), ("token-tiny", 296), ("byte-tiny", None)
    ]  # fmt: skip
    assert len({r["run"] for r in rows}) == 3
    assert pyarrow.parquet.read_table(study.out / "table.parquet").to_pylist() == rows
    tokens = [r for r in rows if r["family"] == "token"]
    assert tokens[0]["bytes_per_unit"] < tokens[1]["bytes_per_unit"]
    best = {b: min((r for r in tokens if r["budget"] == b), key=lambda r: r["heldout_bits_per_byte"])
            for b in study.budgets}  # fmt: skip
    losses = [best[budget]["heldout_bits_per_byte"] for budget in study.budgets]
    assert points_of(rows, own_table("token")).loss.tolist() == losses
    assert from_manifests([m for m in manifests if m["family"] == "token"]).loss.tolist() == losses
    assert without_times([table_row(m) for m in manifests]) == without_times(rows)
    text = summary(rows)
    for budget, row in best.items():
        (line,) = [each for each in text.splitlines() if f"{row['heldout_bits_per_byte']:.4f}" in each]
        assert line.endswith(" *") and f"{row['vocabulary']} at {budget:.0e}".replace("e+08", "e8") in text
