"""At equal training FLOPs, which rule cuts text into the best patches?

    pip download --no-deps --no-binary Django 'Django==5.2.*' && tar xf django-5.2.*.tar.gz
    python experiments/patching_rules.py --corpus 'django-5.2.*/docs/**/*.txt'

takes about 12 minutes on 2 cores, and took 24 beside other programs (27 runs: nine arms by three seeds, 2e11 FLOPs);
without --corpus it reads the standard library of the running Python. One BLT reads patches by entropy (a global
threshold, or a rise of the entropy: monotonic), at 4.5 and 6 bytes in the mean; after spaces; of 4 and 6 bytes each; of
BPE tokens; and of one byte, which is a latent model that saves nothing. The BLT paper compares them in its Table 6 and
in the scaling of its section 5.

Expected before it was run: entropy and spaces ahead of patches of equal length, as in the paper; patches of one byte
behind, since at equal FLOPs they see half the bytes, and BPE patches too, since they pay for the delimiter after each
token, in FLOPs and in bits. Only those of one byte are (by .157). BPE patches are ahead of all others, by .058 of
entropy patches of 4.5 bytes, then those after spaces, by .038; between entropy patches and patches of equal length no
difference is shown (results/patching_rules). The entropy model is as small as the latent one (28k parameters) and
trained on 1 MB: what it knows is less than where words end. In the paper's accounting it costs nothing; column "full"
has it.

It leaves in runs/patching_rules (or --out) what experiments/cross_attention.py does. On 8 H100, 40 % of their peak
taken for granted, 27 runs of blt-400m at 1e19 FLOPs (2 to 11 GB of text each) take 24 hours:

    python experiments/patching_rules.py --scale accelerator --corpus 'text/*.parquet'
"""

from pathlib import Path

from bltjax.scaling.experiment import Settings, Studies, ablate, command_line

BASELINE = "blt-4.5"
RULES = ("blt", "blt-monotonic", "blt-space", "blt-strided", "blt-bpe")


def studies(settings: Settings) -> Studies:
    shared = {"patch_sizes": (4.5, 6.0), "patch_lengths": (1, 4, 6)}
    cpu = {"preset": tuple(f"{rule}-cpu-1" for rule in RULES), "budgets": (2e11,)}
    large = {"preset": tuple(f"{rule}-400m" for rule in RULES), "delimiter_tokens": 32_000}
    return {"": settings.study(shared | cpu, shared | large)}


def main(settings: Settings) -> None:
    ablate(settings, studies(settings), BASELINE, "One BLT, its text cut by different rules")


if __name__ == "__main__":
    command_line(Settings(Path("runs/patching_rules")), __doc__, main)
