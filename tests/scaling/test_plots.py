import itertools

import numpy as np
import pytest

from bltjax.scaling.plots import (
    best_of_budgets,
    count_text,
    flops_text,
    frontier_figure,
    isoflop_figure,
    isoflop_fits,
    mean_over_seeds,
    save,
    series_name,
    speed_figure,
    verdict,
    vocabularies_text,
)

OPTIMUM = 1.5e5


def row(series="blt", size=1e5, budget=1e10, seed=0, loss=None, **changes):
    if loss is None:
        loss = 2.5 + 0.1 * np.log(size / OPTIMUM) ** 2 - 0.1 * np.log(budget / 1e10)
    return {
        "series": series,
        "preset": f"{series}-{size:g}",
        "budget": budget,
        "seed": seed,
        "accounting": "paper-v1",
        "training_flops": budget * 1.003,
        "parameters_non_embedding": size,
        "heldout_bits_per_byte": loss,
        **changes,
    }


ROWS = [
    row(series, size, budget) for series in ("blt", "byte") for size in (5e4, 1e5, 2e5, 4e5) for budget in (1e10, 3e10)
]


def test_the_same_rows_give_the_same_files(tmp_path):
    def draw(folder):
        paths = save(frontier_figure(ROWS, "About. " * 60), folder, "bits_per_byte")
        paths += save(isoflop_figure([r for r in ROWS if r["series"] == "blt"], "About."), folder, "isoflop_blt")
        return {path.name: path.read_bytes() for path in paths}

    first = draw(tmp_path / "a")
    assert set(first) == {f"{name}.{kind}" for name in ("bits_per_byte", "isoflop_blt") for kind in ("png", "svg")}
    assert draw(tmp_path / "b") == first


def test_a_figure_says_its_numbers(tmp_path):
    own = [r for r in ROWS if r["series"] == "blt"]
    text = save(isoflop_figure(own, "Seeds: 0."), tmp_path, "isoflop")[1].read_text()
    for words in ("1e10 FLOPs: optimum 150k", "3e10 FLOPs: optimum 150k", "BLT, entropy patches", "Seeds: 0."):
        assert words in text


def test_the_best_size_is_chosen_by_the_mean_over_seeds():
    # One lucky seed of the larger model must not decide.
    rows = [row(size=1e5, seed=s, loss=x) for s, x in enumerate((2.50, 2.52))]
    rows += [row(size=2e5, seed=s, loss=x) for s, x in enumerate((2.40, 2.70))]
    (best,) = best_of_budgets(rows)
    assert best["preset"] == "blt-100000"
    assert best["heldout_bits_per_byte"] == pytest.approx(2.51)
    assert len(mean_over_seeds(rows)) == 2


def sweep_of_vocabularies():
    """The smaller of two vocabularies is best at the smallest size alone; N grows with the vocabulary."""
    return [
        row("token", (size + 16 * tokens), budget, preset=f"token-{size:g}-v{tokens}", vocabulary=tokens,
            loss=2.5 + 0.1 * np.log(size / OPTIMUM) ** 2 + 0.05 * ((tokens == 1024) != (size > 6e4)))
        for size in (5e4, 1e5, 2e5, 4e5) for tokens in (512, 1024) for budget in (1e10, 3e10)
    ]  # fmt: skip


def test_a_bowl_has_each_size_once_with_the_best_vocabulary_of_the_budget():
    rows = sweep_of_vocabularies()
    # The smallest size is better with the other one, but a bowl of two vocabularies would mix two axes.
    wanted = [r for r in rows if r["vocabulary"] == 1024]
    assert len(wanted) == 8
    assert isoflop_fits(rows) == isoflop_fits(wanted) and isoflop_fits(wanted)[1e10].optimum is not None
    assert [r["preset"] for r in best_of_budgets(rows)] == ["token-200000-v1024"] * 2
    axes = isoflop_figure(rows, "").axes[0]
    drawn = [line for line in axes.get_lines() if line.get_marker() == "o" and line.get_markersize() == 6]
    assert [len(line.get_xdata()) for line in drawn] == [4]
    text = vocabularies_text(rows)
    assert "512, 1,024" in text and "1,024 at 1e10 FLOPs, 1,024 at 3e10 FLOPs" in text
    assert vocabularies_text(wanted[2:4]) == vocabularies_text(ROWS) == ""


def test_fits_are_made_for_budgets_with_three_sizes_alone():
    rows = [row(size=s) for s in (5e4, 1e5, 2e5, 4e5)] + [row(size=s, budget=3e10) for s in (1e5, 2e5)]
    fits = isoflop_fits(rows)
    assert list(fits) == [1e10]
    assert fits[1e10].optimum == pytest.approx(OPTIMUM)
    isoflop_figure(rows, "")


def test_the_verdict_gives_an_optimum_or_a_bound():
    sizes = (1e5, 2e5, 4e5)
    assert verdict(isoflop_fits([row(size=s) for s in sizes])[1e10]) == "optimum 150k"
    falling = isoflop_fits([row(size=s, loss=3 - s / 1e6) for s in sizes])[1e10]
    assert verdict(falling) == "optimum at or above 400k"
    assert verdict(None) == "too few sizes to fit"


def test_numbers_are_written_short():
    assert [count_text(n) for n in (950, 20_960, 2_045_504, 6.4e9)] == ["950", "21k", "2.05M", "6.4G"]
    assert [flops_text(n) for n in (6e10, 1.8e11, 1.234e18)] == ["6e10", "1.8e11", "1.23e18"]


def test_series_of_one_family_are_told_apart():
    assert series_name("blt-6") == "BLT, entropy patches of 6 bytes"
    assert series_name("blt-strided-4") == "BLT, patches of one length of 4 bytes"
    assert series_name("blt-space") == "BLT, patches after spaces"
    sizes = [row(f"blt-{p}", budget=b) for p in ("4.5", "6") for b in (1e10, 3e10)]
    axes = frontier_figure(sizes, "").axes[0]
    labelled = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    assert len({line.get_color() for line in labelled}) == 2


def test_speeds_are_joined_in_the_order_of_budgets():
    rows = [
        row(series, budget=budget, loss=loss, bytes_per_second=speed)
        for series in ("blt", "byte")
        for budget, loss, speed in ((3e10, 2.0, 50.0), (1e10, 2.5, 100.0))
    ]
    axes = speed_figure(rows, "About.").axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[2.5, 100.0], [2.0, 50.0]]] * 2
    assert [text.get_text() for text in axes.texts] == ["1e10", "3e10"] * 2


def test_a_variant_is_named_after_its_family():
    assert series_name("blt+no-hash") == "BLT, entropy patches: no-hash"
    assert series_name("blt-6+no-hash-2") == "BLT, entropy patches of 6 bytes: no-hash-2"


def test_labels_of_speeds_do_not_lie_on_one_another():
    rows = [
        row("blt", budget=1e10, loss=2.00, bytes_per_second=100.0),
        row("byte", budget=1e10, loss=2.02, bytes_per_second=103.0),
        row("byte", budget=2e10, loss=3.00, bytes_per_second=200.0),
    ]
    figure = speed_figure(rows, "About.")
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
