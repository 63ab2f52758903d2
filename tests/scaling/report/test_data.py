import json
from pathlib import Path

import pytest

from bltjax.scaling.report.data import LossCurve, read_curve, read_study


def test_a_folder_with_its_runs(data):
    assert len(data.rows) == len(data.manifests) == len(data.curves) == len(data.sources) == len(data.scripts) == 80
    assert data.series == ("token", "byte", "blt-3", "blt-6")
    assert (data.accounting, data.own_axis, data.seeds, data.notes) == ("paper-v1", "flops_paper", (0,), ())
    assert "90,000 bytes of held-out documents" in data.text
    assert "c0ffee" in data.text
    assert all(sources["code"] == pytest.approx(1.442695) for sources in data.sources.values())
    assert all(scripts["Cyrillic"] == pytest.approx(0.6 * 1.442695) for scripts in data.scripts.values())


def test_the_table_alone_says_the_same_numbers(data, table_alone):
    assert table_alone.rows == data.rows
    assert not (table_alone.manifests or table_alone.curves or table_alone.sources)
    assert "the table alone" in table_alone.notes[0]


def test_a_table_older_than_trunks_is_read():
    table = Path(__file__).parents[3] / "experiments" / "results" / "isoflop" / "table.csv"
    assert "trunk" not in table.read_text().partition("\n")[0]
    assert len(read_study(table.parent).rows) == 27


def test_without_a_table_the_complete_runs_count(folder, tmp_path):
    (tmp_path / "runs").symlink_to(folder / "runs")
    found = read_study(tmp_path)
    assert len(found.rows) == 80
    assert "complete so far" in found.notes[0]


def test_steps_that_were_done_twice_count_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    steps = [(10, 9.0), (20, 5.0), (30, 4.0), (20, 3.0), (30, 2.0)]
    lines = [
        {"step": s, "bytes_seen": 100 * s, "bits_per_byte": b, "timing": {"seconds": 2.0}} for s, b in steps
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_curve(path) == LossCurve((1000.0, 2000.0, 3000.0), (2.0, 4.0, 6.0), (9.0, 3.0, 2.0))


def test_a_long_curve_is_thinned_and_keeps_its_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": s, "bytes_seen": s, "bits_per_byte": 1.0, "timing": {"seconds": 1.0}} for s in range(1, 1001)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = read_curve(path)
    assert len(curve.seconds) == 100
    assert (curve.bytes_seen[-1], curve.seconds[-1], curve.seconds[0]) == (1000.0, 1000.0, 10.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("heldout_bits_per_byte", "loss"), "no column heldout_bits_per_byte"),
        (lambda text: text + text.splitlines()[-1] + "\n", "stands twice"),
        (lambda text: text.replace("paper-v1", "full-v1", 1), "accounting: several"),
        (lambda text: text.replace(text.splitlines()[1].split(",")[8], "nan", 1), "not finite"),
        (lambda text: text.replace(text.splitlines()[1].split(",")[8], "one", 1), "is not a number"),
        (lambda text: text.splitlines()[0] + "\n", "no table.csv"),
    ],
)
def test_a_table_that_is_not_one_of_a_study(folder, tmp_path, change, message):
    (tmp_path / "table.csv").write_text(change((folder / "table.csv").read_text()))
    with pytest.raises(ValueError, match=message):
        read_study(tmp_path)


def test_a_folder_without_anything(tmp_path):
    with pytest.raises(ValueError, match="name that of a study"):
        read_study(tmp_path / "nowhere")
