"""Arrays as long as a corpus: written in parts to a file beside it by whoever needs them first, then memory-mapped.

So a process holds of them what it reads, however large the corpus is. What is small is made anew in memory instead.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Shaped

SMALL = 1 << 24  # bytes; an array of fewer is no file


def kept(
    path: Path | None, dtype: Any, count: int | None, parts: Callable[[], Iterable[Shaped[np.ndarray, "part"]]]
) -> Shaped[np.ndarray, "count"]:
    """An array of one dimension, memory-mapped where it is large and has a place, else in memory.

    Args:
      path: its file, an .npy in a folder that may be read-only: then an array that is not there yet comes into memory.
      dtype: of its elements.
      count: elements; None: as many as the parts have, which are then written however few they are.
      parts: makes them one after the other; not called where the file is there.

    Raises:
      ValueError: for a file that is damaged, or parts that have another number of elements.
    """
    dtype = np.dtype(dtype)
    if path is not None and not path.is_file() and not os.access(path.parent, os.W_OK):
        path = None
    if path is None or (count is not None and count * dtype.itemsize < SMALL and not path.is_file()):
        found = np.concatenate([np.zeros(0, dtype), *parts()]).astype(dtype, copy=False)
    else:
        if not path.is_file():
            with replacing(path) as file:
                write(file, dtype, parts())
        try:
            # As an array: slicing a memmap costs several times as much.
            found = np.asarray(np.load(path, mmap_mode="r"))
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}): remove it, and it is made anew.") from error
    if found.dtype != dtype or found.ndim != 1 or (count is not None and len(found) != count):
        raise ValueError(
            f"{path or 'this array'} has {found.shape} elements of {found.dtype}, not {count} of {dtype}: "
            "if it is a file, remove it, and it is made anew."
        )
    return found


def write(file: IO[bytes], dtype: Any, parts: Iterable[Shaped[np.ndarray, "part"]]) -> None:
    """Writes an .npy file of parts one after the other."""
    count = 0
    for final in (False, True):
        file.seek(0)
        # Numbers of any length take the same room in a header, so the true one is put into the place of the first.
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        if not final:
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype).tobytes())
                count += len(part)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A file opened for writing that takes the place of `path` when it is complete."""
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)  # where it has not become the file
