"""At equal training FLOPs, is MEGABYTE better than a flat byte Transformer, and what are BLT and SpaceByte beside them?

    pip download --no-deps --no-binary Django 'Django==5.2.*' && tar xf django-5.2.*.tar.gz
    python experiments/megabyte.py --corpus 'django-5.2.*/docs/**/*.txt'

took 25 minutes on one core beside other programs, two would take about 13 (24 runs: four families at two sizes by three
seeds, 3e11 FLOPs each); without --corpus it reads the standard library of the running Python. Every family stands with
its better size. Rows have 512 bytes for all; MEGABYTE's paper gives its flat baseline 1,024 bytes and MEGABYTE 8,192 at
the same cost.

Expected before it was run: BLT ahead of flat bytes by 0.3 bits per byte or more: it alone has hash embeddings, which
cost memory and no FLOPs, and its entropy model is not in the paper's accounting (column "full" has it); SpaceByte
between the two; MEGABYTE and flat bytes within 0.15 of each other. It came out larger (results/megabyte): BLT ahead by
1.23, SpaceByte by .47, MEGABYTE by .36; but flat models end between 2.94 and 3.70 by seed, so that of these only BLT's
lead is shown. Most of it is its hash embeddings (experiments/ngram_hashes.py). In MEGABYTE's paper it is ahead of flat
bytes on five texts by .04 to .17; that was with billions of bytes, long documents and a context eight times the
baseline's. Two sizes are no grid: a better size may lie outside. All families have one rule of learning rates; flat
bytes lose .04 to their best by it (experiments/learning_rates.py, other text).

It leaves in runs/megabyte (or --out) what experiments/cross_attention.py does; table.csv has both sizes. On 8 H100,
40 % of their peak taken for granted, one size of each family (12 runs) at 1e19 FLOPs takes 11 hours:

    python experiments/megabyte.py --scale accelerator --corpus 'text/*.parquet'
"""

from pathlib import Path

from bltjax.scaling.ablation import of_best_size
from bltjax.scaling.experiment import Settings, Studies, command_line, conclude, run_all, show_plan

BASELINE = "byte"
FAMILIES = ("byte", "megabyte", "spacebyte", "blt")


def studies(settings: Settings) -> Studies:
    sizes = ("cpu-0", "cpu-1")
    cpu = {"families": FAMILIES, "sizes": sizes, "budgets": (3e11,), "row_bytes": 512, "batch": 1}
    return {"": settings.study(cpu, {"preset": ("byte-450m", "megabyte-1.3b", "spacebyte-793m", "blt-400m")})}


def main(settings: Settings) -> None:
    asked = studies(settings)
    if settings.plan:
        return show_plan(asked)
    rows = of_best_size(run_all(asked, settings))
    # Other seeds move a flat model eighty times as far as a BLT.
    conclude(asked, settings, rows, BASELINE, "Families at equal training compute, each at its better size", kind=str)


if __name__ == "__main__":
    command_line(Settings(Path("runs/megabyte")), __doc__, main)
