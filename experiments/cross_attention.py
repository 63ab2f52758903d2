"""Which layers need cross-attention between bytes and patches, and must patches be pooled first? (BLT paper, Table 7)

    pip download --no-deps --no-binary Django 'Django==5.2.*' && tar xf django-5.2.*.tar.gz
    python experiments/cross_attention.py --corpus 'django-5.2.*/docs/**/*.txt'

takes about 10 minutes on 2 quiet cores, by the speeds in results/isoflop/table.csv; beside other programs it took 34
(18 runs: the six rows of the table by three seeds, 2e11 FLOPs each, about 0.6 MB). Without --corpus it reads the
standard library of the running Python. Cross-attention is in all layers of the decoder or
in the first, in all of the encoder or in the last; patches begin to ask with what their bytes pool to, or with learned
queries. Without any, patches are what their bytes pool to, and a projection of its patch is added to each byte. Every
model here has two layers in both local models, so that "all" is not "last". The table compares after 100 GB; here it is
at equal training FLOPs, of which arms without cross-attention make a tenth more bytes.

Expected before it was run: a decoder without cross-attention worse by 0.05 to 0.2 bits per byte, whatever the encoder
has. It is not so here (results/cross_attention): pooling and a projection, without any cross-attention, are as good as
the baseline, between all layers and one no difference is shown either, and what costs 0.02 and 0.04 is to begin with
learned queries in the place of pooled bytes. The paper has none of all behind by .020, and learned queries by .040 and
.045. Patches of 4.4 bytes in models of 70k parameters leave little for attention to choose.

It leaves in runs/cross_attention (or --out) what experiments/isoflop.py does, and

    comparison.csv, .parquet, .txt         every arm against the baseline, with intervals over seeds
    comparison.png, .svg                   the same as a figure

On 8 H100, 40 % of their peak taken for granted, 18 runs of blt-1b with 3 + 7 local layers at 1e19 FLOPs (about 3 GB of
text each) take 16 hours:

    python experiments/cross_attention.py --scale accelerator --corpus 'text/*.parquet'

The paper's 100 GB are --budgets 3e20.
"""

from pathlib import Path

from bltjax.scaling.experiment import Settings, Studies, ablate, command_line
from bltjax.scaling.variants import Variant

BASELINE = "decoder-all_encoder-last"
ARMS = {  # layers of the decoder and of the encoder that have it, and what patches begin to ask with
    BASELINE: ("all", "last", "max"),
    "decoder-all_encoder-all": ("all", "all", "max"),
    "decoder-first_encoder-last": ("first", "last", "max"),
    "decoder-none_encoder-none": ("none", "none", "max"),
    "decoder-none_encoder-last_unpooled": ("none", "last", "none"),
    "decoder-none_encoder-all_unpooled": ("none", "all", "none"),
}


def variants(preset: str, encoder_layers: int, decoder_layers: int) -> tuple[Variant, ...]:
    """The arms, all with as many layers."""
    names = ("decoder.layers", "encoder.layers", *(f"cross_attention.{n}" for n in ("decoder", "encoder", "pooling")))
    return tuple(
        Variant.having(arm, preset, dict(zip(names, (decoder_layers, encoder_layers, *values), strict=True)))
        for arm, values in ARMS.items()
    )


def studies(settings: Settings) -> Studies:
    cpu = {"variants": variants("blt-cpu-1", 2, 2), "budgets": (2e11,)}
    return {"": settings.study(cpu, {"variants": variants("blt-1b", 3, 7)})}


def main(settings: Settings) -> None:
    ablate(settings, studies(settings), BASELINE, "Cross-attention, by the layers that have it")


if __name__ == "__main__":
    command_line(Settings(Path("runs/cross_attention")), __doc__, main)
