"""Which vocabulary stands for a token model, where a study trained it with several.

A vocabulary is a choice like a size: a small study with a large one handicaps tokens, since the output then takes a
good part of their FLOPs. So at each size and budget the vocabulary of the least loss counts, in figures, reports and
laws alike, and a family's best at a budget is the best over sizes and vocabularies. It is chosen by the mean over
seeds, and the same for all of them: a choice for each seed would take the luckier of several runs. The runs of the
others stay in the table.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bltjax import vocabulary
from bltjax.scaling.series import size_name

Row = Mapping[str, Any]


def vocabulary_of(manifest: Row) -> int | None:
    """Tokens of the BPE of a run; None where it reads no tokens."""
    if manifest["family"] != "token":
        return None
    return manifest["config"]["model"]["vocabulary_size"] - vocabulary.OFFSET


def best_vocabulary(rows: Sequence[Row]) -> list[int]:
    """Indices of the rows that count, in their order: at each size and budget those of the best vocabulary.

    Rows without a vocabulary all count. Among vocabularies whose runs are not yet complete, those with the most seeds
    are compared; of two that are equal, the smaller is taken.

    Args:
      rows: of a study's table, as numbers or as text; any series.
    """
    groups: dict[tuple[str, str, float], dict[int, list[int]]] = {}
    for index, row in enumerate(rows):
        if _vocabulary(row) is not None:
            key = str(row["series"]), size_name(str(row["preset"])), float(row["budget"])
            groups.setdefault(key, {}).setdefault(_vocabulary(row) or 0, []).append(index)
    left_out = set()
    for own in groups.values():
        seeds = max(map(len, own.values()))
        means = {
            tokens: sum(float(rows[i]["heldout_bits_per_byte"]) for i in indices) / seeds
            for tokens, indices in own.items()
            if len(indices) == seeds
        }
        best = min(means, key=lambda tokens: (means[tokens], tokens))
        left_out |= {i for tokens, indices in own.items() if tokens != best for i in indices}
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
