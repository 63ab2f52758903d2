"""A whole report written: the page, every figure in every kind with its CSV, and every table."""

from collections.abc import Sequence
from pathlib import Path

from bltjax.scaling.report.data import StudyData, write_csv
from bltjax.scaling.report.draw import write_figure
from bltjax.scaling.report.figures import make_figures
from bltjax.scaling.report.laws import DRAWS, SEED, fit_study
from bltjax.scaling.report.marks import Report
from bltjax.scaling.report.page import page
from bltjax.scaling.report.tables import Table, make_tables
from bltjax.scaling.store import replace_file


def make_report(data: StudyData, draws: int = DRAWS, seed: int = SEED) -> tuple[Report, list[Table]]:
    """The figures and tables of a study, its laws fitted.

    Args:
      draws: of the bootstrap; 0: no intervals.
      seed: of the draws.
    """
    laws = fit_study(data, draws, seed)
    return make_figures(data, laws), make_tables(data, laws)


def write_report(
    data: StudyData, out: Path, draws: int = DRAWS, seed: int = SEED, *, figures: bool = True
) -> tuple[Report, list[Path]]:
    """Writes report.html, figures/ and tables/ into a folder; what was written.

    Args:
      out: the folder.
      figures: whether the files of figures and tables are wanted, or the page alone.
    """
    report, tables = make_report(data, draws, seed)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "report.html"]
    text = page(data, report, tables)
    replace_file(paths[0], lambda path: path.write_text(text, encoding="utf-8"))
    if figures:
        paths += _write_figures(report, out / "figures", data.series)
        for table in tables:
            for ending, written in (("md", table.markdown()), ("tex", table.latex())):
                path = out / "tables" / f"{table.name}.{ending}"
                replace_file(path, lambda path, written=written: path.write_text(written, encoding="utf-8"))
                paths.append(path)
    return report, paths


def _write_figures(report: Report, folder: Path, all_series: Sequence[str]) -> list[Path]:
    paths = []
    for figure in report.figures:
        paths += write_figure(figure, folder, all_series)
        rows = figure.rows()
        path = folder / f"{figure.name}.csv"
        replace_file(path, lambda path, rows=rows: write_csv(path, rows))
        paths.append(path)
    return paths
