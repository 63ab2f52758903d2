import math
from pathlib import Path

import numpy as np
import pytest

from bltjax.scaling.fit.columns import Columns, own_table, points_of, read_points, read_table
from bltjax.scaling.fit.estimators import fit_law
from bltjax.scaling.fit.points import SIZES
from bltjax.scaling.store import write_table
from tests.scaling.fit.truths import design

RESULTS = Path(__file__).resolve().parents[3] / "experiments" / "results" / "isoflop" / "table.csv"
ROWS = [
    {"n": 1e6 * k, "head": 1e5, "tokens": 2e8 * k, "nats": 3.0 - 0.1 * k, "flops": 1.3e15 * k**2, "kind": "big"}
    for k in (1, 2, 3)
]
DESCRIPTION = """
name = "theirs"
table = "theirs.csv"
size = ["n", "head"]
size_label = "parameters with the head"
loss = "nats"
loss_unit = "nats per token"
tokens = "tokens"
bytes_per_token = 4.5
flops = "flops"
accounting = "theirs"
scored = "their text"
"""


def columns(**changes):
    values = {
        "name": "theirs", "size": ("n",), "size_label": "N", "loss": "nats", "loss_unit": "nats per token",
        "tokens": "tokens", "bytes_per_token": 4.5, "flops": "flops", "accounting": "theirs", "scored": "their text",
    }  # fmt: skip
    return Columns(**{**values, **changes})


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_other_people_is_laid_over_ones_own(tmp_path, kind):
    write_table(ROWS, tmp_path, "theirs")
    (tmp_path / "theirs.toml").write_text(DESCRIPTION.replace("theirs.csv", f"theirs.{kind}"))
    points = read_points(tmp_path / "theirs.toml")
    np.testing.assert_allclose(points.size, [1.1e6, 2.1e6, 3.1e6])
    np.testing.assert_allclose(points.bytes, [9e8, 1.8e9, 2.7e9])
    np.testing.assert_allclose(points.flops, [1.3e15, 5.2e15, 1.17e16])
    assert (points.about.name, points.about.size) == ("theirs", "parameters with the head")
    assert points.cluster == ("0", "1", "2")


def test_mistake_17_nats_become_bits_and_tokens_become_bytes():
    nats = points_of(ROWS, columns()).loss
    np.testing.assert_allclose(nats, np.array([2.9, 2.8, 2.7]) / math.log(2) / 4.5)
    per_byte = points_of(ROWS, columns(loss_unit="nats per byte")).loss
    np.testing.assert_allclose(per_byte, np.array([2.9, 2.8, 2.7]) / math.log(2))
    bits = points_of(ROWS, columns(loss_unit="bits per token")).loss
    np.testing.assert_allclose(bits, np.array([2.9, 2.8, 2.7]) / 4.5)
    own = points_of(ROWS, columns(loss_unit="bits per byte", bytes="tokens", tokens=None, bytes_per_token=None))
    np.testing.assert_allclose(own.loss, [2.9, 2.8, 2.7])


def test_mistake_13_data_in_tokens_need_the_bytes_of_a_token():
    with pytest.raises(ValueError, match="how many bytes of text"):
        columns(bytes_per_token=None)
    with pytest.raises(ValueError, match="bytes or tokens, not both"):
        columns(bytes="tokens")


