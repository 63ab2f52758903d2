import csv

import pytest

from experiments.estimators import Trials, designs, main


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimators")
    main(Trials(folder, studies=2, draws=8, seed=1, only=(0, 4)))
    assert (folder / "summary.txt").read_text().count("coverage") == 2
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_design_is_tried_by_every_estimator(rows):
    names = [name for index, name in enumerate(designs()) if index in (0, 4)]
    assert list(dict.fromkeys(row["design"] for row in rows)) == names
    for name in names:
        assert {row["method"] for row in rows if row["design"] == name} == {"projection", "huber", "parabola"}
    assert all(row["studies"] == "2" for row in rows)


def test_the_surfaces_are_near_the_truth_even_in_two_studies(rows):
    exponents = [row for row in rows if row["number"] == "size_exponent" and row["method"] == "projection"]
    assert len(exponents) == 2
    assert all(float(row["worst"]) < 0.1 for row in exponents)
