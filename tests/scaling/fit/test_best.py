import csv

import pytest

from bltjax.scaling.fit import best_of_rates, from_manifests, own_table, points_of
from bltjax.scaling.plots import best_of_budgets, isoflop_fits, mean_over_seeds
from tests.scaling.fit.test_points import manifest

RATES, BOWL = (1, 2, 4), (0.3, 0.0, 0.4)


def tried(size, seed, best, run=""):
    """Rows of one size at three rates, least at one that another size need not share."""
    shifted = BOWL if best == 2 else tuple(sorted(BOWL))
    return [
        {
            "run": f"{size}-{seed}-{rate}{run}", "series": "byte", "family": "byte", "preset": f"byte-{size}",
            "seed": seed, "budget": 1e10, "accounting": "paper-v1", "training_flops": 1e10, "peak_rate": rate,
            "heldout_bits_per_byte": 2.0 + abs(size - 20) / 100 + seed / 1000 + off, "heldout_bytes": 100,
            "parameters_non_embedding": size, "bytes_seen": 1e5 / size, "device_seconds": 1.0, "epochs": 0.5,
            "trunk": f"{size}-{seed}-{rate}",
        }
        for rate, off in zip(RATES, shifted, strict=True)
    ]  # fmt: skip


ROWS = [row for size, best in ((10, 1), (20, 2), (40, 1)) for seed in (0, 1) for row in tried(size, seed, best)]


def test_mistake_15_each_size_counts_by_the_best_of_its_own_rates():
    """The rates of one size differ by .3 and more, sizes by .1 to .2."""
    best = best_of_rates(ROWS)
    assert [(row["parameters_non_embedding"], row["seed"], row["peak_rate"]) for row in best] == [
        (10, 0, 1), (10, 1, 1), (20, 0, 2), (20, 1, 2), (40, 0, 1), (40, 1, 1)
    ]  # fmt: skip
    for rows in (ROWS, ROWS[::-1]):
        means = {row["preset"]: row["heldout_bits_per_byte"] for row in mean_over_seeds(rows)}
        assert {name: round(mean, 6) for name, mean in means.items()} == {
            "byte-10": 2.1005, "byte-20": 2.0005, "byte-40": 2.2005
        }  # fmt: skip
        assert [row["preset"] for row in best_of_budgets(rows)] == ["byte-20"]
        assert isoflop_fits(rows)[1e10].optimum == pytest.approx(isoflop_fits(best)[1e10].optimum)
    assert points_of(ROWS, own_table("byte")).loss.tolist() == [row["heldout_bits_per_byte"] for row in best]
    assert len(ROWS) == 18, "the table keeps all"


def test_all_seeds_of_a_size_have_the_rate_that_is_best_in_the_mean():
    """For each seed its own best would be the luckier of two runs, twice."""
    losses = {(0, 1): 2.00, (0, 2): 2.10, (1, 1): 2.30, (1, 2): 2.15}
    rows = [{**ROWS[0], "seed": s, "peak_rate": r, "heldout_bits_per_byte": loss} for (s, r), loss in losses.items()]
    assert [(row["seed"], row["peak_rate"]) for row in best_of_rates(rows)] == [(0, 2), (1, 2)]
    unfinished = [row for row in rows if (row["seed"], row["peak_rate"]) != (1, 2)]
    assert [row["peak_rate"] for row in best_of_rates(unfinished)] == [1, 1], "one rate has both seeds"


def test_rows_read_from_a_file_are_chosen_by_number(tmp_path):
    """As words "10.5" would be less than "9.5"."""
    rows = [
        {**ROWS[0], "heldout_bits_per_byte": loss, "run": run, "peak_rate": loss}
        for loss, run in ((10.5, "a"), (9.5, "b"))
    ]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with (tmp_path / "table.csv").open(newline="") as file:
        assert [row["run"] for row in best_of_rates(list(csv.DictReader(file)))] == ["b"]


def test_manifests_of_one_run_at_several_rates_are_one_point():
    worse = {**manifest()["result"], "heldout_bits_per_byte": 2.4}
    slow = {"seed": 3, "optim": {"peak_rate": 1e-4}}
    runs = [
        manifest("a", id="slow", result=worse, config=slow), manifest("a", id="best"),
        manifest("b", id="other", result=worse),
    ]  # fmt: skip
    points = from_manifests(runs)
    assert points.loss.tolist() == [2.1, 2.4] and points.cluster == ("best", "other")
    assert len(from_manifests([manifest("a"), manifest("a", budget=2e12)])) == 2, "another budget is another run"
