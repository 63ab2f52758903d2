import pytest

from experiments.patch_size import best, best_table, figure, studies
from tests.arms import SCALES, plans, settings


@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_of_the_grid_has_its_budget(scale):
    found = plans(studies(settings(scale, seeds=(0,))))
    cells = {(plan.name, plan.patch_size, plan.budget) for plan in found}
    names, sizes, budgets = (set(values) for values in zip(*cells, strict=True))
    assert len(cells) == len(found) == len(names) * len(sizes) * len(budgets)
    assert len(names) == len(budgets) == 3 and len(sizes) >= 3
    # Larger patches leave more bytes for the same FLOPs, larger models fewer.
    seen = {(plan.name, plan.patch_size): plan.bytes for plan in found if plan.budget == min(budgets)}
    for name in names:
        assert [seen[name, size] for size in sorted(sizes)] == sorted(seen[name, size] for size in sizes)


def rows():
    """Losses least at the middle of three sizes, and at patches of 4 bytes, but for the largest budget."""
    out = []
    for budget, best_size in ((1e10, 1), (2e10, 2)):
        for place, parameters in enumerate((1000, 2000, 4000)):
            for patch in (3, 4, 6):
                for seed in (0, 1):
                    bits = 2 + abs(place - best_size) + abs(patch - 4) / 10 + seed / 100
                    out.append({
                        "budget": budget, "series": f"blt-{patch}", "preset": f"blt-cpu-{place}", "seed": seed,
                        "parameters_non_embedding": parameters, "bytes_per_unit": patch + 0.1, "bytes_seen": 5e5,
                        "heldout_bits_per_byte": bits, "training_flops": budget,
                    })  # fmt: skip
    return out


def test_the_best_size_and_patch_size_are_found_and_edges_are_named():
    found = best(rows())
    assert [row["preset"] for row in found] == ["blt-cpu-1"] * 3 + ["blt-cpu-2"] * 3
    assert [row["edge"] for row in found] == [""] * 3 + ["largest"] * 3
    assert [row["series"] for row in found if row["is_best"]] == ["blt-4", "blt-4"]
    assert found[1]["bits"] == pytest.approx(2.005) and found[0]["bytes_per_parameter"] == 250
    lines = best_table(found).splitlines()
    assert "* best" in lines[2] and "a bound" not in lines[2] and "the largest size tried: a bound" in lines[5]


def test_the_figure_has_a_line_for_each_model_in_a_panel_for_each_budget():
    panels = figure(rows(), "what it is").axes
    assert [len(panel.get_lines()) for panel in panels] == [3, 3]
    assert panels[0].get_lines()[0].get_xdata().tolist() == [3.1, 4.1, 6.1]
