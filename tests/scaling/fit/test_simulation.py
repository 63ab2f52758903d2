import dataclasses

import numpy as np
import pytest

from bltjax.scaling.fit.resample import weights
from bltjax.scaling.fit.simulation import HEADER, surface, trial
from tests.scaling.fit.truths import CHINCHILLA, LOPSIDED, SYMMETRIC, byte_level_cost, design

SURFACES = ("projection", "huber")


def test_a_surface_has_its_optimum_where_it_was_asked_for():
    law = surface(0.5, 0.2, irreducible=0.7, reducible=0.2, flops=1e20, size=3e9)
    size, data = law.closed_form(1e20)
    assert (size, data) == pytest.approx((3e9, 1e20 / 6 / 3e9))
    assert law.loss(size, data) == pytest.approx(0.9)


def test_the_true_optimum_is_the_closed_form_along_6nd():
    truth = design()
    for budget in truth.budgets:
        size, data = CHINCHILLA.closed_form(budget)
        assert truth.optimum(budget)[:2] == pytest.approx((size, data), rel=1e-4)
    assert truth.exponent() == pytest.approx(0.28 / 0.62, abs=1e-4)


def test_the_grid_is_where_it_was_asked_for():
    truth = design(offset=2.0, drift=1.5, width=4.0)
    sizes, budgets = truth.grid()
    centres = np.array([np.exp(np.log(sizes[budgets == b]).mean()) / truth.optimum(b)[0] for b in truth.budgets])
    assert centres[2] == pytest.approx(2, rel=1e-6)
    assert centres[3] / centres[2] == pytest.approx(1.5**0.5, rel=1e-6)
    assert sizes[:7].max() / sizes[:7].min() == pytest.approx(16)


def test_points_have_the_noise_that_was_asked_for():
    truth = design(noise=0.004, seeds=30)
    points = truth.draw(0)
    exact = design(noise=0.0, seeds=30).draw(0)
    assert (points.loss - exact.loss).std() == pytest.approx(0.004, rel=0.1)
    trunks = design(noise=0.0, trunk_noise=0.004, trunks=True, seeds=30).draw(0)
    assert len(set(trunks.cluster)) == 7 * 30
    shared = trunks.loss - design(noise=0.0, trunks=True, seeds=30).draw(0).loss
    for name in list(set(trunks.cluster))[:5]:
        own = shared[np.array(trunks.cluster) == name]
        assert len(own) == 5 and np.ptp(own) < 1e-12


def coverage(tallies, numbers=("alpha", "beta", "size_exponent", "loss", "E")):
    table = "\n".join([HEADER, *map(str, tallies)])
    return {(t.method, t.number): t.coverage for t in tallies if t.number in numbers}, table


STUDIES = {
    "equal exponents, centred, noise .002": design(SYMMETRIC, noise=0.002),
    "Chinchilla's, centred, noise .005": design(CHINCHILLA, noise=0.005),
    "lopsided, off centre": design(LOPSIDED, noise=0.003, offset=2.0),
    "Chinchilla's, drifting": design(CHINCHILLA, noise=0.003, drift=1.4),
    "a family's own cost": design(CHINCHILLA, cost=byte_level_cost(), noise=0.003),
}


# Of 1,000 studies of Huber on Chinchilla's law with noise .005, 95.5 to 97.0 % of each number's intervals hold the
# truth (experiments/estimators.py --only 2 --studies 1000), but of the first 200 98.5 % for two of six: more are taken.
MORE = {("huber", "Chinchilla's, centred, noise .005"): 1000}


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")  # of arrays in 10,000 fits, which takes longer than the fits
@pytest.mark.parametrize(
    ("method", "study"),
    [
        *(("projection", study) for study in STUDIES),
        *(("huber", study) for study in [*STUDIES][:3]),
    ],
)
def test_intervals_of_95_percent_hold_the_truth_in_90_to_98_percent_of_studies(method, study):
    studies = MORE.get((method, study), 200)
    found, table = coverage(trial(STUDIES[study], studies=studies, draws=200, methods=(method,)))
    outside = {key: share for key, share in found.items() if not 0.90 <= share <= 0.98}
    assert not outside, f"{outside}\n{table}"


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")  # of arrays in 10,000 fits, which takes longer than the fits
def test_runs_of_one_trunk_are_not_independent():
    # What all branches of a trunk share makes intervals that draw runs one by one too narrow.
    truth = design(CHINCHILLA, noise=0.001, trunk_noise=0.004, trunks=True, width=16.0, seeds=3)
    right, table = coverage(trial(truth, studies=100, draws=150, methods=("projection",)), ("loss", "E", "alpha"))

    def one_by_one(points):
        return dataclasses.replace(points, cluster=tuple(map(str, range(len(points)))))

    wrong, _ = coverage(
        trial(truth, studies=100, draws=150, methods=("projection",), redraw=one_by_one), ("loss", "E", "alpha")
    )
    for key, share in right.items():
        assert share >= 0.85, table
        assert wrong[key] < share - 0.05, table


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")  # of arrays in 10,000 fits, which takes longer than the fits
def test_off_centre_the_parabola_is_off_and_the_surfaces_are_not():
    truth = design(LOPSIDED, noise=0.002, width=8.0, offset=3.0, drift=2.0, sizes=9)
    tallies = {(t.method, t.number): t for t in trial(truth, studies=20, draws=0)}
    bias = {method: abs(tallies[method, "size_exponent"].bias) for method in (*SURFACES, "parabola")}
    assert bias["parabola"] > 0.02
    assert max(bias["projection"], bias["huber"]) < bias["parabola"] / 4


def test_without_draws_there_is_no_coverage():
    assert all(tally.coverage is None and " - " in str(tally) for tally in trial(design(), studies=1, draws=0))


def test_a_tally_is_a_line_of_a_table():
    (first, *_) = trial(design(noise=0.002), studies=3, draws=20, methods=("projection",))
    assert first.studies == 3 and first.method == "projection"
    assert len(str(first)) == len(HEADER)
    assert weights(design().draw(0).cluster, 2, 0).shape == (2, 35)
