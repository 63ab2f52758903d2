"""Where the FLOPs go by part of the model, and bits per byte by source of the text."""

from collections.abc import Mapping

from bltjax.flops import Breakdown
from bltjax.scaling.plots import flops_text, series_name
from bltjax.scaling.report.captions import NoData, caption
from bltjax.scaling.report.data import StudyData
from bltjax.scaling.report.laws import SeriesLaw
from bltjax.scaling.report.marks import Axis, Figure, Mark, View
from bltjax.scaling.report.spending import BITS

Laws = Mapping[str, SeriesLaw]

# In the order of the data's way through a model; parts of other names stand for themselves, after these.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "patcher": ("patcher_inference", "patcher_training"),
    "encoder": ("encoder", "patch_encoder"),
    "cross-attention": ("encoder_cross", "encoder_projection", "decoder_cross", "decoder_projection", "cross"),
    "global model or tower": ("global", "global_projection", "tower"),
    "decoder": ("decoder", "local"),
    "output": ("output",),
}


def training_shares(parts: Mapping[str, float]) -> dict[str, float]:
    """Each group's share of the training FLOPs of a byte: three forward passes of the model, one of the patcher."""
    total = Breakdown("", parts).training
    groups = {name: group for group, names in GROUPS.items() for name in names}
    out = dict.fromkeys([*GROUPS, *(name for name in parts if name not in groups)], 0.0)
    for name, value in parts.items():
        out[groups.get(name, name)] += Breakdown("", {name: value}).training / total
    return {group: share for group, share in out.items() if share > 0}


def flops_by_part(data: StudyData, laws: Laws) -> Figure:
    """A bar for each model: the shares of its parts in what a byte of training costs."""
    if not data.manifests:
        raise NoData("the parts stand in the runs' manifests, which are not there")
    longest = {}  # the run of each model that pays the least share for the training of its patcher
    for row in data.rows:
        key = row["series"], row["preset"]
        if row["run"] in data.manifests and (key not in longest or row["budget"] > longest[key]["budget"]):
            longest[key] = row
    views = []
    for axis in ("flops_paper", "flops_full"):
        accounting = axis.removeprefix("flops_")
        names, shares, rows = [], [], []
        for (_, preset), row in sorted(
            longest.items(), key=lambda item: (data.series.index(item[0][0]), item[1]["parameters_non_embedding"]),
            reverse=True,
        ):  # fmt: skip
            flops = data.manifests[row["run"]]["flops_per_byte"][accounting]
            names.append(f"{preset}, {flops_text(flops['training'])}")
            shares.append(training_shares(flops["parts"]))
            rows.append(row)
        groups = [*GROUPS, *dict.fromkeys(name for share in shares for name in share if name not in GROUPS)]
        marks = []
        for number, group in enumerate(groups):
            label = group
            for series in data.series:
                places = [i for i, row in enumerate(rows) if row["series"] == series and group in shares[i]]
                if not places:
                    continue
                low, high = [], []
                for i in places:
                    before = sum(shares[i].get(name, 0.0) for name in groups[:number])
                    low.append(before)
                    high.append(before + shares[i][group])
                middle = tuple((a + b) / 2 for a, b in zip(low, high, strict=True))
                marks.append(
                    Mark("bar", series, label, middle, tuple(map(float, places)), tuple(low), tuple(high),
                         runs=tuple(rows[i]["run"] for i in places), colour=number,
                         texts=tuple(f"{names[i]}: {group} {shares[i][group]:.1%}" for i in places))
                )  # fmt: skip
                label = ""
        x = Axis(f"share of the training FLOPs of a byte ({accounting} accounting)", "share")
        views.append(View(axis, x, Axis("", "number", names=tuple(names)), tuple(marks)))
    views.sort(key=lambda view: view.axis != data.flops_axis)
    what = (
        "Shares of the parts in the training FLOPs of a byte, and after each model's name how many those are, at the "
        "largest budget of each: three forward passes of the model and, in the full "
        "accounting, the entropy model that cuts patches."
    )
    return Figure("flops_by_part", "Where the FLOPs go", caption(data, what, numbers="Counted"), tuple(views))


def by_source(data: StudyData, laws: Laws) -> Figure:
    """Bits per byte of each source, for the best scored run of each series at its largest scored budget."""
    if not data.sources:
        raise NoData(
            "no run was scored by source; scripts/evaluate.py RUN --json RUN/scores.json does it, for a corpus with "
            "named sources or given --files NAME=PATH"
        )
    view, what = _of_groups(data, data.sources, "source")
    return Figure("by_source", "Bits per byte by source of the text", caption(data, what), (view,))


def by_script(data: StudyData, laws: Laws) -> Figure:
    """The same by script, where documents were scored in more than one."""
    if not data.scripts:
        raise NoData("no run was scored by script; scripts/evaluate.py RUN --json RUN/scores.json does it")
    names = {name for found in data.scripts.values() for name in found}
    if len(names) == 1:
        raise NoData(f"all documents that were scored are of one script: {names.pop()}")
    view, what = _of_groups(data, data.scripts, "script")
    what += " A document's script is that of most of its letters. Bits per byte do not compare scripts: their letters "
    what += "take from one to three bytes."
    return Figure("by_script", "Bits per byte by script of the text", caption(data, what), (view,))


def _of_groups(data: StudyData, scores: Mapping[str, Mapping[str, float]], by: str) -> tuple[View, str]:
    names = tuple(dict.fromkeys(name for found in scores.values() for name in found))
    marks = []
    for series in data.series:
        rows = [row for row in data.of(series) if row["run"] in scores]
        if not rows:
            continue
        largest = max(row["budget"] for row in rows)
        best = min((r for r in rows if r["budget"] == largest), key=lambda row: row["heldout_bits_per_byte"])
        found = scores[best["run"]]
        own = [name for name in names if name in found]
        label = f"{series_name(series)}: {best['preset']} at {data.budget_text(largest)}"
        marks.append(
            Mark("runs", series, label, tuple(found[name] for name in own),
                 tuple(float(names.index(name)) for name in own), runs=(best["run"],) * len(own),
                 texts=tuple(f"{name}: {found[name]:.4f} bits per byte" for name in own))
        )  # fmt: skip
    what = f"The best run of each series at the largest budget that was scored by {by}."
    return View("", Axis(BITS, "number"), Axis("", "number", names=names), tuple(marks)), what
