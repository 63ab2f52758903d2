import csv
import dataclasses
import io
import json

import pytest

from bltjax.flops import parameters
from bltjax.scaling import ledger
from bltjax.scaling.edges import predictions
from bltjax.scaling.footprint import Footprint
from bltjax.scaling.ledger import Table, hours_text, money_text
from bltjax.scaling.study import Study
from tests.scaling.test_spend import MACHINE, WIDE, costed

FREE = dataclasses.replace(MACHINE, price=None, currency=None, fraction={})
GRID = dataclasses.replace(WIDE, preset=("byte-cpu-0", "byte-cpu-1", "byte-cpu-2"), budgets=(1e10, 1e11))


@pytest.fixture(scope="module")
def found():
    return costed(WIDE)


def test_every_run_has_a_line_with_its_numbers(found):
    lines = ledger.runs(found).text().splitlines()
    assert len(lines) == 2 + len(found.items)
    for line, item in zip(lines[2:], found.items, strict=True):
        words = line.split()
        assert words[0] == item.label
        assert words[-1] == money_text(item.money) and words[-3] == hours_text(item.seconds)
        if item.run is not None:
            assert words[5] == f"~{item.run.plan.train.steps:,}"


def test_a_piece_of_a_trunk_has_a_line_and_totals_say_what_is_charged_and_what_is_computed(found):
    shared = costed(dataclasses.replace(WIDE, schedule="wsd"))
    pieces = [item for item in shared.items if item.piece is not None]
    rows = [row for row in ledger.runs(shared).rows if row[1] == "trunk"]
    assert [row[0] for row in rows] == [item.label for item in pieces]
    assert [row[5] for row in rows] == [f"~{item.piece.first:,}-{item.piece.last:,}" for item in pieces]
    totals, alone = ledger.totals(shared), ledger.totals(found)
    assert totals.head[4:6] == ("each alone", "on devices") and "each alone" not in alone.head
    assert [row[4] for row in totals.rows] == [row[4] for row in alone.rows]  # as if each run were trained alone
    assert [row[5] != row[4] for row in totals.rows] == [True, True, True, False, True]
    records = ledger.as_json(shared)["items"]
    assert sum(record.get("first_step") is not None for record in records) == len(pieces) == 12
    assert {record["branch_step"] > 0 for record in records if "branch_step" in record} == {True}
    lines = list(csv.DictReader(io.StringIO(ledger.as_csv(shared))))
    assert len(lines) == len(shared.items)


def test_what_is_done_is_marked():
    part = costed(WIDE, done=(1, "entropy"))
    marked = [row[0] for row in ledger.runs(part).rows]
    assert [i for i, label in enumerate(marked) if label.endswith("*")] == [1, 12]
    assert [record["done"] for record in ledger.as_json(part)["items"]] == [label.endswith("*") for label in marked]
    assert ledger.totals(part).rows[-1][0] == "left"


def test_what_is_unknown_is_a_question_mark_and_never_nothing():
    free = costed(dataclasses.replace(WIDE, corpus_bytes=None), FREE)
    for table in (ledger.runs(free), ledger.totals(free)):
        assert {row[-3:] for row in table.rows} == {("?", "?", "?")}
        assert table.head[-1] == "money"
    assert {row[4] for row in ledger.runs(free).rows} == {"?", "-"}  # the corpus was not read: no epochs
    assert {row[-1] for row in ledger.models(free).rows} == {"?"}


def test_a_little_money_and_a_short_time_are_not_nothing():
    assert [money_text(value) for value in (0.0, 0.004, 0.005001, 1234.5)] == ["0.00", "<0.01", "0.01", "1,234.50"]
    assert [hours_text(3600 * value) for value in (0.0, 0.0042, 0.25, 1234.5)] == ["0.00", "0.0042", "0.25", "1,234.50"]


