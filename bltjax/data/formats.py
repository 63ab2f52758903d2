"""One file to documents: text, JSON lines, Parquet, Arrow, ArrayRecord; local or through fsspec, whole or a part of it.

A document is bytes, taken as they are: nothing is decoded or normalised, so NUL and invalid UTF-8 survive.
"""

import contextlib
import dataclasses
import gzip
import io
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIELDS = ("text", "content")  # where a record keeps its text; the first one present is taken
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".ndjson.gz", ".ndjson.zst")
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz", ".whl", ".jar")
_ARROW = (".arrow",)
_RECORDS = (".array_record", ".arrayrecord")


@dataclasses.dataclass(frozen=True)
class Document:
    """One document: a name for people to find it by, and its bytes."""

    name: str
    data: bytes


@dataclasses.dataclass(frozen=True)
class Part:
    """A file, or a part of one that can be read without the rest.

    Attributes:
      file: a path, or a URL that fsspec opens.
      begin: where the part begins: a byte of JSON lines, a row group of Parquet.
      end: where it ends; None: at the end of the file.
    """

    file: str
    begin: int = 0
    end: int | None = None


def is_remote(path: str) -> bool:
    """Whether a path is a URL, such as gs://bucket/file."""
    return "://" in path


def check_kind(file: str) -> None:
    """Refuses a file whose bytes are no text and that is not read in another way.

    Raises:
      ValueError: naming it.
    """
    if file.lower().endswith(_PACKED) and not file.lower().endswith(JSON_LINES):
        raise ValueError(
            f"{file} is a packed file, whose bytes are no text: unpack it, or name the files to read with a glob."
        )


def parts(file: str, size: int, part_bytes: int) -> list[Part]:
    """Divides a file into parts of about `part_bytes` bytes, where its format lets one begin in the middle."""
    lower = file.lower()
    if size <= part_bytes or not lower.endswith((".jsonl", ".ndjson", ".parquet")):
        return [Part(file)]
    if not lower.endswith(".parquet"):
        return [Part(file, begin, min(begin + part_bytes, size)) for begin in range(0, size, part_bytes)]
    with _parquet(file) as table:
        sizes = [table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups)]
    out, begin, held = [], 0, 0
    for i, group in enumerate(sizes):
        if held and held + group > part_bytes:
            out.append(Part(file, begin, i))
            begin, held = i, 0
        held += group
    return [*out, Part(file, begin, len(sizes))]


def read(part: Part) -> Iterator[Document]:
    """The documents of a part, in the order of the file.

    Raises:
      ValueError: for a line or row that holds no such document, or damaged data, naming file and place.
    """
    lower = part.file.lower()
    if lower.endswith(JSON_LINES):
        return _read_json_lines(part)
    if lower.endswith(".parquet"):
        return _read_parquet(part)
    if lower.endswith(_ARROW):
        return _read_arrow(part.file)
    if lower.endswith(_RECORDS):
        return _read_records(part.file)
    return iter([Document(part.file, _read_whole(part.file))])


def file_system(url: str) -> tuple[Any, str]:
    """The file system that fsspec has for a URL, and the path in it.

    Raises:
      ImportError: where its package is not installed, naming the extra that has it.
    """
    import fsspec

    try:
        return fsspec.url_to_fs(url)  # pyright: ignore[reportReturnType]
    except ImportError as error:
        extra = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}.get(url.partition("://")[0])
        advice = f"pip install 'bltjax[{extra}]'" if extra else "install the package that fsspec asks for"
        raise ImportError(f"{url}: no file system for such URLs is installed; {advice} ({error}).") from error


def opened(file: str) -> Any:
    """A file opened for reading, local or not."""
    if not is_remote(file):
        return open(file, "rb")
    found, path = file_system(file)
    return found.open(path, "rb")


def _read_whole(file: str) -> bytes:
    with opened(file) as stored:
        return stored.read()


@contextlib.contextmanager
def _lines_of(file: str) -> Iterator[Any]:
    lower = file.lower()
    with opened(file) as stored:
        if lower.endswith(".gz"):
            with gzip.open(stored) as unpacked:
                yield unpacked
        elif lower.endswith(".zst"):
            import pyarrow as pa

            with pa.CompressedInputStream(pa.PythonFile(stored, "r"), "zstd") as unpacked:
                yield io.BufferedReader(unpacked, 1 << 20)
        elif is_remote(file):
            yield io.BufferedReader(stored, 1 << 20)
        else:
            yield stored


