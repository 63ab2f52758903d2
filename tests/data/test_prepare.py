import contextlib
import gzip
import hashlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from bltjax.data import sources
from bltjax.data.corpus import Corpus
from bltjax.data.prepare import Job, begin, prepare_shards
from bltjax.data.slices import Given, make_plan
from bltjax.data.store import Store
from bltjax.data.write import prepare
from scripts.launch import local

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = {"heldout_percent": 10.0, "shard_bytes": 3000, "bucket_bytes": 8000}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[Given]:
    """Two sources with duplicates within files, between files and between sources."""
    folder = tmp_path_factory.mktemp("input")
    rng = np.random.default_rng(0)
    pool = [rng.bytes(int(n)) for n in rng.integers(1, 400, 60)]
    pool = [text.replace(b"\x00", b"\x01") for text in pool]
    for number in range(9):
        lines = [{"text": pool[i].decode("latin-1")} for i in rng.integers(0, 60, 12)] + [{"text": ""}]
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        if number % 3:
            (folder / f"web-{number}.jsonl").write_bytes(text)
        else:
            (folder / f"web-{number}.jsonl.gz").write_bytes(gzip.compress(text, mtime=0))
    (folder / "books").mkdir()
    for number in range(20):
        (folder / "books" / f"{number:02}.txt").write_bytes(pool[number] * (1 + number % 2))
    (folder / "books" / "long.txt").write_bytes(rng.bytes(9000))
    return [
        Given(f"{folder}/web-*", "web", "CC-BY-4.0"),
        Given(f"{folder}/books", "books"),
    ]


def hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def folder(given: list[Given], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "corpus"
    prepare_shards(given, folder, **SMALL)
    return folder


def test_shards_hold_what_a_corpus_in_one_piece_holds(given: list[Given], folder: Path, tmp_path: Path):
    whole = prepare(sources.read([one.path for one in given]), tmp_path / "whole", 10)
    corpus = Corpus.open(folder)
    corpus.verify()
    assert corpus.manifest["read"] == whole.manifest["read"]
    assert corpus.manifest["rule"] == whole.manifest["rule"]
    assert corpus.manifest["read"]["duplicates"] > 20
    for split in ("train", "heldout"):
        ours, theirs = corpus.documents(split), whole.documents(split)
        assert [document.tobytes() for document in ours] == [document.tobytes() for document in theirs]
        np.testing.assert_array_equal(ours.digests, theirs.digests)
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)
        assert len(ours.names) == len(ours)
    assert len(corpus.manifest["splits"]["train"]["shards"]) > 8


def test_the_manifest_counts_by_source_and_says_where_shards_begin(folder: Path):
    corpus = Corpus.open(folder)
    assert {name: about["license"] for name, about in corpus.manifest["sources"].items()} == {
        "web": "CC-BY-4.0", "books": None,
    }  # fmt: skip
    for split in ("train", "heldout"):
        documents, about = corpus.documents(split), corpus.manifest["splits"][split]
        for shard in about["shards"]:
            assert documents.offsets[shard["first_document"]] == shard["first_byte"]
            assert shard["bytes"] <= SMALL["shard_bytes"] or shard["documents"] == 1
        parts = [corpus.documents(split, source) for source in ("web", "books")]
        assert [d.tobytes() for part in parts for d in part] == [d.tobytes() for d in documents]
        for name, part in zip(("web", "books"), parts, strict=True):
            counted = corpus.manifest["sources"][name][split]
            assert counted == {"documents": len(part), "bytes": part.total_bytes}
    with pytest.raises(ValueError, match=r"source='wiki'.*'web', 'books'"):
        corpus.documents("train", "wiki")


def test_any_number_of_workers_writes_the_same_bytes(given: list[Given], folder: Path, tmp_path: Path):
    told = []
    prepare_shards(given, tmp_path / "corpus", workers=2, show=lambda *progress: told.append(progress), **SMALL)
    assert hashes(tmp_path / "corpus") == hashes(folder)
    assert told[-1][0] == "write_slice" and told[-1][1] == told[-1][2]


def test_the_number_of_buckets_makes_no_difference(given: list[Given], folder: Path, tmp_path: Path):
    prepare_shards(given, tmp_path / "corpus", **{**SMALL, "bucket_bytes": 10**9})
    changed = {name for name, value in hashes(tmp_path / "corpus").items() if hashes(folder)[name] != value}
    assert changed == {"manifest.json"}, "which names the plan"


