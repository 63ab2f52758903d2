"""What are hash embeddings of byte n-grams worth, by the lengths of the n-grams and the size of the tables? (Table 8)

    pip download --no-deps --no-binary Django 'Django==5.2.*' && tar xf django-5.2.*.tar.gz
    python experiments/ngram_hashes.py --corpus 'django-5.2.*/docs/**/*.txt'

takes about 13 minutes on 2 cores; 20 of its runs took 16 on one core beside other programs (30 runs: ten arms by three
seeds, 2e11 FLOPs each, about 0.9 MB); without --corpus it reads the standard library of the running Python. The arms
are the rows of the BLT paper's Table 8: no n-grams; lengths 3 to 5, 6 to 8 and 3 to 8, each in three sizes of table,
here a hundredth of the paper's 100k, 200k and 400k rows. Look-ups count no FLOPs, so all arms see the same bytes, as in
the paper.

Expected before it was run: every arm better than none by 0.1 bits per byte or more; short n-grams worth more than long
ones, which are seen too rarely; and larger tables within what seeds do. The second is so: lengths 3 to 5 are worth .67
to .84, lengths 6 to 8 .10 to .29 (the least of them no difference shown), all six of them no more than the short ones
alone, but for the largest tables. The last is not: with so few rows a doubling is worth .07 to .11 everywhere
(results/ngram_hashes), some thirty times the paper's .002 to .004: there tables are a hundred times as large.

It leaves in runs/ngram_hashes (or --out) what experiments/cross_attention.py does. On 8 H100, 40 % of their peak taken
for granted, 30 runs of blt-1b at 1e19 FLOPs (about 3.6 GB of text each) take 26 hours:

    python experiments/ngram_hashes.py --scale accelerator --corpus 'text/*.parquet'

The paper's 100 GB are --budgets 3e20.
"""

from pathlib import Path

from bltjax.scaling.experiment import Settings, Studies, ablate, command_line
from bltjax.scaling.variants import Variant

BASELINE = "none"
SIZES = {"3-5": (3, 4, 5), "6-8": (6, 7, 8), "3-8": (3, 4, 5, 6, 7, 8)}
BUCKETS = {"cpu": (1_000, 2_000, 4_000), "accelerator": (100_000, 200_000, 400_000)}


def variants(preset: str, buckets: tuple[int, ...]) -> tuple[Variant, ...]:
    """No n-grams, and every choice of lengths with every size of table."""
    return (
        Variant(BASELINE, preset, {"hash.sizes": ()}),
        *(
            Variant.having(f"{name}_x{rows}", preset, {"hash.sizes": sizes, "hash.buckets": rows})
            for name, sizes in SIZES.items()
            for rows in buckets
        ),
    )


def studies(settings: Settings) -> Studies:
    cpu = {"variants": variants("blt-cpu-1", BUCKETS["cpu"]), "budgets": (2e11,)}
    return {"": settings.study(cpu, {"variants": variants("blt-1b", BUCKETS["accelerator"])})}


def main(settings: Settings) -> None:
    title = "Hash embeddings, by n-gram lengths and rows of each table"
    # Without short n-grams other seeds move a model ten times as far.
    ablate(settings, studies(settings), BASELINE, title, kind=lambda arm: arm.partition("_")[0])


if __name__ == "__main__":
    command_line(Settings(Path("runs/ngram_hashes")), __doc__, main)
