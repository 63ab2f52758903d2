"""What a change of a model is worth: the runs of several arms at one budget, compared with one of them over seeds.

Runs of one seed share the order of their rows, and other seeds change every arm's. So bits per byte are taken as a sum
of what the arm does, what the seed does, and noise; the noise that is left (of all arms of a kind, at a budget) gives
the interval of each difference (two-way layout without interaction; of two arms it is the paired t-interval). It says
what other seeds would give on the same text; it says nothing about other texts, and each interval stands for itself.

Arms whose noise is of another size than the baseline's are of another kind: families, or models without what steadies
the others. Between kinds the interval is Welch's, from what seeds do to either. Kinds are an experiment's to name.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy import stats

from bltjax.scaling.plots import STYLE, best_of_budgets, count_text, flops_text, new_figure, save
from bltjax.scaling.store import replace_file, write_table

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Compared:
    """One arm at one budget.

    Attributes:
      bits: mean over seeds, bits per byte of held-out documents.
      error: standard error of that mean, from the arm's own seeds; None of one seed.
      difference: to the baseline; negative: fewer bits.
      low, high: ends of its 95 % interval; None of one seed.
    """

    arm: str
    budget: float
    seeds: int
    parameters: int  # without byte, token and hash embeddings
    forward_flops_per_byte_paper: float
    forward_flops_per_byte_full: float
    bytes_per_unit: float  # raw bytes per patch or token of the training split
    bytes_seen: float
    bits: float
    error: float | None
    difference: float
    low: float | None
    high: float | None
    is_baseline: bool

    @property
    def verdict(self) -> str:
        """What may be said of it."""
        if self.is_baseline:
            return "baseline"
        if self.low is None or self.high is None:
            return "one seed: nothing shown"
        return "better" if self.high < 0 else "worse" if self.low > 0 else "no difference shown"


def arm_of(row: Row) -> str:
    """What a run is compared as: its variant, or else its series; in front, its study where there are several."""
    own = row["preset"].partition("+")[2] or row["series"]
    return f"{row['study']} {own}" if row.get("study") else own


def of_best_size(rows: Sequence[Row]) -> list[Row]:
    """The runs of the best size of each series at each budget, by the mean over seeds."""
    found: list[Row] = []
    for series in dict.fromkeys(row["series"] for row in rows):
        own = [row for row in rows if row["series"] == series]
        best = {(row["budget"], row["preset"]) for row in best_of_budgets(own)}
        found += [row for row in own if (row["budget"], row["preset"]) in best]
    return found


def one_kind(arm: str) -> str:
    """All arms have the same noise."""
    return ""


def compare(
    rows: Sequence[Row], baseline: str, arm: Callable[[Row], str] = arm_of, kind: Callable[[str], str] = one_kind
) -> list[Compared]:
    """Every arm at every budget against the baseline; budgets ascending, arms as they first come.

    Args:
      rows: of the table of one study, or of several that were scored on the same text.
      arm: what a run is compared as.
      kind: of an arm; those of one kind have noise of one size.

    Raises:
      ValueError: for a baseline that is no arm, arms with two runs of one seed, or with other seeds than the baseline.
    """
    found: list[Compared] = []
    for budget in sorted({row["budget"] for row in rows}):
        arms: dict[str, dict[int, Row]] = {}
        for row in (row for row in rows if row["budget"] == budget):
            own = arms.setdefault(arm(row), {})
            if row["seed"] in own:
                raise ValueError(f"arm {arm(row)!r}: has two runs of seed {row['seed']} at {flops_text(budget)} FLOPs.")
            own[row["seed"]] = row
        if baseline not in arms:
            raise ValueError(f"baseline={baseline!r}: is no arm at {flops_text(budget)} FLOPs: {', '.join(arms)}.")
        seeds = sorted(arms[baseline])
        for name, own in arms.items():
            if sorted(own) != seeds:
                raise ValueError(f"arm {name!r}: has seeds {sorted(own)}, the baseline {seeds}; finish the study.")
        bits = np.array([[own[seed]["heldout_bits_per_byte"] for seed in seeds] for own in arms.values()])
        kinds, first = np.array([kind(name) for name in arms]), list(arms).index(baseline)
        same = bits[kinds == kinds[first]]
        reaches = {name: reach_between_kinds(same, bits[kinds == name]) for name in set(kinds.tolist())}
        reaches[kinds[first]] = reach_of_differences(same)
        means, base = bits.mean(axis=1), bits[first].mean()
        for index, (name, own) in enumerate(arms.items()):
            row, difference = own[seeds[0]], float(means[index] - base)
            wide = None if name == baseline else reaches[kinds[index]]
            found.append(
                Compared(
                    arm=name,
                    budget=budget,
                    seeds=len(seeds),
                    parameters=row["parameters_non_embedding"],
                    forward_flops_per_byte_paper=row["forward_flops_per_byte_paper"],
                    forward_flops_per_byte_full=row["forward_flops_per_byte_full"],
                    bytes_per_unit=row["bytes_per_unit"],
                    bytes_seen=float(np.mean([each["bytes_seen"] for each in own.values()])),
                    bits=float(means[index]),
                    error=None if len(seeds) < 2 else float(bits[index].std(ddof=1) / np.sqrt(len(seeds))),
                    difference=difference,
                    low=None if wide is None else difference - wide,
                    high=None if wide is None else difference + wide,
                    is_baseline=name == baseline,
                )
            )
    return found


def reach_of_differences(bits: np.ndarray, level: float = 0.95) -> float | None:
    """Half the width of the interval of a difference of two arms' means; None of one seed or one arm.

    Args:
      bits: [arms, seeds], of arms of one kind.
    """
    arms, seeds = bits.shape
    freedom = (arms - 1) * (seeds - 1)
    if freedom < 1:
        return None
    left = bits - bits.mean(axis=1, keepdims=True) - bits.mean(axis=0, keepdims=True) + bits.mean()
    variance = float((left**2).sum()) / freedom
    return float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(2 * variance / seeds))


def reach_between_kinds(one: np.ndarray, other: np.ndarray, level: float = 0.95) -> float | None:
    """The same for arms of two kinds, [arms, seeds] of each: Welch's, from what seeds do to each; None of one."""
    seeds = one.shape[1]
    if seeds < 2:
        return None
    variances = np.array([bits.var(axis=1, ddof=1).mean() for bits in (one, other)])
    freedoms = np.array([len(bits) * (seeds - 1) for bits in (one, other)])
    if not variances.any():
        return 0.0
    freedom = variances.sum() ** 2 / (variances**2 / freedoms).sum()
    return float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variances.sum() / seeds))


