"""At a fixed budget, which model size and which patch size go together, and where does the best patch size move?

    pip download --no-deps --no-binary Django 'Django==5.2.*' && tar xf django-5.2.*.tar.gz
    python experiments/patch_size.py --corpus 'django-5.2.*/docs/**/*.txt'

took about 33 minutes of one core beside other programs, two take half of that (36 runs: three sizes of BLT by patches
of 3, 4.5, 6 and 8 bytes by three budgets, one seed); without --corpus it reads the standard library of the running
Python. Every cell has its own number of bytes, so that its FLOPs are the budget: the grid of Compute Optimal
Tokenization (arXiv 2605.01188; 5e18 to 2e21 FLOPs there).

Expected before it was run: the best size grows with the budget, whatever the patch size, as there; and between patch
sizes at the best size less than 0.05 bits per byte and no clear order, since in the two smaller models the local ones,
which read every byte, take four fifths of the FLOPs. So it is (results/patch_size): the smallest of three sizes is best
at 8e10 FLOPs and the middle one at 2e11 and 5e11, with patches of any size, which differ by .020 to .036 there. The
best patch is one of 7.6, 5.8 and 4.4 bytes at the three budgets, smaller with more compute as in the paper (3.7 bytes
at 1e20 FLOPs), but one seed orders nothing closer than 0.03. Exponents are out of reach; this grid gives bounds at
best.

It leaves in runs/patch_size (or --out) what experiments/isoflop.py does, and

    patch_size.png, .svg                   bits per byte against measured patch size, a line a model, a panel a budget
    best.csv, best.parquet, best.txt       the best size of each patch size, the best of both, and whether at an edge

`python scripts/report.py runs/patch_size` draws the map of both at the largest budget and fits laws. On 8 H100, 40 % of
their peak taken for granted, 27 runs of blt-400m, -1b and -2b at 3e18, 1e19 and 3e19 FLOPs take 34 hours:

    python experiments/patch_size.py --scale accelerator --corpus 'text/*.parquet'
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bltjax.scaling.ablation import Row
from bltjax.scaling.experiment import Settings, Studies, command_line, run_all, say, show_plan
from bltjax.scaling.inputs import Inputs
from bltjax.scaling.plots import COLOURS, MARKERS, STYLE, count_text, flops_text, mean_over_seeds, new_figure, save
from bltjax.scaling.store import replace_file, write_table
from bltjax.scaling.sweep import caption, summary


def studies(settings: Settings) -> Studies:
    cpu = {"preset": ("blt-cpu-0", "blt-cpu-1", "blt-cpu-2"), "patch_sizes": (3.0, 4.5, 6.0, 8.0)}
    large = {
        "preset": ("blt-400m", "blt-1b", "blt-2b"),
        "patch_sizes": (3.0, 4.5, 6.0),
        "budgets": (3e18, 1e19, 3e19),
    }
    return {"": settings.study({**cpu, "budgets": (8e10, 2e11, 5e11)}, large)}


def cells(rows: Sequence[Row]) -> list[Row]:
    """One row for each model, patch size and budget, its loss the mean over seeds."""
    own = {
        series: [row for row in rows if row["series"] == series] for series in dict.fromkeys(r["series"] for r in rows)
    }
    return [dict(row) for group in own.values() for row in mean_over_seeds(group)]


def best(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The best size of each patch size at each budget; whether it is the smallest or largest tried."""
    found, grid = [], cells(rows)
    for budget in sorted({row["budget"] for row in grid}):
        own = [row for row in grid if row["budget"] == budget]
        sizes = sorted({row["parameters_non_embedding"] for row in own})
        least = min(row["heldout_bits_per_byte"] for row in own)
        for series in dict.fromkeys(row["series"] for row in own):
            row = min((r for r in own if r["series"] == series), key=lambda r: r["heldout_bits_per_byte"])
            size, bits = row["parameters_non_embedding"], row["heldout_bits_per_byte"]
            edge = "smallest" if size == sizes[0] else "largest" if size == sizes[-1] else ""
            found.append(
                {
                    "budget": budget, "series": series, "bytes_per_patch": row["bytes_per_unit"],
                    "preset": row["preset"], "parameters": size, "edge": edge,
                    "bytes_per_parameter": row["bytes_seen"] / size, "bits": bits, "is_best": bits == least,
                }
            )  # fmt: skip
    return found


def best_table(found: Sequence[dict[str, Any]]) -> str:
    """The same, for people."""
    form = "{:>8} {:>8} {:>7} {:>7} {:>9} {:>9}  {}"
    lines = [form.format("budget", "B/patch", "best N", "B/N", "bits/byte", "", "edge")]
    for row in found:
        lines.append(
            form.format(
                flops_text(row["budget"]), f"{row['bytes_per_patch']:.2f}", count_text(row["parameters"]),
                f"{row['bytes_per_parameter']:.1f}", f"{row['bits']:.4f}", "* best" if row["is_best"] else "",
                f"the {row['edge']} size tried: a bound" if row["edge"] else "",
            )
        )  # fmt: skip
    return "\n".join(lines)


def figure(rows: Sequence[Row], about: str) -> Figure:
    """Bits per byte against measured bytes per patch: a panel for each budget, a line for each model."""
    grid = cells(rows)
    budgets = sorted({row["budget"] for row in grid})
    with matplotlib.rc_context(STYLE):
        drawn, panels = new_figure(about, len(budgets))
        for axes, budget in zip(panels, budgets, strict=True):
            for place, preset in enumerate(dict.fromkeys(row["preset"] for row in grid)):
                own = [row for row in grid if (row["budget"], row["preset"]) == (budget, preset)]
                own.sort(key=lambda row: row["bytes_per_unit"])
                x, y = [row["bytes_per_unit"] for row in own], [row["heldout_bits_per_byte"] for row in own]
                axes.plot(
                    x, y, marker=MARKERS[place], color=COLOURS[place],
                    label=f"N = {count_text(own[0]['parameters_non_embedding'])}",
                )  # fmt: skip
            axes.set_title(f"{flops_text(budget)} FLOPs", fontsize=9)
            axes.set_xlabel("bytes per patch")
            axes.sharey(panels[0])
            axes.tick_params(labelleft=axes is panels[0])
        panels[0].set_ylabel("bits per byte, held-out documents")
        panels[-1].legend(loc="upper right", fontsize=8)  # the largest budget has the lowest lines
        drawn.suptitle("Patch size and model size at equal training compute", x=0.02, ha="left", fontsize=11)
        return drawn


def main(settings: Settings) -> None:
    asked = studies(settings)
    if settings.plan:
        return show_plan(asked)
    rows = run_all(asked, settings)
    (study,) = asked.values()
    about = caption(rows, study, Inputs(study, lambda text: None))
    save(figure(rows, about), settings.out, "patch_size")
    found = best(rows)
    write_table(found, settings.out, "best")
    replace_file(settings.out / "best.txt", lambda path: path.write_text(f"{best_table(found)}\n"))
    say(f"\n{summary(rows)}\n\n{best_table(found)}\n\nTables and figures: {settings.out}")


if __name__ == "__main__":
    command_line(Settings(Path("runs/patch_size"), seeds=(0,)), __doc__, main)
