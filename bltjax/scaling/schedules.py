"""The learning rate of a study's runs: how they warm up, and whether each is trained alone or leaves a trunk.

With "wsd" (warm-up, stable, decay; Hägele et al. 2024, arXiv 2405.18392) all budgets of a model share one training at a
constant rate, the trunk, and each has a cool-down of its own. So nothing before the cool-down may depend on the budget:
the warm-up is that of the smallest one, which leaves the trunk first.
"""

import dataclasses
from typing import Literal

from bltjax.config import OptimConfig
from bltjax.optim import stable_steps

Schedule = Literal["cosine", "wsd"]
MOST_WARMUP = 2000  # steps: the paper's warm-up


def optim_of(rate: float, steps: int) -> OptimConfig:
    """AdamW with a tenth of warm-up, 2,000 steps at most, and a cosine to zero."""
    return OptimConfig(peak_rate=rate, warmup_steps=min(MOST_WARMUP, steps // 10))


def scheduled(
    rate: float, steps: int, shortest: int, schedule: Schedule, cooldown: float, warmup_steps: int | None
) -> OptimConfig:
    """The optimiser of a run.

    Args:
      steps: of the run.
      shortest: steps of the same model at the smallest budget of the study.
      cooldown: share of the steps spent cooling down; for wsd.
      warmup_steps: None: a tenth, with wsd of the shortest run.

    Raises:
      ValueError: for a branch that would leave its trunk before the warm-up is over.
    """
    optim = optim_of(rate, shortest if schedule == "wsd" else steps)
    if warmup_steps is not None:
        optim = dataclasses.replace(optim, warmup_steps=warmup_steps)
    if schedule == "cosine":
        return optim
    optim = dataclasses.replace(optim, schedule="wsd", decay_fraction=cooldown)
    if optim.warmup_steps > stable_steps(optim, steps):
        raise ValueError(
            f"warmup_steps={optim.warmup_steps}: a run of {steps:,} steps begins to cool down after "
            f"{stable_steps(optim, steps):,}. Warm up for fewer, lower cooldown, now {cooldown:g}, or raise the budget."
        )
    return optim


def branch_step(optim: OptimConfig, steps: int) -> int:
    """The step at which a run leaves its trunk; 0 where it shares none, as with cosine."""
    return stable_steps(optim, steps) if optim.schedule == "wsd" else 0


def check_schedule(cooldown: float, warmup_steps: int | None) -> None:
    """Refuses settings of a study that make no schedule (ValueError)."""
    if not 0 < cooldown < 1:
        raise ValueError(f"cooldown={cooldown}: must lie in (0, 1): the rest of the steps are the trunk's.")
    if warmup_steps is not None and warmup_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps}: must not be negative.")
