"""Shows a study: one HTML page that opens from disk, and every figure and table as files.

    python scripts/report.py runs/isoflop
    python scripts/report.py experiments/results/isoflop --out report --draws 0

The folder is that of a study: its table.csv (or .parquet), and beside it the runs with their manifests and training
curves; the table alone will do, without those. It leaves in FOLDER/report (or --out):

    report.html                      the page
    figures/<figure>.png, .svg, .pdf every figure, over each of its axes
    figures/<figure>.csv             all that is drawn in it
    tables/<table>.md, .tex          fits, best sizes, crossovers, best runs, all runs

The same study gives the same bytes. See docs/report.md.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from bltjax.scaling.report import read_study, write_report


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Shows a study."""

    study: Annotated[Path, tyro.conf.Positional]
    """Folder of a study, with its table.csv."""
    out: Path | None = None
    """Folder to write to; None: "report" in the study's folder."""
    draws: int = 1000
    """Bootstrap draws of each fit; 0: no intervals."""
    seed: int = 0
    """Of the draws."""
    page_only: bool = False
    """Write report.html alone."""

    def __post_init__(self) -> None:
        if self.draws < 0:
            raise ValueError(f"draws={self.draws}: must be 0 or more.")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out={self.out}: is a file; name a folder.")


def main(arguments: Arguments) -> None:
    data = read_study(arguments.study)
    out = arguments.study / "report" if arguments.out is None else arguments.out
    report, paths = write_report(data, out, arguments.draws, arguments.seed, figures=not arguments.page_only)
    for note in data.notes:
        print(note)
    for title, reason in report.left_out.items():
        print(f"left out: {title}: {reason}")
    print(f"{len(report.figures)} figures of {len(data.rows)} runs, {len(paths)} files: {paths[0]}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except KeyboardInterrupt:
        sys.exit("interrupted.")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
