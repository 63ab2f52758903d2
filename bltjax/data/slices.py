"""The input of a corpus in shards, divided into slices: what one task reads, and one or a few shards come from.

A slice has about `shard_bytes` bytes of input: several small files, or a part of a large one where its format lets it
be divided. No slice holds files of two sources, and those of a source follow one another, so a source's documents lie
together in the corpus. How input is divided depends on its files, their sizes and the arguments alone.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

from bltjax.data import formats, sources
from bltjax.data.write import split_rule

SHARD_BYTES = 128_000_000
BUCKET_BYTES = 32_000_000_000  # of input for each bucket of hashes: at 2 kB a document some 600 MB of hashes
_NAMED = re.compile(r"([A-Za-z][\w.-]*)=(.+)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Given:
    """Input of one source: a path, folder, glob or URL, what to call the source, and its licence where it is known."""

    path: str
    source: str
    license: str | None = None

    @classmethod
    def parse(cls, text: str, licenses: dict[str, str] | None = None) -> "Given":
        """From NAME=PATH, or a path, which then names the source too."""
        named = None if os.path.exists(text) else _NAMED.fullmatch(text)
        source, path = (named[1], named[2]) if named else (text, text)
        return cls(path, source, (licenses or {}).get(source))


def make_plan(
    given: Sequence[Given],
    heldout_percent: float = 2.0,
    piece_bytes: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    bucket_bytes: int = BUCKET_BYTES,
) -> dict[str, Any]:
    """Divides the input into slices; the plan as JSON values.

    Args:
      given: the input; the order of sources is that in which they are first named.
      heldout_percent: as for `write.prepare`.
      piece_bytes: cuts longer documents into pieces of so many bytes.
      shard_bytes: bytes of input of a slice, and the most that a shard holds, unless one document alone exceeds it.
      bucket_bytes: of input for each bucket of hashes.

    Raises:
      ValueError: for a share or sizes out of range, or one source given two licences; and as `sources.files` does.
    """
    split_rule(heldout_percent)
    for name, value in (("shard_bytes", shard_bytes), ("bucket_bytes", bucket_bytes), ("piece_bytes", piece_bytes)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1.")
    slices: list[dict[str, Any]] = []
    about: dict[str, dict[str, Any]] = {}
    states: dict[str, list[Any]] = {}
    left_out: dict[str, int] = {}
    for source in dict.fromkeys(one.source for one in given):
        own = [one for one in given if one.source == source]
        found = sources.files([one.path for one in own])
        for reason, count in found.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
        stated = {one.license for one in own if one.license} or set(found.licenses)
        if len(stated) > 1:
            raise ValueError(f"source {source!r} has {len(stated)} licences, {sorted(stated)}: give each its own name.")
        about[source] = {"license": stated.pop() if stated else None, "paths": [one.path for one in own]}
        held = 0
        slices.append({"source": source, "parts": []})
        for file, size in zip(found.paths, found.sizes, strict=True):
            if file in states:
                raise ValueError(f"{file} is given for two sources: name it once.")
            states[file] = [size, sources.stamp_of(file)]
            for part in formats.parts(file, size, shard_bytes):
                whole = part.end is None
                if held and (not whole or held + size > shard_bytes):
                    slices.append({"source": source, "parts": []})
                    held = 0
                slices[-1]["parts"].append([part.file, part.begin, part.end])
                held += size if whole else shard_bytes
    total = sum(size for size, _ in states.values())
    return {
        "heldout_percent": heldout_percent,
        "piece_bytes": piece_bytes,
        "shard_bytes": shard_bytes,
        "buckets": -(-max(total, 1) // bucket_bytes),
        "slices": slices,
        "sources": about,
        "files": states,
        "origin": {
            "paths": [one.path for one in given],
            "files": len(states),
            "left_out": left_out,
            **({"piece_bytes": piece_bytes} if piece_bytes is not None else {}),
        },
    }