def _read_json_lines(part: Part) -> Iterator[Document]:
    number, at = 0, part.begin
    with _lines_of(part.file) as lines:
        if part.begin:
            # A line belongs to the part that its first byte lies in.
            lines.seek(part.begin - 1)
            at += len(lines.readline()) - 1
        while part.end is None or at < part.end:
            number += 1
            # Where lines were skipped nobody has counted them, so the place is a byte of the file.
            where = f"{part.file}:{number}" if part.begin == 0 and part.end is None else f"{part.file}@{at}"
            try:
                line = lines.readline()
            except (EOFError, OSError, zlib.error) as error:
                kind = "zstd" if part.file.lower().endswith(".zst") else "gzip"
                raise ValueError(f"{where}: the {kind} data is damaged or cut short: {error}.") from error
            if not line:
                return
            at += len(line)
            # A blank line, such as the last one often is, holds no record.
            if line.strip():
                yield Document(where, _text_of_line(line, where))


def _text_of_line(line: bytes, where: str) -> bytes:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: the line is not JSON ({error}): mend it or take it out.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a JSON object with a text was expected, not a {type(record).__name__}.")
    field = _field_of(list(record), where)
    if not isinstance(record[field], str):
        raise ValueError(f"{where}: {field!r} is a {type(record[field]).__name__}, not a string.")
    return record[field].encode("utf-8", "surrogatepass")


def _field_of(names: list[str], where: str) -> str:
    for field in FIELDS:
        if field in names:
            return field
    raise ValueError(
        f"{where}: no field {' or '.join(map(repr, FIELDS))} among {', '.join(map(repr, names)) or 'none'}; rename it."
    )


@contextlib.contextmanager
def _parquet(file: str) -> Iterator[Any]:
    # Imported here: pyarrow takes a second to load, and only these files need it.
    import pyarrow as pa
    import pyarrow.parquet as parquet

    with opened(file) as stored:
        try:
            table = parquet.ParquetFile(stored)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file}: not a whole Parquet file ({error}): write it again or leave it out.") from error
        with table:
            yield table


def _read_parquet(part: Part) -> Iterator[Document]:
    import pyarrow as pa

    file = part.file
    with _parquet(file) as table:
        field = _text_field(table.schema_arrow, file)
        end = table.num_row_groups if part.end is None else part.end
        row = sum(table.metadata.row_group(i).num_rows for i in range(part.begin))
        try:
            groups = list(range(part.begin, end))
            for batch in table.iter_batches(batch_size=256, columns=[field], row_groups=groups):
                for document in _rows(batch.column(0), field, file, row):
                    yield document
                    row += 1
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file}: damaged after row {row} ({error}): write it again or leave it out.") from error


def _read_arrow(file: str) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.ipc as ipc

    row = 0
    with opened(file) as stored:
        try:
            is_file = stored.read(6) == b"ARROW1"
            stored.seek(0)
            if is_file:
                table = ipc.open_file(stored)
                batches: Any = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                table = batches = ipc.open_stream(stored)
            field = _text_field(table.schema, file)
            for batch in batches:
                for document in _rows(batch.column(field), field, file, row):
                    yield document
                    row += 1
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file}: damaged after row {row} ({error}): write it again or leave it out.") from error


def _text_field(schema: Any, file: str) -> str:
    import pyarrow as pa

    field = _field_of(schema.names, file)
    kind = schema.field(field).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
                                             pa.types.is_binary, pa.types.is_large_binary)):  # fmt: skip
        raise ValueError(f"{file}: column {field!r} holds {kind}, not strings or binary values.")
    return field


def _rows(column: Any, field: str, file: str, first: int) -> Iterator[Document]:
    import pyarrow as pa

    # As binary the bytes come out as stored, without a decoding that could fail.
    for row, value in enumerate(column.cast(pa.large_binary()), first):
        if not value.is_valid:
            raise ValueError(f"{file}: row {row} of column {field!r} is null: filter such rows out.")
        yield Document(f"{file}:{row}", value.as_py())


def _read_records(file: str) -> Iterator[Document]:
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    with contextlib.ExitStack() as stack:
        path = file
        if is_remote(file):
            # The library reads local files only.
            path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "records")
            Path(path).write_bytes(_read_whole(file))
        row = 0
        try:
            reader = array_record_module.ArrayRecordReader(path)
            while row < reader.num_records():
                for data in reader.read(row, min(row + 256, reader.num_records())):
                    yield Document(f"{file}:{row}", data)
                    row += 1
            reader.close()
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{file}: damaged after record {row} ({error}): write it again or leave it out."
            ) from error
