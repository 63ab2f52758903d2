"""Runs at several learning rates: a model counts by the best of them.

A loss at another rate says something of the rate, not of the size or the budget; so frontiers, parabolas and laws take
each model at each budget at one rate: that of the least mean over its seeds. A choice for each seed would take the
luckier of several runs. That it is chosen by the very loss that is reported still favours what was tried most often:
give every size as many rates.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Row = TypeVar("Row", bound=Mapping[str, Any])

MODEL = ("series", "preset", "budget")  # columns of a study's table that name runs but for seed and rate
LOSS = "heldout_bits_per_byte"


def best_of_rates(rows: Sequence[Row]) -> list[Row]:
    """Of the rows of a model at a budget those at its best learning rate; in the order given.

    Of rates whose runs are not yet complete, those with the most seeds are compared; of two that are equal the first
    is taken.

    Args:
      rows: of a study's table, as numbers or as text.
    """
    models: dict[tuple[str, ...], dict[str, list[int]]] = {}
    for number, row in enumerate(rows):
        rates = models.setdefault(tuple(str(row[name]) for name in MODEL), {})
        rates.setdefault(str(row.get("peak_rate")), []).append(number)
    kept: list[int] = []
    for rates in models.values():
        most = max(map(len, rates.values()))
        full = [numbers for numbers in rates.values() if len(numbers) == most]
        kept += min(full, key=lambda numbers: sum(float(rows[number][LOSS]) for number in numbers))
    return [rows[number] for number in sorted(kept)]
