from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module
from array_record.python.array_record_data_source import ArrayRecordDataSource

from bltjax.data import shards
from bltjax.data.shards import Shard

# Around every size at which the layout changes: of varints, of blocks, of what is left of a block.
SIZES = (1, 127, 128, 16_383, 16_384, 65_467, 65_468, 65_469, 65_512, 65_536, 200_000, 3, 2_100_000, 1)


def documents(sizes) -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    return [(f"name {i}\n\udcff", rng.bytes(int(n))) for i, n in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [SIZES, [7], np.random.default_rng(1).integers(1, 300, 3000)], ids=len)
def test_records_are_what_every_reader_reads(tmp_path: Path, sizes):
    stored = documents(sizes)
    about = shards.write(tmp_path, "shard", stored)
    reader = array_record_module.ArrayRecordReader(about_path := str(tmp_path / "shard.array_record"))
    assert reader.read_all() == [data for _, data in stored]
    assert "group_size:1," in reader.writer_options_string()
    with ArrayRecordDataSource([about_path]) as source:
        assert source[len(sizes) - 1] == stored[-1][1]
    shard = Shard(tmp_path, "shard")
    assert about["documents"] == len(sizes) == len(shard.names)
    assert shard.names == [name for name, _ in stored]
    assert about["bytes"] == sum(sizes) == shard.offsets[-1]


def test_any_stretch_of_bytes_is_read_at_once(tmp_path: Path):
    stored = documents(SIZES)
    shards.write(tmp_path, "shard", stored)
    shard, whole = Shard(tmp_path, "shard"), b"".join(data for _, data in stored)
    rng = np.random.default_rng(2)
    stretches = np.sort(rng.integers(0, len(whole) + 1, (300, 2)))
    edges = [(int(offset), int(offset) + 1) for offset in shard.offsets[:-1]]
    for start, stop in [*stretches.tolist(), *edges, (0, len(whole)), (5, 5)]:
        assert shard.read(start, stop).tobytes() == whole[start:stop]


def test_the_same_documents_give_the_same_files(tmp_path: Path):
    one, other = (shards.write(tmp_path, name, documents(SIZES)) for name in ("a", "b"))
    assert list(one["files"].values()) == list(other["files"].values())


def test_a_library_that_lays_records_out_otherwise_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "_OPTIONS", "group_size:4,uncompressed")
    with pytest.raises(RuntimeError, match="lays records out in another way"):
        shards.write(tmp_path, "shard", documents([50, 60, 70]))


def test_a_file_written_anew_is_read_anew(tmp_path: Path):
    for text in (b"one text", b"another, longer"):
        shards.write(tmp_path, "shard", [("name", text)])
        shard = Shard(tmp_path, "shard")
        assert shard.read(0, len(text)).tobytes() == text
        assert shard.digests.shape == (1, 32)
