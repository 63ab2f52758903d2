"""Which vocabulary stands for a token model, where a study trained it with several.

A vocabulary is a choice like a size: a small study with a large one handicaps tokens, since the output then takes a
good part of their FLOPs. So at each budget the vocabulary counts whose best size has the least loss, in figures,
reports and laws alike: one for all sizes, since N counts the output and bowls over N would mix two axes if each size
had its own (a parabola through such points found a loss that no run came near). It is chosen by the mean over seeds,
and the same for all of them: a choice for each seed would take the luckier of several runs. The runs of the others
stay in the table.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bltjax import vocabulary

Row = Mapping[str, Any]


def vocabulary_of(manifest: Row) -> int | None:
    """Tokens of the BPE of a run; None where it reads no tokens."""
    if manifest["family"] != "token":
        return None
    return manifest["config"]["model"]["vocabulary_size"] - vocabulary.OFFSET


def best_vocabulary(rows: Sequence[Row]) -> list[int]:
    """Indices of the rows that count, in their order: at each budget those of the best vocabulary.

    Rows without a vocabulary all count. Where runs are not yet complete, models with the most seeds are compared; of
    two vocabularies that are equal, the smaller is taken.

    Args:
      rows: of a study's table, as numbers or as text; any series.
    """
    groups: dict[tuple[str, float], dict[int, dict[str, list[int]]]] = {}
    for index, row in enumerate(rows):
        tokens = _vocabulary(row)
        if tokens is not None:
            models = groups.setdefault((str(row["series"]), float(row["budget"])), {}).setdefault(tokens, {})
            models.setdefault(str(row["preset"]), []).append(index)
    left_out: set[int] = set()
    for own in groups.values():
        seeds = max(len(indices) for models in own.values() for indices in models.values())
        least = {
            tokens: min(sum(float(rows[i]["heldout_bits_per_byte"]) for i in indices) / seeds for indices in complete)
            for tokens, models in own.items()
            if (complete := [indices for indices in models.values() if len(indices) == seeds])
        }
        best = min(least, key=lambda tokens: (least[tokens], tokens))
        left_out.update(
            i for tokens, models in own.items() if tokens != best for indices in models.values() for i in indices
        )
    return [index for index in range(len(rows)) if index not in left_out]


def chosen(rows: Sequence[Row]) -> list[Any]:
    """The rows that count; see `best_vocabulary`."""
    return [rows[index] for index in best_vocabulary(rows)]


def swept(rows: Sequence[Row]) -> dict[str, tuple[int, ...]]:
    """The vocabularies of each series that has several, ascending."""
    found: dict[str, set[int]] = {}
    for row in rows:
        tokens = _vocabulary(row)
        if tokens is not None:
            found.setdefault(str(row["series"]), set()).add(tokens)
    return {series: tuple(sorted(own)) for series, own in found.items() if len(own) > 1}


def _vocabulary(row: Row) -> int | None:
    """None where a table has no such column, too: it is older than the column."""
    value = row.get("vocabulary")
    return None if value is None or value == "" else int(float(value))
