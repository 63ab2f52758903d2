import math

import pytest

from bltjax.config import OptimConfig
from bltjax.optim import learning_rate
from bltjax.scaling.schedules import branch_step, check_schedule, optim_of, scheduled

LENGTHS = (40, 100, 333, 5000)  # of the runs that leave one trunk


def branch(steps, cooldown=0.2, warmup_steps=None):
    return scheduled(1e-3, steps, LENGTHS[0], "wsd", cooldown, warmup_steps)


@pytest.mark.parametrize("steps", LENGTHS)
def test_a_run_has_the_rates_of_its_trunk_until_it_leaves_and_then_those_of_the_paper(steps):
    """Hägele et al. 2024: warm-up, a constant rate, then 1 - sqrt of the share of the cool-down that is done."""
    optim, left = branch(steps), branch_step(branch(steps), steps)
    assert left == round(0.8 * steps)
    warmup = 4  # a tenth of the shortest
    trunk = OptimConfig(peak_rate=1e-3, schedule="constant", warmup_steps=warmup)
    for step in range(left + 1):
        expected = 1e-3 * (step + 1) / (warmup + 1) if step < warmup else 1e-3
        assert learning_rate(optim, step, steps) == expected == learning_rate(trunk, step, 10 * steps)
    for step in range(left, steps + 1):
        expected = 1e-3 * (1 - math.sqrt((step - left) / (steps - left)))
        assert learning_rate(optim, step, steps) == pytest.approx(expected, rel=1e-12, abs=1e-18)
    assert learning_rate(optim, left + 1, steps) < 1e-3


def test_a_cosine_is_warmed_up_by_its_own_length_and_leaves_no_trunk():
    assert [optim_of(1e-3, steps).warmup_steps for steps in (1, 50, 100_000)] == [0, 5, 2000]
    for steps in LENGTHS:
        optim = scheduled(1e-3, steps, LENGTHS[0], "cosine", 0.3, None)
        assert optim == optim_of(1e-3, steps) and branch_step(optim, steps) == 0
    assert scheduled(1e-3, 100, 40, "cosine", 0.2, 7).warmup_steps == 7


def test_a_warm_up_that_is_given_is_that_of_every_branch():
    assert {branch(steps, warmup_steps=30).warmup_steps for steps in LENGTHS} == {30}
    assert {branch(steps).warmup_steps for steps in LENGTHS} == {4}


def test_a_run_that_would_leave_before_its_trunk_is_warm_is_refused():
    assert branch(40, warmup_steps=32).warmup_steps == 32
    with pytest.raises(ValueError, match="warmup_steps=33: a run of 40 steps begins to cool down after 32"):
        branch(40, warmup_steps=33)
    with pytest.raises(ValueError, match=r"lower cooldown, now 0\.95"):
        branch(40, cooldown=0.95)


@pytest.mark.parametrize(("settings", "named"), [((0.0, None), "cooldown=0.0"), ((1.0, 3), "cooldown=1.0"),
                                                 ((0.2, -1), "warmup_steps=-1")])  # fmt: skip
def test_settings_that_make_no_schedule_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        check_schedule(*settings)
