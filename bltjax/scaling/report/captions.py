"""The words under figures: what N counts, the accounting, the text, the estimator, its intervals and the seeds."""

import re
from collections.abc import Mapping, Sequence

from bltjax.scaling.fit import SIZES
from bltjax.scaling.plots import vocabularies_text
from bltjax.scaling.report.data import StudyData
from bltjax.scaling.report.laws import SeriesLaw

N = SIZES["non_embedding"]


class NoData(ValueError):
    """A figure that a study has nothing for; the text says what is missing."""


def caption(
    data: StudyData,
    what: str,
    laws: Mapping[str, SeriesLaw] | None = None,
    estimator: str = "",
    numbers: str = "As measured",
) -> str:
    """A figure's caption.

    Args:
      what: the marks and lines, in words.
      laws: where numbers of fits are drawn; their estimator and intervals are named.
      estimator: named in the place of that of the laws.
      numbers: what they are where nothing is fitted.
    """
    parts = [what, f"N: {N}.", f"Budgets are {data.budgets_text}.", f"Split: {data.text}."]
    if laws is not None:
        parts.append(f"Estimator: {estimator or estimators(laws)}.")
        parts.append(intervals(laws))
    elif estimator:
        parts.append(f"Estimator: {estimator}. No intervals.")
    else:
        parts.append(f"{numbers}: no estimator and no intervals.")
    parts += filter(None, [vocabularies_text(data.rows)])
    seeds = ", ".join(map(str, data.seeds))
    parts.append(f"Seeds: {seeds}." if len(data.seeds) > 1 else f"One seed: {seeds}.")
    return " ".join(parts)


def estimators(laws: Mapping[str, SeriesLaw]) -> str:
    """Of the laws that could be fitted."""
    return ", ".join(dict.fromkeys(law.fit.estimator for law in laws.values() if law.fit is not None)) or "none"


def intervals(laws: Mapping[str, SeriesLaw]) -> str:
    """How they were made, or why there are none."""
    fits = {series: law.fit for series, law in laws.items() if law.fit is not None}
    words = []
    drawn = {series: fit for series, fit in fits.items() if len(fit.draws)}
    if drawn:
        fit = next(iter(drawn.values()))
        words.append(
            f"Intervals: {fit.level:.0%}, {len(fit.draws)} bootstrap draws over trunks and seeds "
            f"({span([len(set(f.points.cluster)) for f in drawn.values()])} clusters a series, {fit.drawn}, "
            f"seed {fit.seed}); open where too many draws lie beyond what was measured."
        )
    why = dict.fromkeys(laws[series].no_interval.rstrip(".") for series in fits if series not in drawn)
    words += [f"No interval can be given: {reason}." for reason in why]
    return " ".join(words) or "No intervals: no law could be fitted."


def span(values: Sequence[int]) -> str:
    """9, or 6 to 9."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def slug(text: str, taken: Sequence[str] = ()) -> str:
    """A file name of a name that may hold anything."""
    found = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:60] or "unnamed"
    tries = [found, *(f"{found}-{number}" for number in range(2, len(taken) + 3))]
    return next(each for each in tries if each not in taken)