def test_tasks_may_run_in_any_order_and_more_than_once(given: list[Given], folder: Path, tmp_path: Path):
    job = begin(Store(tmp_path / "corpus"), make_plan(given, **SMALL))
    assert job is not None
    for method, numbers in (
        (Job.hash_slice, job.slices), (Job.find_duplicates, job.buckets), (Job.write_slice, job.slices)
    ):  # fmt: skip
        for number in [*numbers, *numbers][::-1]:
            method(job, number)
    job.finish()
    assert hashes(tmp_path / "corpus") == hashes(folder)


KILLED = """
import sys, json
from bltjax.data.prepare import prepare_shards
from bltjax.data.slices import Given
given = [Given(*one) for one in json.loads(sys.argv[2])]
if __name__ == "__main__":
    prepare_shards(given, sys.argv[1], workers=int(sys.argv[3]), **json.loads(sys.argv[4]))
"""


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_killed_at_any_moment_and_run_again_the_bytes_are_the_same(
    given: list[Given], folder: Path, tmp_path: Path, workers: int
):
    script, out = tmp_path / "killed.py", tmp_path / "corpus"
    script.write_text(KILLED)
    arguments = [json.dumps([[one.path, one.source, one.license] for one in given]), str(workers), json.dumps(SMALL)]
    command = [sys.executable, str(script), str(out), *arguments]
    generator, kills, reached = random.Random(workers), 0, 0
    while not (out / "manifest.json").is_file() and kills < 4:
        reached += generator.randint(1, 20)
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
        # So many files on, and then anywhere within the writing of the next one or two.
        while process.poll() is None and sum(len(files) for _, _, files in os.walk(out)) < reached:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.02))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        kills += process.wait(60) != 0
        if not (out / "manifest.json").is_file():
            with pytest.raises(FileNotFoundError, match=r"not finished|holds no corpus"):
                Corpus.open(out)
    assert kills >= 3
    prepare_shards(given, out, **SMALL)
    assert hashes(out) == hashes(folder)


