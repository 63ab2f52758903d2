import csv

import pytest

from bltjax.scaling.report.data import read_study
from bltjax.scaling.report.write import write_report


@pytest.fixture(scope="module")
def small(folder, tmp_path_factory):
    """Two series of the study, from the table alone."""
    alone = tmp_path_factory.mktemp("small")
    lines = (folder / "table.csv").read_text().split("\n")
    kept = [line for line in lines if ",token," in line or ",blt-6," in line]
    (alone / "table.csv").write_text("\n".join([lines[0], *kept, ""]))
    return read_study(alone)


@pytest.mark.slow
def test_every_figure_in_every_kind_with_its_numbers(small, tmp_path):
    report, paths = write_report(small, tmp_path / "out", draws=20)
    names = {path.relative_to(tmp_path / "out").as_posix() for path in paths}
    assert all((tmp_path / "out" / name).stat().st_size > 200 for name in names)
    for figure in report.figures:
        stems = [figure.name if len(figure.views) == 1 else f"{figure.name}.{view.axis}" for view in figure.views]
        assert {f"figures/{stem}.{kind}" for stem in stems for kind in ("png", "svg", "pdf")} <= names
        with (tmp_path / "out" / "figures" / f"{figure.name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        wanted = figure.rows()
        assert [float(row["x"]) for row in rows] == [row["x"] for row in wanted]
        assert [float(row["y"]) for row in rows] == [row["y"] for row in wanted]
    assert {f"tables/{name}.{end}" for name in ("fits", "best", "runs") for end in ("md", "tex")} <= names
    _, again = write_report(small, tmp_path / "again", draws=20)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


@pytest.mark.slow
def test_the_page_alone(small, tmp_path):
    _, paths = write_report(small, tmp_path / "out", draws=0, figures=False)
    assert [path.name for path in paths] == ["report.html"]
    assert list((tmp_path / "out").iterdir()) == paths
