"""Of a fixed number of local layers, how many belong in the encoder, with hash embeddings and without? (Table 9)

    pip download --no-deps --no-binary Django 'Django==5.2.*' && tar xf django-5.2.*.tar.gz
    python experiments/local_layers.py --corpus 'django-5.2.*/docs/**/*.txt'

took 14 minutes on one core beside other programs, two would take about 8 (18 runs: six arms by three seeds, 2e11 FLOPs
each, about 0.5 MB); without --corpus it reads the standard library of the running Python. The BLT paper divides ten
layers as 1 + 9, 3 + 7 and 5 + 5 between encoder and decoder; here it is four, as 1 + 3, 2 + 2 and 3 + 1. The paper
leaves out 3 + 7 without n-grams; here all six are run. Cross-attention is in the last layer of the encoder and in every
one of the decoder, so a layer of the decoder costs more: arms with a deep encoder see a few per cent more bytes.

Expected before it was run: without hash embeddings every division worse by 0.1 bits per byte or more, and between
divisions no difference shown, since the paper's (.002 to .022 with hash embeddings, for the light encoder; .007
without, for the heavy one) are smaller than what seeds do. So it is (results/local_layers), but hash embeddings are
worth .74 to .87, not .1. Without them the light encoder has the lowest mean, but seeds move those arms ten times as
far, and no order of theirs is shown; the two kinds of arms have noise of their own.

It leaves in runs/local_layers (or --out) what experiments/cross_attention.py does. On 8 H100, 40 % of their peak taken
for granted, 18 runs of blt-1b at 1e19 FLOPs (about 3.6 GB of text each) take 16 hours:

    python experiments/local_layers.py --scale accelerator --corpus 'text/*.parquet'

The paper's 100 GB are --budgets 3e20.
"""

from pathlib import Path

from bltjax.scaling.experiment import Settings, Studies, ablate, command_line
from bltjax.scaling.variants import Variant

LAYERS = {"cpu": ((1, 3), (2, 2), (3, 1)), "accelerator": ((1, 9), (3, 7), (5, 5))}  # of the encoder, of the decoder
HASHES = {"hash": {}, "plain": {"hash.sizes": ()}}


def arm(hashes: str, layers: tuple[int, int]) -> str:
    return f"{hashes}_{layers[0]}-{layers[1]}"


def variants(preset: str, divisions: tuple[tuple[int, int], ...]) -> tuple[Variant, ...]:
    """Every division with hash embeddings and without."""
    return tuple(
        Variant.having(
            arm(name, layers), preset, {"encoder.layers": layers[0], "decoder.layers": layers[1], **hashes}
        )
        for name, hashes in HASHES.items()
        for layers in divisions
    )  # fmt: skip


def studies(settings: Settings) -> Studies:
    cpu = {"variants": variants("blt-cpu-1", LAYERS["cpu"]), "budgets": (2e11,)}
    return {"": settings.study(cpu, {"variants": variants("blt-1b", LAYERS["accelerator"])})}


def main(settings: Settings) -> None:
    baseline = arm("hash", LAYERS[settings.scale][0])
    title = "Local layers: encoder-decoder, with and without hash embeddings"
    # Without hash embeddings other seeds move a model ten times as far.
    ablate(settings, studies(settings), baseline, title, kind=lambda name: name.partition("_")[0])


if __name__ == "__main__":
    command_line(Settings(Path("runs/local_layers")), __doc__, main)
