import csv

import numpy as np
import pytest

from bltjax.presets import preset
from bltjax.scaling.turns import FEWEST_TURNS
from experiments import generation_speed
from experiments.generation_speed import FLAT, MEGABYTE, Arguments, best_runs, count, fresh, main, pair

LOSSES = {  # by series and preset, then by budget
    ("byte", "byte-tiny"): {1e10: 3.0, 2e10: 2.5},
    ("byte", "byte-large"): {1e10: 3.5, 2e10: 2.4},
    ("megabyte", "megabyte-tiny"): {1e10: 2.9, 2e10: 2.45},
}


def study(folder, losses, heldout_bytes=100):
    (folder / "runs").mkdir(parents=True)
    rows = []
    for (series, model), budgets in losses.items():
        for budget, loss in budgets.items():
            run = f"{len(rows):04d}"
            (folder / "runs" / f"{model}-{run}").mkdir()
            rows.append({
                "run": run, "series": series, "preset": model, "seed": 0, "budget": budget, "training_flops": budget,
                "heldout_bits_per_byte": loss, "heldout_bytes": heldout_bytes, "parameters": 1000 * (1 + len(rows)),
            })  # fmt: skip
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture
def folder(tmp_path):
    return study(tmp_path / "study", LOSSES)


def test_each_family_is_represented_by_its_best_size_at_each_budget(folder):
    found = {(row["series"], row["budget"]): row["preset"] for row in best_runs((folder,))}
    assert found == {
        ("byte", 1e10): "byte-tiny", ("byte", 2e10): "byte-large",
        ("megabyte", 1e10): "megabyte-tiny", ("megabyte", 2e10): "megabyte-tiny",
    }  # fmt: skip
    assert all(row["folder"].is_dir() for row in best_runs((folder,)))


def test_studies_that_do_not_compare_are_refused(folder, tmp_path):
    other = study(tmp_path / "other", LOSSES, heldout_bytes=99)
    with pytest.raises(ValueError, match="held-out texts differ"):
        best_runs((folder, other))
    with pytest.raises(ValueError, match=r"table\.csv; finish the study"):
        best_runs((tmp_path / "none",))
    next((folder / "runs").iterdir()).rmdir()
    with pytest.raises(ValueError, match="has no folder"):
        best_runs((folder,))


def test_models_are_paired_with_flat_bytes_of_their_budget_and_of_their_quality(folder, tmp_path, monkeypatch):
    def source(path):
        return fresh(preset("megabyte-tiny" if "megabyte" in str(path) else "byte-tiny"))

    monkeypatch.setattr(generation_speed, "load_source", source)
    monkeypatch.setattr(generation_speed, "FLAT", preset("byte-tiny"))
    monkeypatch.setattr(generation_speed, "MEGABYTE", preset("megabyte-tiny"))
    out = tmp_path / "out"
    main(Arguments((folder,), out, prompt_bytes=8, new_bytes=4, seconds=0.0))
    with (out / "pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert [row["kind"] for row in pairs] == ["claim", "equal FLOPs", "equal quality", "equal FLOPs", "equal quality"]
    flops = [row for row in pairs if row["kind"] == "equal FLOPs"]
    assert [(row["model"], row["against"]) for row in flops] == [
        ("megabyte-tiny, 1e+10", "byte-tiny, 1e+10"), ("megabyte-tiny, 2e+10", "byte-large, 2e+10"),
    ]  # fmt: skip
    assert [row["against"] for row in pairs[2::2]] == ["byte-tiny, 1e+10", "byte-large, 2e+10"]
    np.testing.assert_allclose([float(row["bits_per_byte_difference"]) for row in flops], [-0.1, 0.05])
    with (out / "models.csv").open() as file:
        speeds = {row["name"]: float(row["bytes_per_second"]) for row in csv.DictReader(file)}
    assert min(speeds.values()) > 0
    for row in pairs:
        assert int(row["turns"]) == FEWEST_TURNS
        assert 0 < float(row["low"]) <= float(row["speed_ratio"]) <= float(row["high"])
    assert (out / "speed.png").stat().st_size > 10_000 and "claim" in (out / "summary.txt").read_text()


def test_a_ratio_is_taken_within_turns():
    """So that what slows a turn down slows both sides."""
    rows = [
        {"name": name, "parameters": 1, "heldout_bits_per_byte": 1.0, "turns": np.array(turns)}
        for name, turns in (("one", [2.0, 20, 4, 400, 2, 3]), ("other", [1.0, 10, 4, 100, 1, 1]))
    ]
    found = pair("equal FLOPs", *rows)
    assert (found["speed_ratio"], found["low"], found["high"]) == (2.0, 1.0, 4.0)


def test_the_claim_is_tried_with_the_paper_s_ratio_of_parameters():
    """1.3B + 218M against 350M is 4.3 times; thinner models have relatively larger embeddings."""
    assert 4 < count(MEGABYTE) / count(FLAT) < 5.5
