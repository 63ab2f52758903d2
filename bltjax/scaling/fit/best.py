"""Runs at several learning rates: a model counts by the best of them.

A loss at another rate says something of the rate, not of the size or the budget; so frontiers, parabolas and laws take
one run of each model, budget and seed. That it is chosen by the very loss that is reported favours what was tried most
often: give every size as many rates.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Row = TypeVar("Row", bound=Mapping[str, Any])

RUN = ("series", "preset", "seed", "budget")  # columns of a study's table that name a run but for its rate
LOSS = "heldout_bits_per_byte"


def best_of_rates(rows: Sequence[Row], run: Sequence[str] = RUN, loss: str = LOSS) -> list[Row]:
    """Of rows that are of one run but for its learning rate that of least loss; in the order given.

    Args:
      rows: of a study's table, or of one like it.
      run: columns that name a run but for its rate.
      loss: column of what was measured.
    """
    best: dict[tuple[str, ...], int] = {}
    for number, row in enumerate(rows):
        key = tuple(str(row[name]) for name in run)
        if key not in best or float(row[loss]) < float(rows[best[key]][loss]):
            best[key] = number
    return [rows[number] for number in sorted(best.values())]
