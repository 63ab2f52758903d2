"""What an experiment's studies would train, for tests that look at its arms without training any."""

import dataclasses
from pathlib import Path

from bltjax.config import to_dict
from bltjax.scaling.experiment import Settings
from bltjax.scaling.forecast import forecast

SCALES = ("cpu", "accelerator")


def settings(scale, **changes):
    return dataclasses.replace(Settings(Path("runs/nowhere"), scale=scale), **changes)


def flat(config, prefix=""):
    """The leaves of a configuration by dotted path."""
    out = {}
    for key, value in config.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def changed(model, other):
    """Dotted paths in which two models differ, with the values of the first."""
    a, b = flat(to_dict(model)), flat(to_dict(other))
    return {path: a.get(path) for path in a.keys() | b.keys() if a.get(path) != b.get(path)}


def plans(studies):
    """All runs of studies, planned with full rows; each comes to its budget and has steps enough to learn from."""
    found = [run.plan for study in studies.values() for run in forecast(study, lambda text: None).runs]
    for plan in found:
        assert plan.train.steps >= 100, (plan.name, plan.budget, plan.train.steps)
        assert abs(plan.training_flops - plan.budget) <= plan.budget / plan.train.steps
    return found