def test_what_is_complete_is_left_alone_and_something_else_is_not_overwritten(
    given: list[Given], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "corpus"
    first = prepare_shards(given, out, **SMALL)
    with monkeypatch.context() as patched:
        patched.setattr(Job, "documents", None)
        assert prepare_shards(given, out, **SMALL) == first
    with pytest.raises(FileExistsError, match="holds a corpus already"):
        prepare_shards(given, out, **{**SMALL, "heldout_percent": 20.0})
    (out / "train.entropies.f16").touch()
    prepare_shards(given, out, overwrite=True, **{**SMALL, "heldout_percent": 20.0})
    assert not (out / "train.entropies.f16").exists(), "what was derived from the old corpus goes with it"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(FileExistsError, match="holds something else"):
        prepare_shards(given, tmp_path / "thesis", overwrite=True, **SMALL)


def test_other_input_or_arguments_do_not_go_on_with_what_was_begun(tmp_path: Path):
    text = tmp_path / "a.txt"
    text.write_bytes(b"some text")
    given, store = [Given(str(text), "a")], Store(tmp_path / "corpus")
    job = begin(store, make_plan(given, heldout_percent=0))
    assert job is not None
    with pytest.raises(ValueError, match="differs in heldout_percent"):
        begin(store, make_plan(given, heldout_percent=1))
    job.hash_slice(0)
    job.find_duplicates(0)
    text.write_bytes(b"other text")
    with pytest.raises(ValueError, match=r"a\.txt: changed while the corpus was prepared"):
        job.write_slice(0)
    with pytest.raises(ValueError, match="differs in files"):
        prepare_shards(given, tmp_path / "corpus", heldout_percent=0)


def test_to_and_from_a_store_that_is_no_disk(given: list[Given], folder: Path):
    memory = fsspec.filesystem("memory")
    manifest = prepare_shards(given, "memory://bucket/corpus", **SMALL)
    try:
        assert manifest == json.loads((folder / "manifest.json").read_bytes())
        found = memory.find("/bucket/corpus")
        assert {path.removeprefix("/bucket/corpus/"): hashlib.sha256(memory.cat_file(path)).hexdigest()
                for path in found} == hashes(folder)  # fmt: skip
        assert prepare_shards(given, "memory://bucket/corpus", **SMALL) == manifest
        with pytest.raises(ValueError, match="copy it there, or mount the bucket"):
            Corpus.open("memory://bucket/corpus")
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a bucket of an S3 server on this machine; processes that a test starts find it too."""
    moto_server = importlib.import_module("moto.server")
    server = moto_server.ThreadedMotoServer("127.0.0.1", local.free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "anybody"),
        ("AWS_SECRET_ACCESS_KEY", "anything"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # one of an earlier server
    fsspec.filesystem("s3").mkdir("corpora")
    yield "s3://corpora"
    server.stop()


@pytest.mark.slow
def test_from_a_bucket_to_a_bucket_killed_half_way(tmp_path: Path, bucket: str):
    s3 = fsspec.filesystem("s3")
    for n in range(3):
        lines = (json.dumps({"text": f"{i % 7} {n} " * (i + 1)}) + "\n" for i in range(20))
        (tmp_path / f"{n}.jsonl").write_text("".join(lines))
        s3.put_file(str(tmp_path / f"{n}.jsonl"), f"{bucket}/input/{n}.jsonl")
    arguments = {"heldout_percent": 20.0, "shard_bytes": 1500, "bucket_bytes": 5000}
    prepare_shards([Given(f"{tmp_path}/*.jsonl", "a")], tmp_path / "corpus", **arguments)
    script, out = tmp_path / "killed.py", f"{bucket}/corpus"
    script.write_text(KILLED)
    command = [sys.executable, str(script), out, json.dumps([[f"{bucket}/input", "a", None]]), "1"]
    for wanted in ("work/digests-00001.bin", "work/slice-00000.json"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([*command, json.dumps(arguments)], env=environment)
        until = time.monotonic() + 60
        while not s3.exists(f"{out}/{wanted}") and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
            s3.invalidate_cache()
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    prepare_shards([Given(f"{bucket}/input", "a")], out, **arguments)
    s3.invalidate_cache()
    there = {path.removeprefix("corpora/corpus/"): s3.cat_file(path) for path in s3.find(f"{bucket}/corpus")}
    found = {name: hashlib.sha256(data).hexdigest() for name, data in there.items()}
    expected = hashes(tmp_path / "corpus")
    assert found.keys() == expected.keys()
    # The names of documents, and what the manifest says of them, tell where the input lay.
    assert {name for name in found if found[name] != expected[name]} <= {
        name for name in found if name.endswith((".names.jsonl", "manifest.json"))
    }
    assert len(found) > 3 * 4 and "manifest.json" in found


def test_a_lost_or_changed_shard_is_named(given: list[Given], tmp_path: Path):
    out = tmp_path / "corpus"
    prepare_shards(given, out, **SMALL)
    corpus = Corpus.open(out)
    path = out / "train-00002-000.array_record"
    data = bytearray(path.read_bytes())
    documents = corpus.documents("train")
    place = data.index(documents[next(
        shard["first_document"] for shard in corpus.manifest["splits"]["train"]["shards"]
        if shard["name"] == "train-00002-000"
    )].tobytes())  # fmt: skip
    data[place] ^= 1
    path.write_bytes(data)
    reopened = Corpus.open(out)
    reopened.documents("train")[0]
    with pytest.raises(ValueError, match=r"train-00002-000\.array_record: document 0 .* copy it again"):
        list(reopened.documents("train"))
    with pytest.raises(ValueError, match=r"train-00002-000\.array_record has SHA-256"):
        reopened.verify()
    path.unlink()
    with pytest.raises(ValueError, match=r"train-00002-000\.array_record is missing.*copy or prepare"):
        Corpus.open(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"shard_bytes": 0}, "shard_bytes=0"), ({"piece_bytes": 0}, "piece_bytes=0"), ({"heldout_percent": 60.0}, "0.01")],
)
def test_arguments_out_of_range_are_refused(given: list[Given], arguments, message: str):
    with pytest.raises(ValueError, match=message):
        make_plan(given, **arguments)
    with pytest.raises(ValueError, match="workers=0"):
        prepare_shards(given, "nowhere", workers=0)


def test_long_documents_are_cut_into_pieces(given: list[Given], tmp_path: Path):
    prepare_shards(given, tmp_path / "corpus", piece_bytes=100, heldout_percent=5.0, shard_bytes=5000)
    corpus = Corpus.open(tmp_path / "corpus")
    assert max(split["longest_bytes"] for split in corpus.manifest["splits"].values()) == 100


def test_a_split_without_documents_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"one")
    with pytest.raises(ValueError, match="split is empty"):
        prepare_shards([Given(str(tmp_path / "a.txt"), "a")], tmp_path / "corpus")
