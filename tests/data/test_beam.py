import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from bltjax.data.prepare import Job, begin, prepare_shards
from bltjax.data.slices import Given, make_plan
from bltjax.data.store import Store

SIZES = {"heldout_percent": 20.0, "shard_bytes": 1500, "bucket_bytes": 4000}


def hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture
def given(tmp_path: Path) -> list[Given]:
    rng = np.random.default_rng(0)
    for number in range(6):
        lines = (json.dumps({"text": f"document {n} " * (n % 7)}) for n in rng.integers(0, 90, 30))
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines))
    return [Given(f"{tmp_path}/[0-3].jsonl", "a", "MIT"), Given(f"{tmp_path}/[45].jsonl", "b")]


@pytest.mark.beam
@pytest.mark.parametrize("options", [[], ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]], ids=len)
def test_a_pipeline_writes_the_bytes_that_a_process_pool_writes(given: list[Given], tmp_path: Path, options):
    from bltjax.data.beam import prepare_on_beam

    expected = prepare_shards(given, tmp_path / "pool", **SIZES)
    plan = make_plan(given, **SIZES)
    assert prepare_on_beam(plan, str(tmp_path / "beam"), options) == expected
    assert hashes(tmp_path / "beam") == hashes(tmp_path / "pool")
    assert prepare_on_beam(plan, str(tmp_path / "beam"), options) == expected, "and does nothing the second time"


@pytest.mark.beam
def test_a_pipeline_goes_on_with_what_others_began(given: list[Given], tmp_path: Path):
    from bltjax.data.beam import prepare_on_beam

    prepare_shards(given, tmp_path / "pool", **SIZES)
    plan = make_plan(given, **SIZES)
    job = begin(Store(tmp_path / "beam"), plan)
    assert job is not None
    for number in job.slices[::2]:
        job.hash_slice(number)
    prepare_on_beam(plan, str(tmp_path / "beam"))
    assert hashes(tmp_path / "beam") == hashes(tmp_path / "pool")


def test_a_job_is_opened_from_its_folder_alone(given: list[Given], tmp_path: Path):
    # What a worker of a pipeline starts from.
    job = begin(Store(tmp_path / "corpus"), make_plan(given, **SIZES))
    assert job is not None
    assert Job.open(Store(tmp_path / "corpus")).plan == job.plan