def test_6nd_may_stand_for_a_column_that_is_missing():
    by_flops = points_of(ROWS, columns(tokens=None, flops_per_parameter=6.0))
    np.testing.assert_allclose(by_flops.bytes, by_flops.flops / 6 / by_flops.size * 4.5)
    by_tokens = points_of(ROWS, columns(flops=None, flops_per_parameter=6.0))
    np.testing.assert_allclose(by_tokens.flops, 6 * by_tokens.size * by_tokens.bytes / 4.5)
    with pytest.raises(ValueError, match="D = C / "):
        columns(tokens=None)
    with pytest.raises(ValueError, match="training FLOPs, or give flops_per_parameter"):
        columns(flops=None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lose = 'nats'", "no such key as lose; there are name, size"),
        ("loss_unit = 'shannons'", "choose one of bits per byte"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path, unchecked, line, words):
    write_table(ROWS, tmp_path, "theirs")
    kept = [each for each in DESCRIPTION.splitlines() if line.split(" ")[0] != each.split(" ")[0]]
    (tmp_path / "d.toml").write_text("\n".join([*kept, line]))
    with pytest.raises(ValueError, match=words):
        read_points(tmp_path / "d.toml")


@pytest.mark.parametrize("key", ["name", "table", "size", "loss", "accounting", "scored"])
def test_what_a_description_needs_is_asked_for(tmp_path, key):
    write_table(ROWS, tmp_path, "theirs")
    kept = [line for line in DESCRIPTION.splitlines() if not line.startswith(f"{key} ")]
    (tmp_path / "d.toml").write_text("\n".join(kept))
    with pytest.raises(ValueError, match=key):
        read_points(tmp_path / "d.toml")


def test_a_column_or_number_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no such column; there are n, head"):
        points_of(ROWS, columns(loss="bpb"))
    with pytest.raises(ValueError, match="kind='big' in row 1: is not a number"):
        points_of(ROWS, columns(loss="kind"))
    with pytest.raises(ValueError, match="no row of the table"):
        points_of(ROWS, columns(where={"kind": "small"}))


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.csv or a \.parquet"):
        read_table(tmp_path / "points.xlsx")


def test_the_table_of_a_study_of_this_package_is_points():
    rows = read_table(RESULTS)
    points = points_of(rows, own_table("blt"))
    assert len(points) == 9
    assert points.about.size == SIZES["non_embedding"]
    assert points.about.accounting == "paper-v1"
    assert points.about.scored == "97330 held-out bytes"
    assert points.about.seeds == (0,)
    everything = points_of(rows, own_table("blt", "all"))
    assert (everything.size > 5 * points.size).any()
    # Nine runs of three sizes carry a fit, and its notes say how little that is.
    fit = fit_law(points, "projection", draws=50)
    assert any("only 9" in warning for warning in fit.warnings)
    assert fit.optimum(5e11).loss.value == pytest.approx(2.3, abs=0.2)


def test_the_runs_of_a_study_are_clustered_by_the_trunks_that_they_left():
    points = design(noise=0.002, trunks=True, seeds=2).draw(0)
    names = ("parameters_non_embedding", "bytes_seen", "heldout_bits_per_byte", "training_flops", "budget", "trunk")
    columns_ = (points.size, points.bytes, points.loss, points.flops, points.budget, points.cluster)
    rest = {"series": "blt", "accounting": "paper-v1", "heldout_bytes": 9, "device_seconds": 1, "epochs": 1, "seed": 0}
    rows = [
        {**rest, "run": f"run {number}", "preset": f"blt-{number}", **dict(zip(names, values, strict=True))}
        for number, values in enumerate(zip(*columns_, strict=True))
    ]
    found = points_of(rows, own_table("blt"))
    assert found.cluster == points.cluster and len(set(found.cluster)) == 14 < len(rows) == 70
    fit = fit_law(found, "projection", draws=30)
    assert "70 points of 14 trunks" in str(fit)
    # A table that is older than trunks has runs of their own.
    older = [{name: value for name, value in row.items() if name != "trunk"} for row in rows]
    assert len(set(points_of(older, own_table("blt")).cluster)) == 70


def test_columns_that_name_a_trunk_are_its_cluster():
    rows = [{**row, "trunk": "a" if index < 2 else "b", "seed": 1} for index, row in enumerate(ROWS)]
    assert points_of(rows, columns(cluster=("trunk", "seed"))).cluster == ("a,1", "a,1", "b,1")
