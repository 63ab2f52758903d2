import csv
import dataclasses

import numpy as np
import pytest

from bltjax.flops import flops_per_byte, non_embedding_parameters
from bltjax.presets import preset
from bltjax.scaling.fit import crossover
from experiments import fixed_inference
from experiments.fixed_inference import ACCELERATOR, COLUMNS, CPU, MODELS, class_of, crossover_row, curves_of, figure_of
from tests.arms import SCALES, settings

# Of the standard library by the entropy model of the CPU; of the paper's text as it gives them.
MEASURED = {
    "cpu": {None: 3.03, 4.5: 4.396, 6.0: 5.800, 8.0: 7.647},
    "accelerator": {None: 3.7, 4.5: 4.5, 6.0: 6.0, 8.0: 8.0},
}


def base(scale):
    return settings(scale, seeds=(0,)).study(*({**own, "preset": (MODELS[scale][0],)} for own in (CPU, ACCELERATOR)))


def found_class(scale):
    per = MEASURED[scale]
    return class_of(base(scale), MODELS[scale], lambda name, wanted: per[wanted and wanted.mean_patch_bytes])


@pytest.mark.parametrize("scale", SCALES)
def test_every_model_of_the_class_costs_the_same_and_is_trained_at_its_own_patch_size(scale):
    study, found = base(scale), found_class(scale)
    study = dataclasses.replace(study, variants=found.variants)
    models, sizes = study.models(), []
    reference = flops_per_byte(preset(MODELS[scale][0]), MEASURED[scale][None], study.row_bytes).forward
    for name, model in models.items():
        (wanted,) = study.patchers_of(name)
        unit = 1.0 if name.startswith("byte") else MEASURED[scale][wanted and wanted.mean_patch_bytes]
        assert flops_per_byte(model, unit, study.row_bytes).forward == pytest.approx(reference, rel=0.02), name
        sizes += [non_embedding_parameters(model)] if wanted is not None else []
    assert len(sizes) == 3 and sizes == sorted(sizes) and sizes[-1] > 1.4 * sizes[0]
    assert {name.partition("+")[2] for name in models} >= {"p4.5", "p6", "p8"}
    assert sum(name.startswith("byte") for name in models) == 1 and not found.notes
    assert study.schedule == "wsd" and len(study.budgets) >= 4 and study.patched_runs == 12


def test_where_no_byte_model_fits_it_is_said_why():
    reference, shape, flat, _ = MODELS["cpu"]
    per = MEASURED["cpu"]
    found = class_of(
        base("cpu"), (reference, shape, flat, 4), lambda name, wanted: per[wanted and wanted.mean_patch_bytes]
    )
    assert not any(name.startswith("byte") for name in found.members) and len(found.members) == 3
    (note,) = found.notes
    assert "no flat byte model" in note and "the nearest at patch size 1" in note


def rows(seeds):
    """Tokens are better first, BLTs from 4e11 FLOPs on; seeds differ by their trunks."""
    generator = np.random.default_rng(0)
    out = []
    for series, level, slope in (("token", 2.6, 0.1), ("blt+p8", 2.6 + 0.05 * np.log(2), 0.15), ("blt+p6", 2.9, 0.1)):
        for seed in range(seeds):
            offset = generator.normal(0, 0.003)
            for budget in (2e11, 4e11, 8e11, 1.2e12):
                out.append({
                    "series": series, "family": series[:3], "preset": series, "seed": seed, "budget": budget,
                    "training_flops": budget, "bytes_seen": budget / 1.6e5, "accounting": "paper-v1",
                    "trunk": f"{series}{seed}", "parameters_non_embedding": 1e5, "heldout_bytes": 1000, "epochs": 1.0,
                    "device_seconds": 1.0, "heldout_bits_per_byte": level - slope * np.log(budget / 2e11) + offset,
                })  # fmt: skip
    return out


def crossings(table):
    out, reasons = {}, set()
    for unit in COLUMNS:
        curves, why = curves_of(table, unit)
        token = curves.pop("token")
        out[unit] = [crossover(curve, token) for curve in curves.values()]
        reasons.add(why)
    (why,) = reasons
    return out, why


def test_a_crossover_has_an_interval_from_six_seeds_on_and_says_so_below(tmp_path):
    found, why = crossings(rows(6))
    assert why == ""
    long, short = found["flops"]
    assert long.x.value == pytest.approx(4e11, rel=0.2) and long.x.low < long.x.value < long.x.high
    assert found["bytes"][0].x.value == pytest.approx(long.x.value / 1.6e5)
    assert short.x is None and crossover_row(short)["crossover"] is None
    row = crossover_row(long)
    assert (row["series"], row["against"], row["better_after"]) == ("blt+p8", "token", "blt+p8")
    assert row["draws"] == 1000 and row["share_of_draws_that_cross"] == 1.0
    found, why = crossings(rows(2))
    assert "only 2 trunks" in why and "an interval needs 6" in why
    row = crossover_row(found["flops"][0])
    assert row["crossover"] is not None and row["low"] is row["high"] is row["share_of_draws_that_cross"] is None


def test_the_figure_has_a_line_at_each_crossover_in_range_and_a_band_where_there_is_an_interval():
    for seeds, bands in ((6, 1), (2, 0)):
        table = rows(seeds)
        found, _ = crossings(table)
        figure = figure_of(table, found, "About. " * 30)
        for axes, unit in zip(figure.axes, COLUMNS, strict=True):
            dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
            assert [line.get_xdata()[0] for line in dashed] == [found[unit][0].x.value]
            assert len(axes.patches) == bands
        assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_the_members_are_planned_and_written_down_without_training(tmp_path, monkeypatch):
    per = MEASURED["cpu"]
    fake = lambda base: lambda name, wanted: per[wanted and wanted.mean_patch_bytes]  # noqa: E731
    monkeypatch.setattr(fixed_inference, "measured", fake)
    monkeypatch.setattr(fixed_inference, "run_study", lambda *_: pytest.fail("only a plan was asked for"))
    fixed_inference.main(settings("cpu", out=tmp_path, plan=True))
    with (tmp_path / "members.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["model"] for row in written][:2] == ["token-cpu-1", "blt-cpu-0+p4.5"] and len(written) == 5
    assert all(abs(float(row["deviation"])) <= 0.02 for row in written)
