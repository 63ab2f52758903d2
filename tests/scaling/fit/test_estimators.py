import json
import math
from pathlib import Path

import numpy as np
import pytest

from bltjax.scaling.fit import crossover, fit_law
from bltjax.scaling.fit.columns import Columns, points_of, read_table
from bltjax.scaling.fit.cost import transformer
from bltjax.scaling.fit.estimators import side_by_side
from bltjax.scaling.fit.points import Points
from tests.scaling.fit.truths import design


def test_every_estimator_is_named_with_its_numbers():
    both = side_by_side(design(noise=0.002).draw(0), draws=60)
    rows = both.rows()
    assert [row["estimator"].split(" ")[0] for row in rows] == ["variable", "LSE-Huber", "IsoFLOP"]
    for row in rows:
        assert row["size_exponent_low"] < row["size_exponent"] < row["size_exponent_high"]
    assert "alpha" not in rows[2]  # parabolas have none
    assert [holdout.estimator for holdout in both.holdouts] == [row["estimator"] for row in rows[:2]]
    json.dumps(both.summary(), allow_nan=False)
    assert str(both).count("held out 1e+19") == 2


def test_what_cannot_be_held_out_is_said():
    both = side_by_side(design(budgets=(1e18, 4e18), sizes=4).draw(0), draws=0)
    assert not both.holdouts
    assert both.notes[0].startswith("the largest budget cannot be held out")


def test_an_unknown_method_is_refused(unchecked):
    with pytest.raises(ValueError, match="choose one of projection, huber, parabola"):
        fit_law(design().draw(0), "cosmic")


def test_from_points_to_a_crossover_with_public_names_alone():
    a = fit_law(design(noise=0.002).draw(0), "projection", draws=50).frontier()
    b = fit_law(design(noise=0.002).draw(9), "huber", draws=50).frontier()
    found = crossover(a, b)
    assert "the curves come from different estimators" in found.notes


@pytest.fixture(scope="module")
def chinchilla_points(request) -> Points:
    """The 240 points: of 245 digitised, the five highest losses left out. A byte stands for a token here."""
    columns = Columns(
        name="Chinchilla", size=("Model Size",), size_label="parameters", loss="loss", loss_unit="nats per token",
        bytes_per_token=1.0, flops="Training FLOP", flops_per_parameter=6.0, accounting="6 N D", scored="theirs",
    )  # fmt: skip
    points = points_of(read_table(Path(request.config.getoption("--chinchilla-points"))), columns)
    return points.where(points.loss < np.sort(points.loss)[-5])


def test_the_golden_numbers_of_the_240_points_are_reproduced(chinchilla_points):
    # E = 1.8172, A = 477.8, B = 2143.4, alpha = .3473, beta = .3672, a = .5139 at a summed Huber loss of .00101827.
    assert len(chinchilla_points) == 240
    fit = fit_law(chinchilla_points, "huber", transformer(), draws=1000, seed=0)
    law, nats = fit.law, math.log(2)
    assert fit.objective == pytest.approx(0.00101827, rel=1e-4)
    assert law.E * nats == pytest.approx(1.8172, abs=2e-4)
    assert law.alpha == pytest.approx(0.3473, abs=2e-4)
    assert law.beta == pytest.approx(0.3672, abs=3e-4)
    assert law.A * nats == pytest.approx(477.8, rel=5e-3)
    assert law.B * nats == pytest.approx(2143.4, rel=1e-2)
    size, _ = fit.exponents()
    assert size.value == pytest.approx(0.5139, abs=3e-4)
    # Its 95 % intervals by 500 draws: E [1.771, 1.869], alpha [.318, .373], beta [.330, .414], a [.479, .555].
    published = {"E": (1.771, 1.869), "alpha": (0.318, 0.373), "beta": (0.330, 0.414)}
    found = {name: (fit.parameter(name).low, fit.parameter(name).high) for name in published}
    found["E"] = tuple(value * nats for value in found["E"])
    for name, ends in published.items():
        assert found[name] == pytest.approx(ends, abs=0.15 * (ends[1] - ends[0])), name
    assert (size.low, size.high) == pytest.approx((0.479, 0.555), abs=0.012)


def test_the_choice_of_estimator_moves_the_240_points(chinchilla_points):
    # Least squares by variable projection: alpha = .358, beta = .428, a = .545.
    fit = fit_law(chinchilla_points, "projection", transformer(), draws=0)
    assert (fit.law.alpha, fit.law.beta) == pytest.approx((0.358, 0.428), abs=1e-3)
    assert fit.exponents()[0].value == pytest.approx(0.545, abs=1e-3)
