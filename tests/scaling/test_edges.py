import csv
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltjax.config import RowsConfig
from bltjax.scaling.edges import BYTES_PER_PARAMETER, by_law, by_ratio, laws_of, predictions
from bltjax.scaling.fit import Law
from bltjax.scaling.plan import RowFacts, plan_run
from bltjax.scaling.study import Study

LAW = Law(E=0.8, A=60.0, alpha=0.35, B=90.0, beta=0.37)
SIZES = np.array([1e4, 3e4, 1e5, 4e5])
NAMES = ("byte-cpu-0", "byte-cpu-1", "byte-cpu-2")


@given(budget=st.floats(1e9, 1e16), ratio=st.floats(5, 500))
def test_a_rule_has_an_edge_exactly_when_its_optimum_leaves_the_grid(budget, ratio):
    # Where C = 6 N D, bytes a parameter are C / (6 N^2).
    exact = math.sqrt(budget / 6 / ratio)
    size, bound = by_ratio(SIZES, budget / 6 / SIZES, ratio)
    if SIZES[0] < exact < SIZES[-1]:
        assert bound is None and size == pytest.approx(exact, rel=1e-9)
    elif exact <= SIZES[0]:
        assert (size, bound) == (SIZES[0], "at or below")
    else:
        assert (size, bound) == (SIZES[-1], "at or above")


@pytest.mark.parametrize("share", [0.98, 0.999, 1.001, 1.02])
def test_a_hair_beyond_an_end_is_an_edge_and_a_hair_within_is_none(share):
    for end, beyond, side in ((SIZES[0], share < 1, "at or below"), (SIZES[-1], share > 1, "at or above")):
        exact = share * end  # the budget whose optimum lies there
        size, bound = by_ratio(SIZES, 6 * 60 * exact**2 / 6 / SIZES, 60.0)
        assert (size, bound) == ((end, side) if beyond else (pytest.approx(exact), None))


@given(budget=st.floats(1e9, 1e16))
def test_a_law_has_an_edge_exactly_when_its_optimum_leaves_the_grid(budget):
    exact, _ = LAW.closed_form(budget)
    size, bound = by_law(SIZES, budget / 6 / SIZES, LAW.loss)
    step = (SIZES[-1] / SIZES[0]) ** (1 / 400)
    if bound is None:
        assert size == pytest.approx(exact, rel=step - 1)
    elif bound == "at or below":
        assert size == SIZES[0] and exact < SIZES[0] * step
    else:
        assert size == SIZES[-1] and exact > SIZES[-1] / step


def table(path, series=("byte",)):
    rows = []
    for name in series:
        for budget in (1e10, 3e10, 1e11):
            for size in SIZES:
                seen = budget / 6 / size
                rows.append({
                    "series": name, "run": f"{name}{len(rows)}", "preset": f"{name}-{size:g}",
                    "accounting": "paper-v1", "heldout_bytes": 1000,
                    "parameters_non_embedding": size, "bytes_seen": seen, "training_flops": budget, "budget": budget,
                    "heldout_bits_per_byte": LAW.loss(size, seen), "device_seconds": 1.0, "epochs": 0.1, "seed": 0,
                })  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def plans(budget=1e11, names=NAMES, **changes):
    study = Study(preset=names, budgets=(budget,), **changes)
    facts = RowFacts(None, 256, 256.0, 1.0, 1.0, 1.0)
    models = study.models()
    return [plan_run(study, name, models[name], RowsConfig(256, None, 2), facts, budget, 0, 8e-3) for name in names]


def test_the_law_of_an_earlier_study_is_found_and_used(tmp_path):
    laws = laws_of(table(tmp_path / "table.csv"))
    assert laws["byte"](5e4, 1e6) == pytest.approx(LAW.loss(5e4, 1e6), abs=2e-3)
    (found,), notes = predictions(plans(), laws=laws)
    sizes = np.array([7536.0, 20960.0, 68016.0])
    seen = np.array([plan.bytes for plan in plans()])
    assert (found.size, found.bound) == by_law(sizes, seen, laws["byte"])
    assert "law of the earlier study" in found.rule and notes == []


def test_a_series_without_a_law_goes_by_the_rule_and_says_so(tmp_path):
    laws = laws_of(table(tmp_path / "table.csv", ("blt",)))
    (found,), notes = predictions(plans(), laws=laws)
    assert "60 bytes a parameter" in found.rule
    assert notes == ["no law of the earlier study, so 60 bytes a parameter were taken: byte"]


@pytest.mark.parametrize(
    ("budget", "bound", "words"),
    [(2e10, "at or below", "at or below the smallest size, N = 7.54k"), (1e11, None, "near N = "),
     (1e13, "at or above", "at or above the largest size, N = 68k")],
)  # fmt: skip
def test_a_study_is_predicted_by_the_bytes_of_its_runs(budget, bound, words):
    (found,), notes = predictions(plans(budget))
    assert found.bound == bound and notes == [] and words in str(found)
    ratios = [plan.bytes / size for plan, size in zip(plans(budget), (7536, 20960, 68016), strict=True)]
    assert (ratios[0] <= BYTES_PER_PARAMETER) == (bound == "at or below")
    assert (ratios[-1] >= BYTES_PER_PARAMETER) == (bound == "at or above")


def test_two_sizes_are_no_grid():
    found, notes = predictions(plans(names=NAMES[:2]))
    assert found == [] and len(notes) == 1 and "fewer than three sizes" in notes[0]


def test_each_vocabulary_is_a_grid_of_its_own():
    names = tuple(f"token-cpu-{size}" for size in range(3))
    swept = tuple(f"{name}-v512" for name in names)
    alone = [str(found).partition(" ")[2] for grid in (names, swept) for found in predictions(plans(names=grid))[0]]
    together, notes = predictions(plans(names=(*names, *swept)))
    assert [str(found).partition(" ")[2] for found in together] == alone and notes == []
    assert [found.series for found in together] == ["token", "token-v512"]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [("a,b\n1,2\n", "t.csv", "is not the table of a study"), ("", "t.csv", "is not the table"),
     ("", "t.txt", "must be a .csv or a .parquet file"),
     ("series,parameters_non_embedding\nbyte,12\n", "t.csv", "no series has runs enough for a law")],
)  # fmt: skip
def test_a_table_without_laws_is_refused(text, name, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        laws_of(tmp_path / name)
