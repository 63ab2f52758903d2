import json
from pathlib import Path

import pytest

from bltjax.data.slices import Given, make_plan


@pytest.fixture
def given(tmp_path: Path) -> list[Given]:
    for number in range(7):
        (tmp_path / f"{number}.txt").write_bytes(b"x" * 100 * number)
    (tmp_path / "large.jsonl").write_bytes(b'{"text": "a line"}\n' * 100)
    return [
        Given(f"{tmp_path}/[0-3].txt", "small", "MIT"),
        Given(f"{tmp_path}/large.jsonl", "lines"),
        Given(f"{tmp_path}/[4-6].txt", "small"),
    ]


def test_every_byte_is_in_one_slice_of_its_source(given: list[Given], tmp_path: Path):
    plan = make_plan(given, shard_bytes=500)
    assert [entry["source"] for entry in plan["slices"]] == ["small"] * 5 + ["lines"] * 4
    held: dict[str, list] = {}
    for entry in plan["slices"]:
        for file, begin, end in entry["parts"]:
            held.setdefault(Path(file).name, []).append((begin, end))
    assert held.pop("large.jsonl") == [(0, 500), (500, 1000), (1000, 1500), (1500, 1900)]
    assert held == {f"{number}.txt": [(0, None)] for number in range(7)}
    sizes = [sum(100 * int(Path(part[0]).stem) for part in entry["parts"]) for entry in plan["slices"][:5]]
    assert sizes == [300, 300, 400, 500, 600], "0 + 100 + 200, and a file above the limit alone"


def test_a_plan_is_json_and_depends_on_its_input_alone(given: list[Given]):
    plan = make_plan(given, shard_bytes=500)
    assert json.loads(json.dumps(plan)) == plan == make_plan(given, shard_bytes=500)
    Path(given[1].path).write_bytes(b'{"text": "b line"}\n' * 100)
    assert make_plan(given, shard_bytes=500)["files"] != plan["files"]


def test_many_bytes_have_many_buckets(given: list[Given]):
    assert [make_plan(given, bucket_bytes=size)["buckets"] for size in (4000, 3999, 1)] == [1, 2, 4000]


def test_sources_are_named_on_the_command_line(tmp_path: Path):
    assert Given.parse("wiki=a/*.jsonl", {"wiki": "CC-BY-SA-4.0"}) == Given("a/*.jsonl", "wiki", "CC-BY-SA-4.0")
    assert Given.parse("a/*.jsonl") == Given("a/*.jsonl", "a/*.jsonl", None)
    odd = tmp_path / "x=y"
    odd.touch()
    assert Given.parse(str(odd)) == Given(str(odd), str(odd), None)


def test_a_source_has_one_licence_and_a_file_one_source(given: list[Given]):
    with pytest.raises(ValueError, match="has 2 licences"):
        make_plan([given[0], Given(given[0].path, "small", "GPL-3.0")])
    with pytest.raises(ValueError, match="is given for two sources"):
        make_plan([given[0], Given(given[0].path, "again")])
