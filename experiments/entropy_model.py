"""How large must the entropy model be, and how far must it see? (BLT paper, Fig. 8)

    pip download --no-deps --no-binary Django 'Django==5.2.*' && tar xf django-5.2.*.tar.gz
    python experiments/entropy_model.py --corpus 'django-5.2.*/docs/**/*.txt'

took 22 minutes on one core beside other programs, two would take about 12 (six entropy models, each trained on 1 MB and
run over 3 MB of text, and 18 runs of blt-cpu-1 at 2e11 FLOPs on their patches, three seeds each); without --corpus it
reads the standard library of the running Python. All six are calibrated to patches of 4.5 bytes, so the BLT costs the
same; what the entropy model costs stands in column "full". The paper has 1M to 100M parameters and contexts of 64 to
512 bytes: both help, little beyond 50M and 512.

Expected before it was run: the entropy models themselves differ, but between the BLTs on their patches no difference is
shown, save perhaps for the window of 8 bytes: in experiments/patching_rules.py whole rules differ by little more than
seeds do. So it is (results/entropy_model): all six end within .008, the window of 8 bytes among them.

It leaves in runs/entropy_model (or --out) a study in a folder for each entropy model, its column "study" in table.csv,
and the files of experiments/cross_attention.py. On 8 H100, 40 % of their peak taken for granted, 21 runs of blt-400m at
1e19 FLOPs take 19 hours; scoring 30 GB of text with each of the larger entropy models takes half an hour more:

    python experiments/entropy_model.py --scale accelerator --corpus 'text/*.parquet'
"""

from pathlib import Path
from typing import Any

from bltjax.config import swiglu_width
from bltjax.scaling.experiment import Settings, Studies, ablate, command_line, in_folders
from bltjax.scaling.variants import Variant

MODELS = {  # width, layers, heads, window in bytes; the baseline first
    "cpu": {
        "48x1_window-64": (48, 1, 3, 64),
        "16x1_window-64": (16, 1, 1, 64),
        "96x1_window-64": (96, 1, 6, 64),
        "48x1_window-8": (48, 1, 3, 8),
        "48x1_window-16": (48, 1, 3, 16),
        "48x1_window-256": (48, 1, 3, 256),
    },
    "accelerator": {
        "768x14_window-512": (768, 14, 12, 512),
        "128x4_window-512": (128, 4, 2, 512),
        "256x10_window-512": (256, 10, 4, 512),
        "512x14_window-512": (512, 14, 8, 512),
        "768x14_window-64": (768, 14, 12, 64),
        "768x14_window-128": (768, 14, 12, 128),
        "768x14_window-256": (768, 14, 12, 256),
    },
}
PRESETS = {"cpu": "entropy-cpu", "accelerator": "entropy-100m"}


def entropy_model(name: str, scale: str) -> Variant:
    """One of the entropy models."""
    width, layers, heads, window = MODELS[scale][name]
    values: dict[str, Any] = {"width": width, "layers": layers, "heads": heads, "window": window}
    if scale == "cpu":
        values["hidden"] = swiglu_width(width, multiple_of=8)
    return Variant.having(name, PRESETS[scale], {f"tower.{key}": value for key, value in values.items()})


def studies(settings: Settings) -> Studies:
    found = {}
    for name in MODELS[settings.scale]:
        variant = entropy_model(name, settings.scale)
        shared = {"variants": (variant,), "entropy_model": variant.full_name}
        cpu = {"preset": ("blt-cpu-1",), "budgets": (2e11,), "corpus_bytes": 3_000_000}
        found[name] = settings.study(shared | cpu, shared | {"preset": ("blt-400m",)})
    return in_folders(found)


def main(settings: Settings) -> None:
    title = "One BLT on the patches of different entropy models"
    ablate(settings, studies(settings), next(iter(MODELS[settings.scale])), title, lambda row: row["study"])


if __name__ == "__main__":
    command_line(Settings(Path("runs/entropy_model")), __doc__, main)
