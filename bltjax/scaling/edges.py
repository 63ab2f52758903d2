"""Where the best size of each budget will lie in a grid of sizes, predicted before anything is trained.

Two rules. Without earlier runs: as many bytes of text for each parameter as were found best elsewhere. Compute Optimal
Tokenization (arXiv 2605.01188) reports about 60 for each parameter of the global model, nearly independent of the
patch size; Chinchilla (arXiv 2203.15556) about 20 tokens, which are 80 bytes at 4 bytes a token. With the table of
an earlier study: the size of least loss by the law fitted to its runs of the same series.

An optimum that is predicted at or beyond an end of the grid would be reported as a bound: its runs draw a curve without
a bottom.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from bltjax.flops import non_embedding_parameters
from bltjax.scaling.fit import fit_law, own_table, points_of, read_table
from bltjax.scaling.plan import RunPlan
from bltjax.scaling.plots import budget_text, count_text
from bltjax.scaling.series import size_name

BYTES_PER_PARAMETER = 60.0
_GRID = 401  # sizes between the smallest and the largest at which a law is asked

Law = Callable[[float, float], float]  # bits per byte of a size and a number of bytes


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Where the best size of one series at one budget is predicted.

    Attributes:
      bound: set where it lies at or beyond an end of the grid; `size` is that end then.
      rule: that it was predicted by, in words.
    """

    series: str
    budget: float
    size: float
    bound: Literal["at or below", "at or above"] | None
    rule: str
    equal: str = "flops"  # what the budget is of

    def __str__(self) -> str:
        end = "smallest" if self.bound == "at or below" else "largest"
        where = "near" if self.bound is None else f"{self.bound} the {end} size,"
        found = f"the best is predicted {where} N = {count_text(self.size)} (by {self.rule})"
        return f"{self.series} at {budget_text(self.budget, self.equal)}: {found}"


def by_ratio(
    sizes: Float[np.ndarray, " sizes"], seen: Float[np.ndarray, " sizes"], ratio: float = BYTES_PER_PARAMETER
) -> tuple[float, Literal["at or below", "at or above"] | None]:
    """The size at which a budget pays for `ratio` bytes a parameter, on straight lines between sizes in logarithms.

    Args:
      sizes: ascending.
      seen: bytes that the budget pays for at each.

    Returns:
      The size and None, or an end of the grid and on which side of it the size lies.
    """
    surplus = np.log(seen / sizes / ratio)  # above 0: trained longer than the rule asks, so a larger size is better
    if surplus[0] <= 0:
        return float(sizes[0]), "at or below"
    if surplus[-1] >= 0:
        return float(sizes[-1]), "at or above"
    right = int(np.argmax(surplus <= 0))
    x, y = np.log(sizes[right - 1 : right + 1]), surplus[right - 1 : right + 1]
    return float(np.exp(x[0] + (x[1] - x[0]) * y[0] / (y[0] - y[1]))), None


def by_law(
    sizes: Float[np.ndarray, " sizes"], seen: Float[np.ndarray, " sizes"], law: Law
) -> tuple[float, Literal["at or below", "at or above"] | None]:
    """The size of least loss by a law, between the ends of the grid; arguments and result as for `by_ratio`."""
    x = np.linspace(math.log(sizes[0]), math.log(sizes[-1]), _GRID)
    bytes_at = np.exp(np.interp(x, np.log(sizes), np.log(seen)))
    best = int(np.argmin([law(float(n), float(d)) for n, d in zip(np.exp(x), bytes_at, strict=True)]))
    bound: Literal["at or below", "at or above"] | None
    bound = "at or below" if best == 0 else "at or above" if best == _GRID - 1 else None
    return float(sizes[0] if best == 0 else sizes[-1] if best == _GRID - 1 else np.exp(x[best])), bound


def laws_of(table: Path) -> dict[str, Law]:
    """The laws that the runs of an earlier study's table give, by series, for those series that have enough runs.

    Raises:
      ValueError: for a file that is no such table, or where no series has enough runs for a law.
    """
    rows = read_table(table)
    if not rows or "series" not in rows[0]:
        raise ValueError(f"fit={table}: is not the table of a study; name its table.csv or table.parquet.")
    laws: dict[str, Law] = {}
    failed = []
    for series in dict.fromkeys(str(row["series"]) for row in rows):
        try:
            law = fit_law(points_of(rows, own_table(series)), "projection", draws=0).law
        except ValueError as error:
            failed.append(f"{series}: {error}")
            continue
        laws[series] = lambda size, seen, law=law: law.loss(size, seen)
    if not laws:
        raise ValueError(f"fit={table}: no series has runs enough for a law ({'; '.join(failed)}).")
    return laws


def predictions(
    plans: Sequence[RunPlan],
    ratio: float = BYTES_PER_PARAMETER,
    laws: Mapping[str, Law] | None = None,
) -> tuple[list[Prediction], list[str]]:
    """The optimum of each series at each budget, and notes on what could not be predicted as was asked.

    Series of fewer than three sizes are no grid: no optimum will be fitted to them.

    Args:
      laws: of an earlier study; a series that has none goes by the ratio, with a note.
    """
    found: list[Prediction] = []
    small: list[str] = []
    without: list[str] = []
    grids: dict[tuple[str, str], dict[float, dict[int, float]]] = {}  # of a vocabulary each
    for plan in plans:
        size, grid = non_embedding_parameters(plan.train.model), plan.name.removeprefix(size_name(plan.name))
        grids.setdefault((plan.series, grid), {}).setdefault(plan.budget, {})[size] = plan.bytes
    for (name, grid), budgets in grids.items():
        series = f"{name}{grid}"
        if len(next(iter(budgets.values()))) < 3:
            small.append(series)
            continue
        law = (laws or {}).get(name)
        if laws is not None and law is None:
            without.append(series)
        rule = f"{ratio:g} bytes a parameter" if law is None else "the law of the earlier study"
        for budget, grid in sorted(budgets.items()):
            sizes = np.array(sorted(grid), np.float64)
            seen = np.array([grid[int(size)] for size in sizes], np.float64)
            size, bound = by_ratio(sizes, seen, ratio) if law is None else by_law(sizes, seen, law)
            found.append(Prediction(series, budget, size, bound, rule, plans[0].equal))
    notes = [f"fewer than three sizes, so no optimum will be fitted: {', '.join(small)}"] if small else []
    if without:
        notes.append(f"no law of the earlier study, so {ratio:g} bytes a parameter were taken: {', '.join(without)}")
    return found, notes
