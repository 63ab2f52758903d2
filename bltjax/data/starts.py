"""Where the patches of a split begin: decided once, some documents at a time, and kept beside them."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool

from bltjax.config import PatcherConfig, to_dict
from bltjax.data.corpus import Documents
from bltjax.data.stream import ByteStream
from bltjax.patching import stream_starts
from bltjax.patching.calibrate import document_groups
from bltjax.patching.rules import check_stream

_POSITIONS = 1 << 24  # of a group of documents that are patched at once


def patch_starts(
    documents: Documents, patcher: PatcherConfig, entropies: Any = None, fingerprint: dict[str, Any] | None = None
) -> Bool[np.ndarray, "positions"]:
    """Where the patches of the documents' byte stream begin, each document patched alone.

    As `patching.stream_starts` gives them, in the memory of a few documents: memory-mapped where they are many.

    Args:
      entropies: nats, one a position of the stream, as `stream.read_entropies` maps them; for the entropy rule.
      fingerprint: what the entropies are known by.

    Raises:
      As `patching.stream_starts` does.
    """
    stream = ByteStream(documents)
    boundaries = stream.document_starts
    if patcher.rule == "entropy":
        check_stream("entropies", entropies, stream.length)

    def parts() -> Iterator[Bool[np.ndarray, "part"]]:
        for first, last in document_groups(boundaries, _POSITIONS):
            begin, end = int(boundaries[first]), int(boundaries[last])
            yield stream_starts(
                patcher,
                boundaries[first : last + 1] - begin,
                ids=stream.ids(begin, end) if patcher.rule in ("space", "bpe") else None,
                entropies=None if entropies is None else entropies[begin:end],
            )

    identity = json.dumps([to_dict(patcher), fingerprint], sort_keys=True)
    name = f"starts-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    return documents.keep(name, bool, stream.length, parts)