def test_columns_are_as_wide_as_what_stands_in_them():
    table = Table("A table", ("name", "value"), (("a", "1"), ("longer", "12345678")))
    assert table.text().splitlines() == [
        "A table", "name       value", "a              1", "longer  12345678",
    ]  # fmt: skip
    assert table.markdown().splitlines()[2:4] == ["| name | value |", "| :-- | --: |"]


def test_models_tell_bounds_guesses_and_groups(found):
    rows = {row[0]: row for row in ledger.models(found).rows}
    assert list(rows) == ["blt-tiny", "byte-tiny", "token-tiny"]
    assert rows["byte-tiny"][1:4] == ("7.54k", "11.7k", "~1.00")
    assert all(row[8].startswith("≥ ") for row in rows.values())
    certain = costed(WIDE, footprint=Footprint(10**9, 0, 0, 10**9))
    assert {row[8] for row in ledger.models(certain).rows} == {"2 GB"}
    groups = ledger.groups(found)
    for row in groups.rows:
        named = dict(zip(groups.head[1:], row[1:], strict=True))
        model = WIDE.models()[row[0]]
        assert {name for name, text in named.items() if text != "-"} == set(parameters(model))


def test_the_cost_of_a_byte_leaves_the_shared_training_out(found):
    # It depends on how long a run is: the table of models must not show that of one of its budgets.
    blt = ledger.models(found).rows[0]
    other = ledger.models(costed(dataclasses.replace(WIDE, budgets=(6e9,)))).rows[0]
    assert blt[6:8] == other[6:8]


def test_json_has_every_item_in_full_precision_and_nothing_but_json(found):
    values = json.loads(json.dumps(ledger.as_json(found), allow_nan=False))
    assert len(values["items"]) == len(found.items)
    for record, item in zip(values["items"], found.items, strict=True):
        assert record["money"] == item.money and record["hours"] == pytest.approx(item.seconds / 3600)
        assert record["shared"] == (item.run is None)
        if item.run is not None:
            plan = item.run.plan
            assert record["parameters"] == parameters(plan.train.model)
            assert record["steps"] == plan.train.steps and record["epochs"] == plan.epochs
            assert record["training_flops"]["paper"] == pytest.approx(plan.training_flops)
    assert values["totals"][-1]["money"] == found.total.money
    assert values["machine"]["noted"] == "2026-01-31"


def test_csv_has_the_numbers_of_json(found):
    rows = list(csv.DictReader(io.StringIO(ledger.as_csv(found))))
    records = ledger.as_json(found)["items"]
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        assert row["model"] == record["model"] and float(row["money"]) == record["money"]
        if not record["shared"]:
            assert float(row["flops_per_byte_full"]) == record["flops_per_byte"]["full"]
            groups = {name: value for name, value in row.items() if name.startswith("parameters_") and value}
            own = {f"parameters_{name}": count for name, count in record["parameters"].items()}
            own["parameters_non_embedding"] = record["parameters_non_embedding"]
            assert {name: int(value) for name, value in groups.items()} == own


def test_text_and_markdown_say_the_same(found):
    text, markdown = ledger.as_text(found), ledger.as_markdown(found)
    for note in found.notes:
        assert f"note: {note}" in text and f"- {note}" in markdown
    for table in (ledger.models(found), ledger.groups(found), ledger.runs(found), ledger.totals(found)):
        assert table.text() in text and table.markdown() in markdown
    assert "figures noted 2026-01-31" in text and "3.6 EUR a device-hour" in text
    assert "Optima" not in text


def test_predicted_optima_stand_in_a_table_of_their_own():
    plans = [item.run.plan for item in costed(GRID).items]
    found = costed(GRID, predictions=predictions(plans)[0])
    assert [row[:2] for row in ledger.optima(found).rows] == [("byte", "1e10"), ("byte", "1e11")]
    assert ledger.optima(found).text() in ledger.as_text(found)


def test_the_main_job_is_planned_as_it_stands():
    found = costed(Study(out=WIDE.out))
    assert found.total.runs == 27 and len(ledger.models(found).rows) == 9
