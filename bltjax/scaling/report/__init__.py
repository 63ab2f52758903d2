"""A study shown: figures with their numbers, tables, and one page that opens from disk.

    data = read_study(Path("runs/isoflop"))
    write_report(data, Path("runs/isoflop/report"))

Every figure is first a list of marks (`marks`), from which its files (`draw`), its CSV and the page (`page`) are made.
"""

from bltjax.scaling.report.data import StudyData, read_study
from bltjax.scaling.report.marks import Axis, Figure, Mark, Report, View
from bltjax.scaling.report.page import page
from bltjax.scaling.report.write import write_report

__all__ = ["Axis", "Figure", "Mark", "Report", "StudyData", "View", "page", "read_study", "write_report"]
