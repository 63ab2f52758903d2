"""Does the best learning rate of a small model hold for a larger one of its family, and by which rule?

    python experiments/learning_rates.py

took 21 minutes on one core beside other programs, two would take about 11. It trains two sizes of three families (BLT
with entropy patches of 4.5 bytes, flat bytes, BPE tokens), each at its own budget, at six learning rates on the
standard library of the running Python: the large size once by the study's rule (inverse to the width of the narrowest
tower) and once by a transfer from the small one (`--transfer`: width-depth, CompleteP; or width, muP). It can be
stopped at any moment, and goes on with the same command. A rate is that of a model 64 wide; by either rule the small
size is trained at rate x 64 / its width.

Expected: bowls in ln rate. The question is whether those of the large size lie where the small one's do, and what one
rate for all (8e-3, the usual one of a study) costs each. It came out so (results/learning_rates): the usual rate costs
at most .037 bits per byte, and by either rule best rates move by one to one and a half steps of the rates, in either
direction. The rule matters more than the rate: by width-depth the large BLT ends .083 lower and the large token model
.143, the flat one .097 higher. One seed: at these budgets seeds differ by .01 (tokens) to .1 bits per byte (bytes;
docs/schedules.md), so a cost of less than that is none, nor is a shift of less than a step of the rates. The budgets
differ, and with them the steps, so part of a shift may be theirs. On a CPU widths differ by a factor of 2 to 3 only.

It leaves in runs/learning_rates (or --out):

    summary.txt                best rate of each size by each rule, shifts, and costs
    rates.csv, rates.parquet   a row for each run: series, preset, rule, rate, bits per byte
    learning_rates.png, .svg   bits per byte against rate, a panel for each series
    runs/, corpus-*/, entropy-*/, compiled/   as experiments/isoflop.py leaves them

The flags are those of a study; --sizes are the small and the large one, --budgets theirs:

    python experiments/learning_rates.py --transfer width --families byte megabyte spacebyte --sizes cpu-0 cpu-3
    python experiments/learning_rates.py --peak-rates 2e-3 4e-3 8e-3 1.6e-2 3.2e-2 --seeds 0 1 2 --out runs/seeds

On an accelerator it is the same command with larger sizes, which have to be a family's own presets, for instance

    python experiments/learning_rates.py --families blt --sizes 400m 1b --budgets 3e18 1e19 --corpus 'text/*.parquet' \\
        --entropy-model entropy-100m --entropy-bytes 1e9 --row-bytes 8192 --batch 64 --dtype bfloat16 --remat full \\
        --heldout-bytes 10000000 --stride-bytes 4096 --out runs/rates-400m
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bltjax.runtime import keep_compiled
from bltjax.scaling.experiment import command_line
from bltjax.scaling.inputs import Inputs
from bltjax.scaling.plan import plan_table
from bltjax.scaling.plots import STYLE, flops_text, save, series_name
from bltjax.scaling.rates import best_rate, shift_text
from bltjax.scaling.store import replace_file, write_table
from bltjax.scaling.study import USUAL_RATE, Study
from bltjax.scaling.sweep import claim, execute, plan_study

Row = dict[str, Any]

DEFAULT = Study(
    out=Path("runs/learning_rates"), sizes=("cpu-0", "cpu-2"), budgets=(8e10, 2e11), transfer="width-depth",
    peak_rates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2), keep_weights=False,
)  # fmt: skip
LINES = {"small": ("#555555", "o", "-"), "none": ("#D55E00", "s", "--"), "transferred": ("#0072B2", "^", "-")}

NOTE = """Best: the vertex of a parabola in ln rate through the three rates around the least loss, or a bound at an end.
Shift: of the large size's best rate from the small one's; they agree within half a power of two.
At: what is lost to the best rate tried, by the usual rate and by the best one tried of the small size."""


def parts(study: Study) -> dict[tuple[str, str], Study]:
    """The studies that this one comes to, by size ("small" or "large") and rule.

    Raises:
      ValueError: for a study without a small and a large size with a budget each, a transfer, or the usual rate.
    """
    if len(study.sizes) != 2 or len(study.budgets) != 2 or study.preset:
        raise ValueError(f"sizes={study.sizes}, budgets={study.budgets}: give a small and a large size, and theirs.")
    if study.transfer == "none" or study.transfer_base is not None:
        raise ValueError(f"transfer={study.transfer!r}: choose width or width-depth; the small size is the base.")
    if len(study.peak_rates) < 3 or USUAL_RATE not in study.peak_rates:
        raise ValueError(f"peak_rates={study.peak_rates}: give at least three, {USUAL_RATE:g} among them.")
    (small, large), (less, more) = study.sizes, study.budgets
    alone = dataclasses.replace(study, sizes=(small,), budgets=(less,), transfer="none")
    free = dataclasses.replace(alone, sizes=(large,), budgets=(more,))
    held = dataclasses.replace(free, transfer=study.transfer, transfer_base=small)
    return {("small", "base"): alone, ("large", "none"): free, ("large", study.transfer): held}


def curves(rows: Sequence[Row], series: str) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    """Rates, ascending, and bits per byte (means over seeds) of each size and rule of a series."""
    out = {}
    for key in dict.fromkeys((row["size"], row["rule"]) for row in rows if row["series"] == series):
        own = [row for row in rows if (row["series"], row["size"], row["rule"]) == (series, *key)]
        rates = sorted({row["rate"] for row in own})
        out[key] = rates, [float(np.mean([row["bits_per_byte"] for row in own if row["rate"] == r])) for r in rates]
    return out


def summary(rows: Sequence[Row]) -> str:
    """Best rates, shifts and costs, for people."""
    form = "{:<14} {:<6} {:<12} {:>16} {:>10} {:>24} {:>9} {:>16}"
    head = ("series", "size", "rule", "best rate", "bits/byte", "shift (log2)", "at 8e-3", "at small's best")
    lines = [form.format(*head)]
    for series in dict.fromkeys(row["series"] for row in rows):
        found = curves(rows, series)
        small = best_rate(*found["small", "base"])
        carried = min(zip(*found["small", "base"], strict=True), key=lambda pair: pair[1])[0]
        for (size, rule), (rates, losses) in found.items():
            best = best_rate(rates, losses)
            usual, own = (losses[rates.index(rate)] - min(losses) for rate in (USUAL_RATE, carried))
            shift = "" if size == "small" else shift_text(small, best)
            cells = (series, size, rule, str(best), f"{best.loss:.4f}", shift, f"{usual:+.4f}", f"{own:+.4f}")
            lines.append(form.format(*cells))
    return "\n".join([*lines, "", NOTE])


def figure(rows: Sequence[Row], caption: str) -> Figure:
    """Bits per byte against the rate, a panel for each series, a curve for each size and rule."""
    names = list(dict.fromkeys(row["series"] for row in rows))
    with matplotlib.rc_context(STYLE):
        out = Figure(figsize=(0.6 + 3.6 * len(names), 4.4), layout="constrained")
        FigureCanvasAgg(out)
        panels = out.subplots(1, len(names), squeeze=False)[0]
        for panel, series in zip(panels, names, strict=True):
            for (size, rule), (rates, losses) in curves(rows, series).items():
                colour, marker, line = LINES["small" if size == "small" else rule if rule == "none" else "transferred"]
                preset = next(row["preset"] for row in rows if (row["series"], row["size"]) == (series, size))
                label = preset if size == "small" else f"{preset}, {'64 / width' if rule == 'none' else rule}"
                panel.plot(rates, losses, marker=marker, color=colour, linestyle=line, label=label)
            panel.set_xscale("log", base=2)
            panel.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45, fontsize=8)
            panel.set_xlabel("learning rate of a model 64 wide")
            panel.set_title(series_name(series), loc="left", fontsize=10)
            panel.legend(fontsize=8)
        panels[0].set_ylabel("bits per byte, held-out documents")
        out.supxlabel(caption, fontsize=7.5, color="#444444")
        return out


def main(study: Study) -> None:
    """Trains what is not done yet, then writes the table, the figure and the summary."""
    each = parts(study)
    claim(study)
    keep_compiled(study.out / "compiled")
    inputs, rows = Inputs(study, say), []
    plans = [(key, part, plan) for key, part in each.items() for plan in plan_study(part, inputs)]
    say(plan_table([plan for _, _, plan in plans]))
    for number, ((size, rule), part, plan) in enumerate(plans, start=1):
        label = f"{number}/{len(plans)} {plan.name} {rule} {plan.rate:g}"
        result = execute(part, plan, inputs, label)["result"]
        say(f"{label}: {result['heldout_bits_per_byte']:.4f} bits per byte")
        rows.append({
            "series": plan.series, "preset": plan.name, "size": size, "rule": rule, "rate": plan.rate,
            "peak_rate": plan.train.optim.peak_rate, "seed": plan.seed, "budget": plan.budget,
            "bits_per_byte": result["heldout_bits_per_byte"],
        })  # fmt: skip
    write_table(rows, study.out, "rates")
    budgets, seeds = " and ".join(map(flops_text, study.budgets)), ", ".join(map(str, study.seeds))
    text = f"corpus {inputs.corpus.fingerprint}; small and large at {budgets} FLOPs ({study.accounting}); seeds {seeds}"
    save(figure(rows, text), study.out, "learning_rates")
    words = summary(rows)
    replace_file(study.out / "summary.txt", lambda path: path.write_text(f"{words}\n"))
    say(f"\n{words}\n\nTable and figure: {study.out}")


def say(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    command_line(DEFAULT, __doc__, main)
