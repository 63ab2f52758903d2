"""All figures of a study that its data suffice for."""

from collections.abc import Callable, Mapping

from bltjax.scaling.report.captions import NoData
from bltjax.scaling.report.costs import by_script, by_source, flops_by_part
from bltjax.scaling.report.data import StudyData
from bltjax.scaling.report.laws import SeriesLaw
from bltjax.scaling.report.marks import Figure, Report
from bltjax.scaling.report.sizes import bowls, holdout, optimum_figures, patch_maps
from bltjax.scaling.report.spending import bits_per_byte, fixed_inference, gain, loss_curves

Maker = Callable[[StudyData, Mapping[str, SeriesLaw]], Figure | list[Figure]]

MAKERS: Mapping[str, Maker] = {
    "Bits per byte against spending": bits_per_byte,
    "IsoFLOP bowls": bowls,
    "Best size and bytes against budget": optimum_figures,
    "Compute-equivalent gain": gain,
    "At equal inference, with crossover": fixed_inference,
    "Patch size and model size at one budget": patch_maps,
    "The largest budget held out": holdout,
    "Bits per byte by source of the text": by_source,
    "Bits per byte by script of the text": by_script,
    "Where the FLOPs go": flops_by_part,
    "Training losses": loss_curves,
}


def make_figures(data: StudyData, laws: Mapping[str, SeriesLaw]) -> Report:
    """The figures, in the order of a report."""
    figures: list[Figure] = []
    left_out = {}
    for title, make in MAKERS.items():
        try:
            made = make(data, laws)
        except NoData as reason:
            left_out[title] = str(reason)
            continue
        figures += made if isinstance(made, list) else [made]
    return Report(tuple(figures), left_out)
