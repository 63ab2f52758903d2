"""At equal inference FLOPs per byte, from which training budget on does a BLT with longer patches beat a token model?

    python experiments/fixed_inference.py

(BLT paper, Figure 1 and Table 2.) A class is what a byte costs the token model in a forward pass, its tokens as
measured. At each patch size a BLT with the same local models gets the global model that costs the same to within 2 %
(docs/comparing.md), and a flat byte model is tried as well. All are trained at four budgets each, from one trunk.

Takes 13 minutes on 2 quiet cores, by the speeds in results/isoflop/table.csv; with other programs on them it took some
times as long. One seed gives no interval: that takes six at least, `--seeds 0 1 2 3 4 5`, and six times as long.

Expected (results/fixed_inference, one seed): none in range. Tokens stay ahead, by .12 to .15 bits per byte at 2e11
FLOPs and .09 to .11 at 1.2e12, where they have seen 96 bytes a parameter. Patches of 6 and 8 bytes with their larger
global models are .02 to .04 ahead of 4.5; flat bytes are .2 to .5 behind tokens.

It leaves in runs/fixed_inference (or --out) what every study does, and

    members.csv                       the class: each model, what it costs, and how far that is from the class
    crossovers.csv                    where each BLT crosses the token model, or that it does not where measured
    fixed_inference.png, .svg         bits per byte against training FLOPs and bytes, a line at each crossover

On a node of 8 H100 or its like, the paper's smaller class (3.1e8 FLOPs per byte):

    python experiments/fixed_inference.py --scale accelerator --corpus 'text/*.parquet' --out runs/fixed_inference_3e8

That is 1.2e21 training FLOPs a seed: 103 hours at an assumed 40 % of peak, which was not run.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib

from bltjax.config import PatcherConfig
from bltjax.presets import preset
from bltjax.scaling.classes import InferenceClass, Member, Shape, fitted
from bltjax.scaling.experiment import Settings, command_line, say
from bltjax.scaling.fit import Crossover, Curve, crossover, measured_curve, own_table, points_of
from bltjax.scaling.inputs import Inputs
from bltjax.scaling.plan import RowFacts
from bltjax.scaling.plots import STYLE, count_text, flops_text, new_figure, save, series_name, series_style
from bltjax.scaling.series import rule_of, sized
from bltjax.scaling.store import write_table
from bltjax.scaling.study import Study
from bltjax.scaling.sweep import caption, claim, run_study, summary
from bltjax.scaling.variants import Variant

Row = dict[str, Any]
Unit = Literal["flops", "bytes"]
UnitBytes = Callable[[str, PatcherConfig | None], float]
Models = tuple[str, str, str, int | None]  # the token model, presets that are fitted to it, the width of their heads

PATCH_SIZES = (4.5, 6.0, 8.0)
MODELS: Mapping[str, Models] = {
    "cpu": ("token-cpu-1", "blt-cpu-0", "byte-cpu-1", 10),
    "accelerator": ("token-470m", "blt-400m", "byte-450m", None),
}
CPU = {"budgets": (2e11, 4e11, 8e11, 1.2e12), "peak_rates": (4e-3,), "schedule": "wsd"}
ACCELERATOR = {"budgets": (2.5e19, 5e19, 1e20, 2e20), "peak_rates": (3e-3,), "schedule": "wsd"}
COLUMNS: Mapping[Unit, str] = {"flops": "training_flops", "bytes": "bytes_seen"}


@dataclasses.dataclass(frozen=True)
class Class:
    """A class of equal inference, its members by name, and why what was tried besides is none."""

    to: InferenceClass
    members: Mapping[str, Member]
    variants: tuple[Variant, ...]
    notes: tuple[str, ...]


def measured(base: Study) -> UnitBytes:
    """Bytes per token of a model, or per patch of a rule, on the training split; makes what that takes."""
    inputs = Inputs(base, say)
    inputs.make_tokenizers()
    return lambda name, wanted: RowFacts.of(inputs.source(preset(name), wanted, "train"), preset(name)).unit_bytes


def class_of(base: Study, models: Models, unit_bytes: UnitBytes) -> Class:
    """Fits what is to cost the same."""
    reference, shape, flat, head_width = models
    to = InferenceClass.of(preset(reference), unit_bytes(reference, None), base.row_bytes, base.accounting)
    patcher = None if base.accounting == "paper" else base.patcher_model()
    members: dict[str, Member] = {}
    variants, notes = [], []

    def add(variant_name: str, name: str, size: float | None) -> None:
        model = preset(name)
        assert isinstance(model, Shape)
        per_patch = 1.0 if size is None else unit_bytes(name, sized(rule_of(name), size))
        member = fitted(model, per_patch, to, patcher=None if size is None else patcher, head_width=head_width)
        variants.append(Variant(variant_name, name, member.changes, size))
        members[variants[-1].full_name] = member

    for size in PATCH_SIZES:
        add(f"p{size:g}", shape, size)
    try:
        add("class", flat, None)
    except ValueError as error:
        notes.append(f"no flat byte model is in it: {error}")
    return Class(to, members, tuple(variants), tuple(notes))


def member_rows(found: Class, reference: str) -> list[Row]:
    """The models of the class as rows of a table."""
    first = {"model": reference, "changes": "", "bytes_per_patch": None}
    rows: list[Row] = [{**first, "forward_flops_per_byte": found.to.flops_per_byte, "deviation": 0.0, "aspect": 1.0}]
    for name, each in found.members.items():
        changes = ", ".join(f"{path}={value}" for path, value in each.changes.items())
        own = {"model": name, "changes": changes, "bytes_per_patch": each.patch_size}
        cost = {"forward_flops_per_byte": each.flops_per_byte, "deviation": each.deviation, "aspect": each.aspect}
        rows.append({**own, **cost})
    return rows


def curves_of(rows: Sequence[Row], unit: Unit) -> tuple[dict[str, Curve], str]:
    """The curve of each series as measured, and why there are no intervals; "" where there are."""
    points = {series: points_of(rows, own_table(series)) for series in dict.fromkeys(row["series"] for row in rows)}
    try:
        return {series: measured_curve(own, unit) for series, own in points.items()}, ""
    except ValueError as error:
        return {series: measured_curve(own, unit, draws=0) for series, own in points.items()}, str(error)


def crossover_row(found: Crossover) -> Row:
    """A crossover as a row of a table; empty where there is none in range."""
    x = found.x
    return {
        "series": found.a, "against": found.b, "spent": found.x_label, "crossover": None if x is None else x.value,
        "low": None if x is None else x.low, "high": None if x is None else x.high, "draws": found.draws,
        "share_of_draws_that_cross": found.crossing if found.draws else None, "better_before": found.better_before,
        "better_after": found.better_after, "from": found.range[0], "to": found.range[1],
    }  # fmt: skip


def figure_of(rows: Sequence[Row], crossings: Mapping[Unit, Sequence[Crossover]], about: str) -> Any:
    """Bits per byte against both kinds of spending, with a line, and its interval, at each crossover."""
    with matplotlib.rc_context(STYLE):
        figure, panels = new_figure(about, 2)
        for axes, unit in zip(panels, COLUMNS, strict=True):
            curves, column = curves_of(rows, unit)[0], COLUMNS[unit]
            for series, curve in curves.items():
                colour, marker = series_style(series, list(curves))
                own = [row for row in rows if row["series"] == series]
                axes.plot([r[column] for r in own], [r["heldout_bits_per_byte"] for r in own], linestyle="",
                          marker=marker, color=colour, alpha=0.35, markersize=4, markeredgewidth=0)  # fmt: skip
                axes.plot(curve.x, curve.loss, marker=marker, color=colour, linewidth=1.6, label=series_name(series))
                for found in (each for each in crossings[unit] if each.a == series and each.x is not None):
                    assert found.x is not None and found.x.value is not None
                    axes.axvline(found.x.value, color=colour, linestyle="--", linewidth=1)
                    if found.draws:
                        low, high = found.x.low or found.range[0], found.x.high or found.range[1]
                        axes.axvspan(low, high, color=colour, alpha=0.1, linewidth=0)
            axes.set_xscale("log")
            ticks = curves["token"].x
            axes.set_xticks(ticks, [(flops_text if unit == "flops" else count_text)(float(x)) for x in ticks])
            axes.minorticks_off()
            axes.set_xlabel(curves["token"].x_label)
        panels[1].set_ylim(panels[0].get_ylim())
        panels[1].tick_params(labelleft=False)
        panels[0].set_ylabel("bits per byte, held-out documents")
        panels[0].legend(fontsize=8)
        panels[0].set_title("Bits per byte at equal inference FLOPs per byte", loc="left", fontsize=11)
        return figure


def main(settings: Settings) -> None:
    reference = MODELS[settings.scale][0]
    base = settings.study({**CPU, "preset": (reference,)}, {**ACCELERATOR, "preset": (reference,)})
    claim(base)
    found = class_of(base, MODELS[settings.scale], measured(base))
    say(f"\nThe class of {reference}: {found.to.flops_per_byte:.4g} forward FLOPs per byte")
    say("\n".join([*(f"  {name}: {member}" for name, member in found.members.items()), *found.notes, ""]))
    write_table(member_rows(found, reference), settings.out, "members")
    if settings.plan:
        return
    study = dataclasses.replace(base, variants=found.variants)
    rows = run_study(study, say)
    crossings: dict[Unit, list[Crossover]] = {}
    why = ""
    for unit in COLUMNS:
        curves, why = curves_of(rows, unit)
        token = curves.pop("token")
        crossings[unit] = [crossover(curve, token) for curve in curves.values()]
    write_table([crossover_row(each) for own in crossings.values() for each in own], settings.out, "crossovers")
    intervals = f"No intervals: {why}" if why else "Bands: 95 % intervals, bootstrap over trunks."
    about = (
        f"{caption(rows, study, Inputs(study, lambda text: None))} Class: {found.to.flops_per_byte:.3g} forward FLOPs "
        f"per byte, {base.accounting} accounting, to within 2 %. Lines: means over seeds. Dashed: crossovers with "
        f"tokens in range. {intervals}"
    )
    save(figure_of(rows, crossings, about), settings.out, "fixed_inference")
    say("\n".join([summary(rows), "", *(str(each) for own in crossings.values() for each in own), intervals]))


if __name__ == "__main__":
    command_line(Settings(Path("runs/fixed_inference"), seeds=(0,)), __doc__, main)
