import gzip
import importlib
import json
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as parquet
import pytest
from array_record.python import array_record_module

from bltjax.data import formats, sources
from bltjax.data.formats import Part
from bltjax.data.store import Store

TEXTS = ["one", "zwei — größer", "三", "x" * 3000, "", "last\x00"]


def as_lines(texts: list[str], newline: str = "\n") -> bytes:
    return newline.join(json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)).encode()


def write(path: Path, texts: list[str] = TEXTS) -> None:
    table = pa.table({"text": pa.array(texts, pa.string())})
    match "".join(path.suffixes[-2:]):
        case ".jsonl":
            path.write_bytes(as_lines(texts))
        case ".jsonl.gz":
            path.write_bytes(gzip.compress(as_lines(texts)))
        case ".jsonl.zst":
            # Two frames one after the other, as tools that append leave them.
            halves = as_lines(texts[:2]) + b"\n", as_lines(texts[2:])
            path.write_bytes(b"".join(pa.compress(half, "zstd", asbytes=True) for half in halves))
        case ".parquet":
            parquet.write_table(table, path, row_group_size=2)
        case ".stream.arrow":
            with ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=4)
        case ".file.arrow":
            with ipc.new_file(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=4)
        case ".array_record":
            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:2,zstd:3")
            for text in texts:
                writer.write(text.encode())
            writer.close()


KINDS = ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.stream.arrow", "a.file.arrow", "a.array_record")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("remote", [False, True], ids=["local", "url"])
def test_every_format_gives_its_documents(tmp_path: Path, name: str, remote: bool):
    write(tmp_path / name)
    path = str(tmp_path / name)
    if remote:
        path = f"memory://formats/{name}"
        fsspec.filesystem("memory").pipe_file(f"/formats/{name}", (tmp_path / name).read_bytes())
    found = list(sources.read([path]))
    assert [document.data.decode() for document in found] == TEXTS
    assert len({document.name for document in found}) == len(TEXTS)
    assert all(name in document.name for document in found)


@pytest.mark.parametrize("name", KINDS[1:])
def test_damage_is_named(tmp_path: Path, name: str):
    rng = np.random.default_rng(0)
    write(tmp_path / name, [str(rng.integers(0, 10**9, 60)) for _ in range(2000)])
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ValueError, match=f"{name}.*(damaged|not a whole|cut short)"):
        list(sources.read([str(tmp_path / name)]))


@pytest.mark.parametrize("newline", ["\n", "\n\n", "\r\n"])
@pytest.mark.parametrize("part_bytes", [1, 7, 40, 200, 3000, 10**6])
def test_parts_of_json_lines_hold_every_line_once(tmp_path: Path, newline: str, part_bytes: int):
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_lines(TEXTS, newline))
    parts = formats.parts(str(path), path.stat().st_size, part_bytes)
    assert len(parts) == -(-path.stat().st_size // part_bytes)
    found = [document for part in parts for document in formats.read(part)]
    assert [document.data.decode() for document in found] == TEXTS
    assert len({document.name for document in found}) == len(TEXTS)


@pytest.mark.parametrize("part_bytes", [1, 6200, 10**6])
def test_parts_of_parquet_are_row_groups(tmp_path: Path, part_bytes: int):
    write(tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    parts = formats.parts(path, 10**6, part_bytes)
    assert len(parts) == {1: 3, 6200: 2, 10**6: 1}[part_bytes]
    found = [document for part in parts for document in formats.read(part)]
    assert [(document.name, document.data.decode()) for document in found] == [
        (f"{path}:{row}", text) for row, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.array_record", "a.txt"])
def test_other_formats_are_not_divided(tmp_path: Path, name: str):
    assert formats.parts(str(tmp_path / name), 10**6, 100) == [Part(str(tmp_path / name))]


@pytest.mark.parametrize(("url", "package", "extra"), [("gs://b/a", "gcsfs", "gs"), ("s3://b/a", "s3fs", "s3")])
def test_a_file_system_that_is_not_installed_is_named_with_its_extra(
    url: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, extra, raising=False)
    for read in (
        lambda: formats.opened(url),
        lambda: sources.files([url]),
        lambda: sources.stamp_of(url),
        lambda: Store(url).size("a"),
    ):
        with pytest.raises(ImportError, match=rf"{url}.*pip install 'bltjax\[{extra}\]'"):
            read()
