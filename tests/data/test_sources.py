import gzip
import json
import os
import sysconfig
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as parquet
import pytest

from bltjax.data import sources
from bltjax.data.sources import Document


def data_of(*paths: Path) -> list[bytes]:
    return [document.data for document in sources.read([str(path) for path in paths])]


def write_lines(path: Path, *records: object) -> Path:
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"\n".join(lines))
    return path


def test_any_bytes_come_through_untouched(tmp_path: Path):
    data = bytes(range(256)) + b"\r\n\x00\xff\xef\xbb\xbf"
    (tmp_path / "any.txt").write_bytes(data)
    assert data_of(tmp_path / "any.txt") == [data]


def test_an_empty_file_is_an_empty_document(tmp_path: Path):
    (tmp_path / "empty.txt").touch()
    assert data_of(tmp_path / "empty.txt") == [b""]


def test_a_folder_is_read_whole_in_order_of_paths_without_hidden_files(tmp_path: Path):
    for name in ("b.txt", "a/z.md", "a/b/c.rst", ".hidden", ".git/config", "c/.x/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    read = sources.read([str(tmp_path)])
    assert [document.data for document in read] == [b"a/b/c.rst", b"a/z.md", b"b.txt"]
    assert [document.data for document in read] == [b"a/b/c.rst", b"a/z.md", b"b.txt"], "a second time"
    assert read.origin["left_out"] == {"hidden files and folders": 3}


def test_globs_and_repeated_files(tmp_path: Path):
    for name in ("one.md", "two.md", "three.txt", "deep/er/four.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert data_of(tmp_path / "*.md") == [b"one.md", b"two.md"]
    assert data_of(tmp_path / "two.md", tmp_path / "*.md") == [b"two.md", b"one.md"]
    assert data_of(tmp_path / "**/*.md") == [b"deep/er/four.md", b"one.md", b"two.md"]
    assert sorted(data_of(tmp_path / "*")) == [b"deep/er/four.md", b"one.md", b"three.txt", b"two.md"]


def test_a_name_with_the_letters_of_a_glob_is_a_name_where_it_exists(tmp_path: Path):
    (tmp_path / "notes [1].txt").write_bytes(b"one")
    assert data_of(tmp_path / "notes [1].txt") == [b"one"]


def test_a_folder_without_readable_files_is_named(tmp_path: Path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / ".hidden").touch()
    with pytest.raises(ValueError, match=r"corpus has no readable files \(1 hidden entries"):
        sources.read([str(tmp_path / "corpus")])


@pytest.mark.parametrize("name", ["missing.txt", "*.missing"])
def test_what_is_not_there_is_named(tmp_path: Path, name: str):
    with pytest.raises(FileNotFoundError, match=name.replace("*", r"\*")):
        sources.read([str(tmp_path / name)])


def test_no_paths_at_all():
    with pytest.raises(ValueError, match="paths is empty"):
        sources.read([])


def test_a_link_to_nothing_is_named(tmp_path: Path):
    (tmp_path / "text").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="link is no regular file"):
        sources.read([str(tmp_path)])
    with pytest.raises(ValueError, match="link is neither a file nor a folder"):
        sources.read([str(tmp_path / "link")])


def test_a_file_that_may_not_be_read_is_named_before_any_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.txt").touch()
    (tmp_path / "secret.txt").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("secret.txt"))
    with pytest.raises(PermissionError, match=r"secret\.txt may not be read"):
        sources.read([str(tmp_path)])


@pytest.mark.parametrize("name", ["dump.tar.gz", "text.txt.GZ", "all.zip"])
def test_packed_bytes_are_refused_as_text(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match="is a packed file"):
        sources.read([str(tmp_path)])


def test_json_lines_plain_and_packed(tmp_path: Path):
    lines = write_lines(tmp_path / "a.jsonl", {"text": "één"}, b"", {"content": "two", "id": 2}, {"text": ""}, b"  ")
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(lines.read_bytes())
    expected = ["één".encode(), b"two", b""]
    assert data_of(lines) == expected
    assert data_of(tmp_path / "b.jsonl.gz") == expected
    assert [document.name for document in sources.read([str(lines)])] == [f"{lines}:{n}" for n in (1, 3, 4)]


