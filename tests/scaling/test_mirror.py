import dataclasses
import shutil
import uuid
from pathlib import Path

import fsspec
import pyarrow.parquet
import pytest

from bltjax.metrics import read_journal
from bltjax.scaling.mirror import complete_rows, gathered, mirror_run, mirror_tables, write_metrics
from bltjax.scaling.store import Run, read_json, write_json

TABLES = (".csv", ".parquet", ".png", ".svg")


@pytest.fixture(params=["memory", "folder", "file"])
def url(request, tmp_path: Path) -> str:
    kinds = {"memory": f"memory://{uuid.uuid4().hex}/a", "folder": str(tmp_path / "copy")}
    return kinds.get(request.param, f"file://{tmp_path}/copy")


def test_a_copy_gives_the_same_tables_as_the_study_itself(unbroken, url, tmp_path):
    study, rows = unbroken
    for folder in (study.out / "runs").iterdir():
        assert mirror_run(folder, url)
        assert not mirror_run(folder, url)  # it lies there
    assert complete_rows(gathered(study, url)) == rows
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    ids = {row["run"] for row in rows}
    for place, path in ((study.out, here), (url, there)):
        write_metrics(place, gathered(study, place, ids), path)
    assert here.read_bytes() == there.read_bytes()
    tables = {path.name for path in study.out.iterdir() if path.is_file() and path.suffix in TABLES}
    assert len(tables) == mirror_tables(study.out, url) == 10
    found, path = fsspec.url_to_fs(f"{url}/table.csv")
    assert found.cat_file(path) == (study.out / "table.csv").read_bytes()
    there = found.ls(path.removesuffix("/table.csv"), detail=False)
    assert {name.rpartition("/")[2] for name in there} == {"runs", *tables}


def test_metrics_of_all_runs_are_one_table_each_step_once(unbroken, tmp_path):
    study, rows = unbroken
    lines = write_metrics(study.out, gathered(study, study.out), tmp_path / "metrics.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "metrics.parquet").to_pylist()
    assert lines == len(table) == len({(row["run"], row["step"]) for row in table})
    by_run = {row["run"]: row for row in rows}
    assert {row["run"] for row in table} == set(by_run)
    for folder in (study.out / "runs").iterdir():
        identity = read_json(folder / "manifest.json")["id"]
        own = [row for row in table if row["run"] == identity]
        journal = read_journal(folder / "metrics.jsonl")
        assert [(row["step"], row["bits_per_byte"]) for row in own] == [
            (r["step"], r["bits_per_byte"]) for r in journal
        ]
        assert [row["timing/seconds"] for row in own] == [row["timing"]["seconds"] for row in journal]


def test_other_runs_in_the_folder_are_left_out_and_unclear_ones_refused(unbroken, tmp_path):
    study, rows = unbroken
    shutil.copytree(study.out / "runs", tmp_path / "runs")
    fewer = dataclasses.replace(study, preset=("byte-tiny",), budgets=(6e8,))
    (row,) = complete_rows(gathered(fewer, tmp_path))
    assert row == next(r for r in rows if r["preset"] == "byte-tiny" and r["budget"] == 6e8)
    Run(tmp_path / "runs" / "begun").fail("e", ValueError("before it began"))
    (folder,) = (tmp_path / "runs").glob("byte-tiny-6e8-*")
    manifest = {**read_json(folder / "manifest.json"), "id": "other"}
    write_json(tmp_path / "runs" / "of-another-text" / "manifest.json", manifest)
    assert complete_rows(gathered(fewer, tmp_path, {row["run"]})) == [row]
    with pytest.raises(ValueError, match="holds two runs of byte-tiny at 6e\\+08"):
        gathered(fewer, tmp_path)


def test_incomplete_runs_have_metrics_and_no_row(unbroken, tmp_path):
    study, rows = unbroken
    shutil.copytree(study.out / "runs", tmp_path / "runs")
    folder = next((tmp_path / "runs").iterdir())
    write_json(folder / "manifest.json", {**read_json(folder / "manifest.json"), "status": "running"})
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 10')  # cut short by a kill
    runs = gathered(study, tmp_path)
    assert len(complete_rows(runs)) == len(rows) - 1 and len(runs) == len(rows)
    lines = write_metrics(tmp_path, runs, tmp_path / "metrics.parquet")
    assert lines == sum(len(read_journal(path)) for path in tmp_path.glob("runs/*/metrics.jsonl"))
