import os
from pathlib import Path

import numpy as np
import pytest

from bltjax.data import kept as room
from bltjax.data.kept import kept, replacing


def parts():
    yield np.arange(5)
    yield np.arange(5, 5)
    yield np.arange(5, 12)


@pytest.mark.parametrize("count", [12, None])
def test_parts_become_one_array_on_disk_that_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count):
    monkeypatch.setattr(room, "SMALL", 0)
    path = tmp_path / "array.npy"
    found = kept(path, np.int64, count, parts)
    np.testing.assert_array_equal(found, np.arange(12))
    np.testing.assert_array_equal(np.load(path), np.arange(12))  # a file that any program reads
    again = kept(path, np.int64, count, lambda: pytest.fail("made twice"))
    np.testing.assert_array_equal(again, np.arange(12))
    assert [file.name for file in tmp_path.iterdir()] == ["array.npy"]


def resident(path: Path) -> int:
    """Bytes of a mapped file that this process has in memory."""
    found, of_path = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            of_path = line.endswith(str(path))
        elif of_path and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


def test_a_process_has_in_memory_what_it_has_read(tmp_path: Path):
    size = room.SMALL  # elements of 8 bytes: a large array
    path = tmp_path / "array.npy"
    found = kept(path, np.int64, size, lambda: (np.full(size // 64, i) for i in range(64)))
    assert path.stat().st_size > 8 * size
    assert resident(path) < 0.01 * path.stat().st_size
    for place in np.random.default_rng(0).integers(0, size, 5):
        assert found[place] == place // (size // 64)
    # What the system brings along with a page is at most a large one of 2 MiB.
    assert 0 < resident(path) <= 5 << 21 < 0.1 * path.stat().st_size


def test_what_is_small_or_has_no_place_is_no_file(tmp_path: Path):
    for path in (tmp_path / "array.npy", None):
        np.testing.assert_array_equal(kept(path, np.int32, 12, parts), np.arange(12, dtype=np.int32))
    assert not list(tmp_path.iterdir())
    assert kept(None, bool, 0, lambda: ()).dtype == bool


def test_a_folder_that_is_read_only_has_its_arrays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "SMALL", 0)
    monkeypatch.setattr(os, "access", lambda *_: False)
    np.testing.assert_array_equal(kept(tmp_path / "array.npy", np.int64, 12, parts), np.arange(12))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None):
    monkeypatch.setattr(room, "SMALL", 0)
    path = tmp_path / "array.npy"
    kept(path, np.int64, 12, parts)
    path.write_bytes(path.read_bytes()[:-8] if damage is None else damage)
    with pytest.raises(ValueError, match=r"array\.npy is damaged .* remove it"):
        kept(path, np.int64, 12, parts)


def test_an_array_of_another_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "SMALL", 0)
    kept(tmp_path / "array.npy", np.int64, 12, parts)
    with pytest.raises(ValueError, match=r"array\.npy has \(12,\) elements of int64, not 13 of int64"):
        kept(tmp_path / "array.npy", np.int64, 13, parts)


def test_a_replaced_file_is_whole_or_as_it_was(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
