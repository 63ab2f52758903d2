import pytest

from bltjax.flops import parameters
from experiments.ngram_hashes import BASELINE, BUCKETS, studies
from tests.arms import SCALES, changed, plans, settings


@pytest.mark.parametrize("scale", SCALES)
def test_arms_are_the_rows_of_the_paper_s_table_and_differ_in_hashes_alone(scale):
    (study,) = studies(settings(scale)).values()
    models = {name.partition("+")[2]: model for name, model in study.models().items()}
    assert len(models) == 10
    found = {(model.hash.sizes, model.hash.buckets) for arm, model in models.items() if arm != BASELINE}
    lengths = ((3, 4, 5), (6, 7, 8), (3, 4, 5, 6, 7, 8))
    assert found == {(sizes, rows) for sizes in lengths for rows in BUCKETS[scale]}
    assert models[BASELINE].hash.sizes == ()
    for model in models.values():
        assert {path.split(".")[0] for path in changed(model, models[BASELINE])} <= {"hash"}


def test_tables_hold_what_their_arms_are_called():
    (study,) = studies(settings("cpu")).values()
    tables = {name.partition("+")[2]: parameters(model)["hash_embedding"] for name, model in study.models().items()}
    assert tables[BASELINE] == 0
    assert tables["3-5_x1000"] == tables["6-8_x1000"] == 3 * 1000 * 24
    assert tables["3-8_x4000"] == 6 * 4000 * 24


@pytest.mark.parametrize("scale", SCALES)
def test_every_arm_has_its_budget_and_sees_the_same_bytes(scale):
    found = plans(studies(settings(scale)))
    assert len(found) == 30 and len({plan.bytes for plan in found}) == 1
