from pathlib import Path

import fsspec
import pytest

from bltjax.data.store import Store


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "disk":
        yield Store(tmp_path / "folder")
    else:
        yield Store("memory://store/folder")
        fsspec.filesystem("memory").rm("/store", recursive=True)


def test_files_are_written_replaced_read_in_part_and_removed(store: Store, tmp_path: Path):
    assert store.names() == [] or store.folder.startswith("memory")
    store.write("work/a", b"0123456789")
    assert store.size("work/a") == 10
    assert store.size("work/b") is None
    assert store.size("work") is None, "a folder is no file"
    assert (store.read("work/a"), store.read("work/a", 3), store.read("work/a", 3, 5), store.read("work/a", 4, 4)) == (
        b"0123456789", b"3456789", b"34", b"",
    )  # fmt: skip
    store.write("work/a", b"new")
    assert store.read("work/a") == b"new"
    local = Path(store.scratch or tmp_path, "local")
    local.write_bytes(b"taken")
    store.take(local, "b")
    assert store.names() == ["b", "work"]
    assert not local.exists()
    store.remove("work")
    store.remove("nothing")
    assert store.names() == ["b"]
    store.remove("b")


def test_what_is_incomplete_lies_apart(store: Store, monkeypatch: pytest.MonkeyPatch):
    store.write("a", b"old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    if store.scratch is None:
        return  # other stores show an object when it is complete
    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.write("a", b"half")
    assert store.read("a") == b"old"
    assert store.names() == ["a", "work"]
