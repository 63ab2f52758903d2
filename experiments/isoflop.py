"""At equal training FLOPs, does a byte latent model, a flat byte model or a token model compress text best?

    python experiments/isoflop.py

takes 9 to 11 minutes on 2 cores. It trains three families (BLT with entropy patches of 4.5 bytes, flat bytes, BPE
tokens) at three sizes and three budgets each on the standard library of the running Python, and scores every model in
bits per byte of the same held-out documents. It can be stopped at any moment, and goes on with the same command.

Expected: BLT and tokens within 0.07 bits per byte of each other at every budget, about 2.55 at the smallest and 2.3 at
the largest; flat bytes 0.3 to 0.7 behind. That is in the paper's accounting, which leaves the entropy model out. With
everything counted (column "full") BLT pays 1.5 to 2.5 times its budget, since its models here are smaller than what
patches for them, and tokens are ahead. At the largest budget the best sizes lie inside the grid, at the smallest at its
lower edge, where a bound is printed. Seeds were not compared. What a CPU cannot show is in the README.

It leaves in runs/isoflop (or --out):

    table.csv, table.parquet               a row for each run
    bits_per_byte.png, .svg                bits per byte against training FLOPs
    isoflop_<family>.png, .svg             bits per byte against model size, a parabola for each budget
    runs/<run>/manifest.json               all that the run's numbers depend on
    runs/<run>/metrics.jsonl               its training
    trunks/                                with --schedule wsd: what the runs of all budgets share
    corpus-*/, entropy-*/, compiled/       what runs share

Other text, models and budgets:

    python experiments/isoflop.py --corpus 'books/**/*.txt' more.jsonl --budgets 2e11 1e12 --out runs/books
    python experiments/isoflop.py --patch-sizes 3 4.5 6 --families blt --seeds 0 1 2
    python experiments/isoflop.py --schedule wsd --peak-rates 4e-3 --out runs/wsd  # docs/schedules.md
    python experiments/isoflop.py --families token --vocabularies 512 2048 8192 --out runs/vocabularies
    python experiments/isoflop.py --families megabyte spacebyte blt-space blt-strided --out runs/rules

On an accelerator it is the same command with the names of larger presets, for instance

    python experiments/isoflop.py --preset blt-400m token-470m byte-450m --entropy-model entropy-100m \\
        --corpus 'text/*.parquet' --budgets 1e18 3e18 1e19 --row-bytes 8192 --batch 64 --dtype bfloat16 \\
        --entropy-bytes 1e9 --heldout-bytes 10000000 --stride-bytes 4096 --peak-rates 6e-3 --out runs/a
"""

from bltjax.runtime import keep_compiled
from bltjax.scaling.experiment import command_line
from bltjax.scaling.study import Study
from bltjax.scaling.sweep import claim, run_study, summary


def say(message: str) -> None:
    print(message, flush=True)


def main(study: Study) -> None:
    """Does the study, or what is left of it, and prints its table."""
    claim(study)
    keep_compiled(study.out / "compiled")
    rows = run_study(study, say)
    say(f"\n{summary(rows)}\n\nTable and figures: {study.out}")


if __name__ == "__main__":
    command_line(Study(), __doc__, main)
