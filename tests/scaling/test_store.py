import json
import os

import pyarrow.parquet
import pytest

from bltjax.lock import Busy
from bltjax.scaling.store import Run, digest, environment, read_json, replace_file, write_json, write_table


def test_a_run_is_complete_only_after_its_result(tmp_path):
    run = Run(tmp_path / "run")
    assert run.manifest() is None
    assert not run.complete
    manifest = run.begin({"id": "a", "family": "blt"})
    assert not run.complete
    run.finish(manifest, {"heldout_bits_per_byte": 2.5})
    assert run.complete
    stored = read_json(run.manifest_path)
    assert stored["result"] == {"heldout_bits_per_byte": 2.5}
    assert stored["stop"] >= stored["starts"][0]["time"]


def test_a_run_waits_runs_is_interrupted_fails_and_is_complete(tmp_path):
    run = Run(tmp_path / "run")
    assert run.state == "waiting" and not run.folder.exists()
    with run.hold():
        assert run.state == "running"  # before it has a manifest too
        manifest = run.begin({"id": "a"})
        assert run.state == "running" and f"process {os.getpid()}" in (run.holder or "")
        with pytest.raises(Busy, match="is doing this run"):
            run.hold()
    assert run.state == "interrupted" and run.holder is None
    run.fail("a", FloatingPointError("the loss is not finite"))
    assert run.state == "failed"
    found = read_json(run.manifest_path)
    assert found["error"]["type"] == "FloatingPointError" and found["error"]["message"] == "the loss is not finite"
    assert found["error"]["time"] >= found["starts"][0]["time"]
    manifest = run.begin({"id": "a"})
    assert len(manifest["starts"]) == 2 and "error" not in manifest
    with run.hold():
        run.finish(manifest, {})
        assert run.state == "complete"  # whatever its process has still to do


def test_a_run_that_failed_before_it_began_says_so(tmp_path):
    run = Run(tmp_path / "run")
    run.fail("a", ValueError("text too short"))
    assert run.state == "failed"
    assert len(run.begin({"id": "a"})["starts"]) == 1


def test_every_start_of_a_run_is_kept_with_the_step_it_resumed_from(tmp_path):
    run = Run(tmp_path)
    run.begin({"id": "a"})
    manifest = run.begin({"id": "a"}, resumed_from=120)
    assert [start["resumed_from"] for start in manifest["starts"]] == [None, 120]


def test_a_folder_is_never_given_to_another_run(tmp_path):
    Run(tmp_path).begin({"id": "a"})
    with pytest.raises(ValueError, match="holds run a, not b"):
        Run(tmp_path).begin({"id": "b"})


def test_a_file_whose_writing_fails_is_as_it_was(tmp_path):
    path = tmp_path / "table.json"
    write_json(path, {"n": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, fail)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path) == {"n": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text('{"id": ')
    with pytest.raises(ValueError, match=r"manifest\.json is not JSON"):
        Run(tmp_path).manifest()


def test_the_digest_is_of_values_not_of_their_order():
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert len(digest(None)) == 16


def test_the_table_is_the_same_in_both_formats_and_every_time(tmp_path):
    rows = [{"run": "a", "loss": 2.125, "steps": 3}, {"run": "b, c", "loss": 1 / 3, "steps": 4}]
    paths = write_table(rows, tmp_path)
    first = [path.read_bytes() for path in paths]
    assert pyarrow.parquet.read_table(paths[1]).to_pylist() == rows
    lines = first[0].decode().splitlines()
    assert lines[0] == "run,loss,steps"
    assert lines[2] == f'"b, c",{1 / 3!r},4'
    assert [path.read_bytes() for path in write_table(rows, tmp_path)] == first


def test_rows_of_a_table_have_the_same_columns(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_table([], tmp_path)
    with pytest.raises(ValueError, match="loss"):
        write_table([{"run": "a"}, {"run": "a", "loss": 1.0}], tmp_path)


def test_the_environment_says_what_ran():
    found = json.loads(json.dumps(environment()))
    assert found["device"] == {"platform": "cpu", "kind": "cpu", "count": 8}
    assert {"python", "jax", "flax", "optax"} <= set(found["versions"])
    assert set(found["git"]) == {"revision", "dirty"}
