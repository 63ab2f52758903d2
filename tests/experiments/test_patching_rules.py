import pytest

from experiments.patching_rules import BASELINE, studies
from tests.arms import SCALES, plans, settings


@pytest.mark.parametrize("scale", SCALES)
def test_one_model_reads_patches_of_every_rule(scale):
    asked = studies(settings(scale, seeds=(0,)))
    found = {plan.series: plan for plan in plans(asked)}
    assert BASELINE in found and len(found) == 9
    assert len({plan.train.model for plan in found.values()}) == 1
    rules = {(plan.wanted.rule, plan.wanted.variant, plan.patch_size) for plan in found.values()}
    assert rules == {
        *(("entropy", variant, size) for variant in ("global", "monotonic") for size in (4.5, 6.0)),
        *(("strided", "global", size) for size in (1.0, 4.0, 6.0)),
        ("space", "global", None), ("bpe", "global", None),
    }  # fmt: skip
    assert found["blt-strided-1"].bytes < 0.6 * found["blt-strided-4"].bytes
