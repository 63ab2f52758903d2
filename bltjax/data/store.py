"""A folder that files are written to whole or not at all: local, or of any file system that fsspec knows.

Writers need no lock. A file appears under its name when it is complete; two that write the same one write the same
bytes, and the later of them wins. What is not complete lies in work/, which whoever finishes removes.
"""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from bltjax.data.formats import file_system, is_remote


class Store:
    """Files by name in a folder; a name may lie in folders of its own. Can be pickled.

    Attributes:
      folder: a path, or a URL such as gs://bucket/corpus.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.fspath(folder).rstrip("/")

    def _place(self, name: str) -> tuple[Any, str]:
        return file_system(f"{self.folder}/{name}")

    @property
    def scratch(self) -> str | None:
        """Where to write files for `take`: on the same disk, and cleared away with work/; None: wherever."""
        return None if is_remote(self.folder) else f"{self.folder}/work"

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        if not is_remote(self.folder):
            path = Path(self.folder, name)
            return path.stat().st_size if path.is_file() else None
        file_system, path = self._place(name)
        file_system.invalidate_cache()
        return int(file_system.size(path)) if file_system.isfile(path) else None

    def read(self, name: str, begin: int = 0, end: int | None = None) -> bytes:
        """Bytes begin .. end - 1 of a file; None: to its end."""
        if not is_remote(self.folder):
            with open(Path(self.folder, name), "rb") as file:
                file.seek(begin)
                return file.read(-1 if end is None else end - begin)
        file_system, path = self._place(name)
        return b"" if begin == end else file_system.cat_file(path, start=begin, end=end)

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, in the place of one that is there."""
        if not is_remote(self.folder):
            path = Path(self.folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Path(self.folder, "work").mkdir(exist_ok=True)
            partial = Path(self.folder, "work", f"partial-{uuid.uuid4().hex}")
            partial.write_bytes(data)
            self.take(partial, name)
            return
        file_system, path = self._place(name)
        file_system.pipe_file(path, data)

    def take(self, path: Path, name: str) -> None:
        """Moves a local file, one from `scratch`, into the folder."""
        if not is_remote(self.folder):
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(path, Path(self.folder, name))
            return
        file_system, there = self._place(name)
        file_system.put_file(str(path), there)
        path.unlink()

    def manifest(self) -> dict[str, Any]:
        """That of the corpus which lies here."""
        return json.loads(self.read("manifest.json"))

    def names(self) -> list[str]:
        """The files and folders that lie directly in it, hidden ones too."""
        if not is_remote(self.folder):
            return sorted(os.listdir(self.folder)) if os.path.isdir(self.folder) else []
        file_system, root = self._place("")
        file_system.invalidate_cache()
        if not file_system.isdir(root.rstrip("/")):
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in file_system.ls(root.rstrip("/"), detail=False))

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all in it, where there is one."""
        if not is_remote(self.folder):
            path = Path(self.folder, name)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        file_system, path = self._place(name)
        if file_system.exists(path):
            file_system.rm(path, recursive=True)
