import csv

import numpy as np
import pytest
from scipy import stats

from bltjax.scaling.ablation import (
    arm_of,
    compare,
    comparison_table,
    of_best_size,
    reach_of_differences,
    save_comparison,
)


def row(preset, seed, bits, budget=1e11, series=None, **more):
    return {
        "preset": preset, "series": series or "blt", "seed": seed, "budget": budget, "training_flops": budget,
        "heldout_bits_per_byte": bits, "parameters_non_embedding": 1000, "forward_flops_per_byte_paper": 1e5,
        "forward_flops_per_byte_full": 2e5, "bytes_per_unit": 4.5, "bytes_seen": 3e5, **more,
    }  # fmt: skip


def arms(bits):
    """Rows of arms by their bits of each seed."""
    return [row(f"blt-tiny+{name}", seed, b) for name, own in bits.items() for seed, b in enumerate(own)]


def test_of_two_arms_the_interval_is_the_paired_one():
    a, b = np.array([2.5, 2.7, 2.55, 2.61]), np.array([2.51, 2.75, 2.54, 2.66])
    found = compare(arms({"a": a, "b": b}), "a")[1]
    want = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert found.difference == pytest.approx((b - a).mean())
    assert (found.low, found.high) == pytest.approx((want.low, want.high))


def test_what_a_seed_does_to_all_arms_is_no_noise():
    noise = np.random.default_rng(0).normal(0, 0.01, (5, 3))
    assert reach_of_differences(noise + np.array([0.0, 3.0, -2.0])) == pytest.approx(reach_of_differences(noise))


def test_intervals_hold_the_truth_as_often_as_they_say():
    draw, held = np.random.default_rng(1), []
    for _ in range(400):
        bits = draw.normal(0, 0.02, (6, 3)) + draw.normal(0, 0.05, 3) + np.arange(6)[:, None] * 0.01
        found = compare(arms(dict(zip("abcdef", bits, strict=True))), "a")
        held += [one.low < 0.01 * place < one.high for place, one in enumerate(found) if not one.is_baseline]
    assert 0.93 < np.mean(held) < 0.97


def test_arms_of_other_noise_are_of_another_kind():
    draw, held, wide = np.random.default_rng(2), {"quiet": [], "loud": []}, []
    scale = np.array([0.005, 0.005, 0.005, 0.08, 0.08, 0.08])[:, None]
    names = ("quiet a", "quiet b", "quiet c", "loud a", "loud b", "loud c")
    for _ in range(400):
        bits = draw.normal(0, 1, (6, 3)) * scale + np.arange(6)[:, None] * 0.01
        rows = arms(dict(zip(names, bits, strict=True)))
        found = compare(rows, "quiet a", kind=lambda name: name.partition(" ")[0])
        for place, one in enumerate(found[1:], 1):
            held[one.arm.partition(" ")[0]].append(one.low < 0.01 * place < one.high)
        wide.append(compare(rows, "quiet a")[1].high - found[1].high)
    assert all(0.92 < np.mean(each) < 0.98 for each in held.values()), {k: np.mean(v) for k, v in held.items()}
    assert np.median(wide) > 0.03  # taken for one kind, no difference between quiet arms could be shown


def test_between_single_arms_of_two_kinds_the_interval_is_welchs():
    a, b = np.array([2.5, 2.7, 2.55, 2.61]), np.array([2.51, 2.35, 2.94, 2.66])
    found = compare(arms({"a": a, "b": b}), "a", kind=str)[1]
    want = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((want.low, want.high))


def test_a_difference_is_claimed_only_where_its_interval_leaves_0():
    found = compare(
        arms({"a": [2.0, 2.1, 2.2], "b": [2.5, 2.61, 2.69], "c": [2.0, 2.11, 2.19], "d": [1.5, 1.6, 1.71]}), "a"
    )
    assert [one.verdict for one in found] == ["baseline", "worse", "no difference shown", "better"]
    (_, alone) = compare(arms({"a": [2.0], "b": [2.5]}), "a")
    assert alone.verdict == "one seed: nothing shown" and alone.low is alone.error is None


@pytest.mark.parametrize(
    ("rows", "baseline", "message"),
    [
        (arms({"a": [2.0, 2.1], "b": [2.0, 2.1]}), "c", "no arm at 1e11 FLOPs: a, b"),
        (arms({"a": [2.0, 2.1], "b": [2.0]}), "a", "'b': has seeds"),
        (arms({"a": [2.0]}) * 2, "a", "two runs of seed 0"),
    ],
)
def test_what_does_not_pair_is_refused(rows, baseline, message):
    with pytest.raises(ValueError, match=message):
        compare(rows, baseline)


def test_arms_are_variants_series_and_studies():
    assert arm_of(row("blt-tiny+x", 0, 2.0)) == "x"
    assert arm_of(row("blt-tiny", 0, 2.0, series="blt-6", study="")) == "blt-6"
    assert arm_of(row("blt-tiny", 0, 2.0, study="narrow")) == "narrow blt"


def test_each_series_is_taken_at_its_best_size():
    losses = {(0, 1e10): 3.0, (1, 1e10): 3.5, (0, 2e10): 2.9, (1, 2e10): 2.8}
    rows = [
        row(f"byte-cpu-{size}", seed, bits + seed / 10, budget, "byte")
        for (size, budget), bits in losses.items()
        for seed in (0, 1)
    ]
    assert {(r["preset"], r["budget"]) for r in of_best_size(rows)} == {("byte-cpu-0", 1e10), ("byte-cpu-1", 2e10)}


def test_a_comparison_is_written_as_it_is_printed(tmp_path):
    found = compare(arms({"a": [2.0, 2.1, 2.2], "b": [2.5, 2.61, 2.69]}), "a")
    save_comparison(found, tmp_path, "Title", "some text.")
    with (tmp_path / "comparison.csv").open() as file:
        kept = list(csv.DictReader(file))
    assert [(each["arm"], each["verdict"]) for each in kept] == [("a", "baseline"), ("b", "worse")]
    assert float(kept[1]["difference"]) == pytest.approx(0.5)
    assert comparison_table(found) in (tmp_path / "comparison.txt").read_text()
    assert "+0.5000" in comparison_table(found)
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
