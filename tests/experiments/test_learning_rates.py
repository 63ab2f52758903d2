import csv
import dataclasses
import math
import re

import pytest

from bltjax.config import TransferConfig
from bltjax.presets import preset
from bltjax.scaling import sweep
from experiments.learning_rates import DEFAULT, figure, main, parts, summary
from tests.scaling.conftest import written

BEST = {("small", "base"): 4e-3, ("large", "none"): 1.6e-2, ("large", "width-depth"): 4e-3}
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)


def rows(series="byte"):
    return [
        {
            "series": series, "preset": f"{series}-{size}", "size": size, "rule": rule, "rate": rate, "seed": seed,
            "bits_per_byte": 2.0 + 0.1 * math.log2(rate / best) ** 2 + (0.01 if seed else -0.01),
        }
        for (size, rule), best in BEST.items() for rate in RATES for seed in (0, 1)
    ]  # fmt: skip


def test_the_large_size_is_trained_by_both_rules_and_the_small_one_is_the_base_of_both():
    found = parts(dataclasses.replace(DEFAULT, families=("byte",)))
    assert {key: (part.sizes, part.budgets) for key, part in found.items()} == {
        ("small", "base"): (("cpu-0",), (8e10,)),
        ("large", "none"): (("cpu-2",), (2e11,)),
        ("large", "width-depth"): (("cpu-2",), (2e11,)),
    }
    transfers = [part.transfer_of(name) for part in found.values() for name in part.models()]
    assert transfers == [None, None, TransferConfig("width-depth", preset("byte-cpu-0"))]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": ("cpu-0",)}, "give a small and a large size"),
        ({"budgets": (1e11,)}, "give a small and a large size"),
        ({"transfer": "none"}, "choose width or width-depth"),
        ({"peak_rates": (1e-3, 2e-3, 4e-3)}, "0.008 among them"),
    ],
)
def test_a_study_that_answers_another_question_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        parts(dataclasses.replace(DEFAULT, **changes))


def test_best_rates_shifts_and_costs_are_those_of_the_curves():
    lines = {tuple(line.split()[1:3]): line for line in summary(rows()).splitlines()[1:4]}
    shifts = {key: re.findall(r"[+-][0-9.]+", line) for key, line in lines.items()}
    # Shift, what 8e-3 costs, what the best of the small size costs; .1 for each power of two, squared.
    assert shifts == {
        ("small", "base"): ["+0.1000", "+0.0000"],
        ("large", "none"): ["+2.00", "+0.1000", "+0.4000"],
        ("large", "width-depth"): ["+0.00", "+0.1000", "+0.0000"],
    }
    assert "differs" in lines["large", "none"] and "agrees" in lines["large", "width-depth"]
    assert all("2.0000" in line for line in lines.values())


def test_a_series_has_a_panel_and_each_size_and_rule_a_curve():
    drawn = figure([*rows(), *rows("token")], "about")
    assert [len(axes.lines) for axes in drawn.axes] == [3, 3]
    assert [line.get_label() for line in drawn.axes[0].lines] == [
        "byte-small", "byte-large, 64 / width", "byte-large, width-depth"
    ]  # fmt: skip


@pytest.mark.thorough
def test_it_is_done_once_and_finds_everything_done_the_second_time(tmp_path, monkeypatch, capsys):
    small = {"sizes": ("tiny", "cpu-1"), "budgets": (2e8, 1e9), "row_bytes": 32, "batch": 8, "heldout_bytes": 2000}
    text = {"corpus": (written(tmp_path / "texts"),), "heldout_percent": 20, "out": tmp_path / "out"}
    study = dataclasses.replace(DEFAULT, families=("byte",), peak_rates=(4e-3, 8e-3, 1.6e-2), **small, **text)
    main(study)
    first = capsys.readouterr().out
    with (study.out / "rates.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 9 and {row["rule"] for row in table} == {"base", "none", "width-depth"}
    assert len({row["bits_per_byte"] for row in table}) == 9
    assert (study.out / "learning_rates.png").exists() and (study.out / "learning_rates.svg").exists()
    monkeypatch.setattr(sweep, "fit", lambda *_, **__: pytest.fail("trained once more"))
    main(study)
    words = (study.out / "summary.txt").read_text()
    assert words in first and words in capsys.readouterr().out