def test_json_strings_keep_nul_and_lone_surrogates(tmp_path: Path):
    lines = write_lines(tmp_path / "a.jsonl", rb'{"text": "a\u0000b"}', rb'{"text": "\ud83d\ude00|\ud83d"}')
    assert data_of(lines) == [b"a\x00b", "😀|".encode() + b"\xed\xa0\xbd"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not JSON"),
        (b'{"text": "\xff"}', "not JSON"),
        (b"[1]", "not a list"),
        (b'"text"', "not a str"),
        (b'{"body": "x", "id": 1}', "no field 'text' or 'content' among 'body', 'id'"),
        (b'{"text": null}', "'text' is a NoneType"),
        (b'{"text": ["x"]}', "'text' is a list"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, reason: str):
    lines = write_lines(tmp_path / "bad.jsonl", {"text": "good"}, b"", line, {"text": "good"})
    with pytest.raises(ValueError, match=rf"bad\.jsonl:3: .*{reason}"):
        data_of(lines)


def test_a_packed_file_that_is_cut_short_is_named(tmp_path: Path):
    whole = gzip.compress(b"\n".join(b'{"text": "%d"}' % n for n in range(2000)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.jsonl\.gz:\d+: the gzip data is damaged or cut short"):
        data_of(tmp_path / "cut.jsonl.gz")


@pytest.mark.parametrize("megabytes", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_a_very_long_line_is_one_document(tmp_path: Path, megabytes: int):
    text = "0123456789abcdé\n" * (megabytes << 16)
    lines = write_lines(tmp_path / "long.jsonl", {"text": text}, {"text": "after"})
    assert data_of(lines) == [text.encode(), b"after"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["één", ""]),
        pa.array(["één", ""], pa.large_string()),
        pa.array(["één", ""]).dictionary_encode(),
        pa.array(["één".encode(), b""], pa.binary()),
    ],
    ids=lambda column: str(column.type),
)
def test_parquet_strings_and_binary_values(tmp_path: Path, column: pa.Array):
    parquet.write_table(pa.table({"id": [1, 2], "content": column}), tmp_path / "a.parquet")
    assert data_of(tmp_path / "a.parquet") == ["één".encode(), b""]


def test_parquet_bytes_need_not_be_utf8(tmp_path: Path):
    parquet.write_table(pa.table({"text": pa.array([b"\xff\x00"], pa.binary())}), tmp_path / "a.parquet")
    assert data_of(tmp_path / "a.parquet") == [b"\xff\x00"]


def test_parquet_of_many_rows_comes_in_order(tmp_path: Path):
    parquet.write_table(pa.table({"text": [str(n) for n in range(1000)]}), tmp_path / "a.parquet", row_group_size=300)
    assert data_of(tmp_path / "a.parquet") == [str(n).encode() for n in range(1000)]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (pa.table({"body": ["x"]}), "no field 'text' or 'content' among 'body'"),
        (pa.table({"text": [1]}), "column 'text' holds int64"),
        (pa.table({"text": ["a", None]}), "row 1 of column 'text' is null"),
    ],
)
def test_bad_parquet_is_named(tmp_path: Path, table: pa.Table, reason: str):
    parquet.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=rf"bad\.parquet: {reason}"):
        data_of(tmp_path / "bad.parquet")


def test_parquet_cut_short_is_named(tmp_path: Path):
    parquet.write_table(pa.table({"text": ["abc"]}), tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cut\.parquet: not a whole Parquet file"):
        data_of(tmp_path / "cut.parquet")


def test_pieces_join_to_the_document():
    documents = [Document("a", b"0123456789"), Document("b", b"abc"), Document("empty", b"")]
    cut = sources.pieces(documents, 4)
    assert [(d.name, d.data) for d in cut] == [
        ("a@0", b"0123"), ("a@4", b"4567"), ("a@8", b"89"), ("b", b"abc"), ("empty", b""),
    ]  # fmt: skip
    assert cut.origin == {"piece_bytes": 4}
    with pytest.raises(ValueError, match="piece_bytes=0"):
        sources.pieces(documents, 0)


def test_the_standard_library_is_a_corpus():
    read = sources.embedded()
    documents = {document.name: document.data for document in read}
    root = Path(sysconfig.get_path("stdlib"))
    assert documents["json/decoder.py"] == (root / "json" / "decoder.py").read_bytes()
    assert documents["pydoc_data/topics.py#while"].startswith(b'The "while" statement')
    assert "pydoc_data/topics.py" not in documents
    assert not [name for name in documents if "site-packages" in name or "__pycache__" in name]
    assert "encodings/cp1252.py" not in documents
    assert "encodings/utf_8.py" in documents
    assert sum(map(len, documents.values())) > 8_000_000
    assert [document.name for document in sources.embedded()] == list(documents)
    assert sum(read.origin["left_out"].values()) > 0


@pytest.mark.parametrize("remote", [False, True], ids=["local", "url"])
def test_a_saved_hugging_face_data_set_is_its_rows(tmp_path: Path, remote: bool):
    # The layout that `DatasetDict.save_to_disk` leaves, with a cache file of `map` beside the data.
    root = tmp_path / "saved"
    for split in ("train", "test"):
        folder = root / split
        folder.mkdir(parents=True)
        names = [f"data-{n:05d}-of-00002.arrow" for n in range(2)]
        for name in [*names, "cache-0123456789abcdef.arrow"]:
            table = pa.table({"text": [f"{split} {name}"]})
            with ipc.new_stream(folder / name, table.schema) as writer:
                writer.write_table(table)
        (folder / "dataset_info.json").write_text(json.dumps({"license": "cc0-1.0", "features": {}}))
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    path = str(root)
    if remote:
        path = "memory://hub/saved"
        memory = fsspec.filesystem("memory")
        for file in root.rglob("*.*"):
            memory.pipe_file(f"/hub/saved/{file.relative_to(root).as_posix()}", file.read_bytes())
    found = sources.files([path])
    assert found.licenses == ["cc0-1.0"]
    assert found.left_out == {"descriptions of data sets": 7}
    assert [document.data for document in sources.read([path])] == [
        f"{split} data-{n:05d}-of-00002.arrow".encode() for split in ("test", "train") for n in range(2)
    ]


def test_urls_of_files_folders_and_globs():
    memory = fsspec.filesystem("memory")
    for name in ("b.txt", "a/1.txt", "a/2.md", ".hidden/3.txt"):
        memory.pipe_file(f"/urls/{name}", name.encode())
    found = {
        path: [document.data.decode() for document in sources.read([f"memory://{path}"])]
        for path in ("urls", "urls/b.txt", "urls/a/*.txt", "urls/**/*.md")
    }
    assert found == {
        "urls": ["a/1.txt", "a/2.md", "b.txt"],
        "urls/b.txt": ["b.txt"],
        "urls/a/*.txt": ["a/1.txt"],
        "urls/**/*.md": ["a/2.md"],
    }
    assert sources.read(["memory://urls"]).origin["left_out"] == {"hidden files and folders": 1}
    for path in ("urls/c.txt", "urls/*.pdf"):
        with pytest.raises(FileNotFoundError, match=r"memory://urls/.*(does not exist|matches no file)"):
            sources.read([f"memory://{path}"])