def comparison_table(found: Sequence[Compared]) -> str:
    """The comparison, for people."""
    wide = max(12, *(len(one.arm) for one in found))
    form = f"{{:<{wide}}} {{:>8}} {{:>7}} {{:>10}} {{:>10}} {{:>6}} {{:>7}} {{:>9}} {{:>7}} {{:>9}}  {{}}"
    head = ("arm", "budget", "N", "FLOPs/byte", "full", "B/unit", "MB", "bits/byte", "+-", "diff.", "95 % interval")
    lines = [form.format(*head)]
    for one in found:
        interval = "" if one.low is None else f"{one.low:+.4f} .. {one.high:+.4f}: "
        lines.append(
            form.format(
                one.arm, flops_text(one.budget), count_text(one.parameters), f"{one.forward_flops_per_byte_paper:.3g}",
                f"{one.forward_flops_per_byte_full:.3g}", f"{one.bytes_per_unit:.2f}", f"{one.bytes_seen / 1e6:.2f}",
                f"{one.bits:.4f}", "" if one.error is None else f"{one.error:.4f}", f"{one.difference:+.4f}",
                f"{interval}{one.verdict}",
            )
        )  # fmt: skip
    lines.append(
        f"mean over seeds ({found[0].seeds}); +-: standard error, from the arm's own; FLOPs/byte: forward; diff.: to "
        "the baseline, its interval from the noise that arms and seeds leave, of all arms of a kind together"
    )
    return "\n".join(lines)


def comparison_rows(found: Sequence[Compared]) -> list[dict[str, Any]]:
    """The same as rows of a file."""
    return [{**dataclasses.asdict(one), "verdict": one.verdict} for one in found]


def comparison_figure(found: Sequence[Compared], title: str, caption: str) -> Any:
    """The difference of every arm to the baseline with its interval, one panel for each budget."""
    budgets = list(dict.fromkeys(one.budget for one in found))
    with matplotlib.rc_context(STYLE):
        letters = max(len(one.arm) for one in found)
        figure, panels = new_figure(caption, len(budgets), left=min(0.03 + 0.012 * letters, 0.6))
        for axes, budget in zip(panels, budgets, strict=True):
            own = [one for one in found if one.budget == budget]
            for place, one in enumerate(own):
                reach = 0.0 if one.high is None else one.high - one.difference
                shown = one.verdict in ("better", "worse")
                axes.errorbar(
                    one.difference, place, xerr=reach, marker="D" if one.is_baseline else "o", markersize=6, capsize=3,
                    color="#000000" if one.is_baseline else "#0072B2" if shown else "#999999",
                )  # fmt: skip
            axes.axvline(0.0, color="#000000", linewidth=0.8)
            names = [one.arm for one in own]
            axes.set_yticks(range(len(own)), names if axes is panels[0] else [""] * len(own), fontsize=9)
            axes.invert_yaxis()
            base = next(one for one in own if one.is_baseline)
            where = f"at {flops_text(budget)} FLOPs"
            axes.set_xlabel(f"bits per byte beyond\nthe baseline's {base.bits:.3f}, {where}", fontsize=9)
        figure.suptitle(title, x=0.02, ha="left", fontsize=11)
        return figure


def comparison_caption(found: Sequence[Compared], text: str) -> str:
    """What the figure says about its numbers.

    Args:
      text: the study's own caption: text, windows, accounting, seeds.
    """
    reach = "95 % intervals of other seeds on the same text" if found[0].seeds > 1 else "one seed: no intervals"
    return f"{reach}; grey: the interval holds 0, so no difference is shown. {text}"


def save_comparison(found: Sequence[Compared], folder: Path, title: str, text: str) -> None:
    """Writes comparison.csv, .parquet, .txt, .png and .svg."""
    write_table(comparison_rows(found), folder, "comparison")
    table = comparison_table(found)
    replace_file(folder / "comparison.txt", lambda path: path.write_text(f"{table}\n", encoding="utf-8"))
    save(comparison_figure(found, title, comparison_caption(found, text)), folder, "comparison")
