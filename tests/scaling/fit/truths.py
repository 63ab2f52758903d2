"""Laws with known constants, and costs of a byte, that fits are tried on."""

import dataclasses
from typing import Any

import numpy as np

from bltjax.scaling.fit.cost import Cost, transformer
from bltjax.scaling.fit.law import Law
from bltjax.scaling.fit.simulation import Design, surface

BUDGETS = tuple(np.geomspace(1e17, 1e19, 5))
SYMMETRIC = surface(0.31, 0.31)
CHINCHILLA = surface(0.34, 0.28)
LOPSIDED = surface(0.5, 0.2)


def byte_level_cost() -> Cost:
    """Sizes whose bytes cost 2 N and something that grows more slowly: local models beside a global one."""
    sizes = np.geomspace(1e5, 1e12, 29)
    return Cost("flops", "FLOPs (paper-v1)", sizes, None, (2 * sizes + 3e3 * sizes**0.6)[None])


def design(law: Law = CHINCHILLA, **changes: Any) -> Design:
    return dataclasses.replace(Design(law, transformer(), BUDGETS), **changes)
