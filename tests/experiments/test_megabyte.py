import pytest

from experiments.megabyte import BASELINE, FAMILIES, studies
from tests.arms import SCALES, plans, settings


@pytest.mark.parametrize("scale", SCALES)
def test_every_family_reads_rows_of_the_same_bytes_at_the_same_budget(scale):
    found = plans(studies(settings(scale)))
    assert {plan.series for plan in found} == set(FAMILIES) and BASELINE in FAMILIES
    assert len({(plan.train.rows.bytes, plan.train.rows.batch, plan.budget) for plan in found}) == 1
    sizes = {family: {plan.name for plan in found if plan.series == family} for family in FAMILIES}
    assert {len(names) for names in sizes.values()} == {2 if scale == "cpu" else 1}
    assert len(found) == 3 * sum(map(len, sizes.values()))
