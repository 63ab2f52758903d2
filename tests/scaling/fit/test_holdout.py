import dataclasses

import pytest

from bltjax.scaling.fit.holdout import hold_out_largest
from tests.scaling.fit.truths import design


@pytest.mark.parametrize("method", ["projection", "huber"])
def test_a_law_predicts_the_budget_that_it_did_not_see(method):
    found = hold_out_largest(design(noise=0.001).draw(0), method)
    assert found.budget == pytest.approx(1e19)
    assert found.beyond == pytest.approx(10**0.5)
    assert len(found.errors) == 7
    assert found.rms < 0.005
    assert "3.16 times the largest fitted" in str(found)


def test_the_error_is_predicted_minus_measured_and_the_largest_is_not_fitted():
    points = design(noise=0.0).draw(0)
    raised = points.loss + 0.1 * (points.budget > 9e18)  # what no law of the others could know
    found = hold_out_largest(dataclasses.replace(points, loss=raised), "projection")
    assert found.mean == pytest.approx(-0.1, abs=1e-3)
    assert found.rms == pytest.approx(0.1, abs=1e-3)


def test_one_budget_cannot_be_held_out():
    points = design().draw(0)
    with pytest.raises(ValueError, match="leaves nothing"):
        hold_out_largest(points.where(points.budget == points.budget[0]), "projection")
