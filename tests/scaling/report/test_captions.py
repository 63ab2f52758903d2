import dataclasses

from bltjax.scaling.report.captions import caption, intervals, slug
from bltjax.scaling.report.laws import fit_series


def test_a_caption_says_what_its_numbers_are(data, laws):
    text = caption(data, "Marks.", laws)
    for words in (
        "Marks.", "N: parameters without", "accounting paper-v1", "Split: 90,000 bytes",
        "Estimator: variable projection",
        "95%, 12 bootstrap draws over trunks and seeds (20 clusters", "seed 0", "One seed: 0.",
    ):  # fmt: skip
        assert words in text
    assert "no estimator and no intervals" in caption(data, "Marks.")
    assert "Estimator: by eye. No intervals." in caption(data, "Marks.", estimator="by eye")


def test_too_few_runs_for_an_interval_say_why(data):
    rows = [row for row in data.of("byte") if row["budget"] > 3e12][:5]
    rows += [row for row in data.of("byte") if row["budget"] == 3e12][1:3]
    few = dataclasses.replace(
        data, rows=tuple({**row, "trunk": f"{i % 5}"} for i, row in enumerate(rows)), manifests={}
    )
    text = intervals({"byte": fit_series(few, "byte", draws=20)})
    assert "No interval can be given" in text
    assert "only 5 trunks" in text


def test_names_become_file_names():
    assert slug("isoflop_blt-4.5") == "isoflop_blt-4.5"
    assert "/" not in slug("../../etc/passwd")
    assert not slug("../../x").startswith(".")
    assert slug("<>") == "unnamed"
    assert slug("a/b", ["a-b"]) == "a-b-2"
