"""Next-byte entropies of a whole corpus, stored beside it with the fingerprint of the model that they come from."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float16

from bltjax import families
from bltjax.config import EntropyModelConfig, RowsConfig, config_hash
from bltjax.data.corpus import Corpus, Documents, Split
from bltjax.data.stream import read_entropies, write_entropies
from bltjax.data.views import ByteSource
from bltjax.patching import next_byte_entropy
from bltjax.sharding import batch_ways, make_mesh, put_batch, replicated, shard_params

SPLITS: tuple[Split, ...] = ("train", "heldout")


def params_hash(params: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the names, shapes and values of parameters."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.asarray(jax.device_get(leaf))
        found.update(f"{jax.tree_util.keystr(path)}{values.dtype}{values.shape}".encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()[:16]


def context_of(model: EntropyModelConfig) -> int:
    """Positions before a byte that its entropy can depend on, itself included; 8,192 where nothing limits them."""
    window = model.tower.window
    return 8192 if window is None else model.tower.layers * (window - 1) + 1


def score_documents(
    model: EntropyModelConfig,
    params: Any,
    documents: Documents,
    *,
    row_bytes: int | None = None,
    batch: int = 8,
    show: Callable[[int, int], None] | None = None,
) -> Float16[np.ndarray, "positions"]:
    """Entropies in nats of the id after each position of the documents' stream, each document scored alone.

    Long documents are scored in rows that overlap by all that an entropy can depend on, so where rows are cut makes no
    difference. After an EOS nothing is predicted: its entropy is 0.

    Args:
      row_bytes: positions scored at once; None: four times the overlap, 1,024 at least.
      batch: rows at once, over all devices.
      show: is told how many positions are done, of how many.
    """
    overlap = context_of(model) - 1
    length = max(4 * overlap, 1024) if row_bytes is None else row_bytes
    if length <= overlap:
        raise ValueError(f"row_bytes={row_bytes}: must exceed the {overlap} positions that an entropy depends on.")
    mesh = make_mesh()
    rows = -(-batch // batch_ways(mesh)) * batch_ways(mesh)
    source = ByteSource(documents, RowsConfig(bytes=length, batch=rows))
    found = source.windows(length, length - overlap, np.arange(len(documents)))
    module = families.build(model)

    def entropies(params: Any, ids: jax.Array) -> jax.Array:
        logits: Any = module.apply({"params": params}, ids, None)
        return next_byte_entropy(logits)

    compiled = jax.jit(entropies, out_shardings=replicated(mesh))
    params = shard_params(params, mesh)
    out = np.zeros(source.stream.length, np.float16)
    with jax.set_mesh(mesh):
        for first in range(0, len(found), rows):
            ids = np.zeros((rows, length), np.int32)
            chosen = range(first, min(first + rows, len(found)))
            for row, window in enumerate(chosen):
                begin, end = int(found.begin[window]), int(found.end[window])
                ids[row, : end - begin] = source.stream.ids(begin, end)
            values = np.asarray(compiled(params, put_batch(ids, mesh)))
            for row, window in enumerate(chosen):
                begin, end, after = (int(array[window]) for array in (found.begin, found.end, found.after))
                out[after:end] = values[row, after - begin : end - begin]
            if show is not None:
                show(int(found.end[chosen[-1]]), source.stream.length)
    return out


def score_corpus(
    model: EntropyModelConfig,
    params: Any,
    corpus: Corpus,
    *,
    batch: int = 8,
    show: Callable[[Split, int, int], None] | None = None,
) -> dict[str, str]:
    """Stores the entropies of both splits of a corpus, unless those of this model are there.

    Args:
      batch: rows at once, over all devices.
      show: is told the split, and how many of its positions are done, of how many.

    Returns:
      The fingerprint to read them with: `read_entropies(corpus, split, fingerprint)`.
    """
    fingerprint = {"model": config_hash(model), "params": params_hash(params)}
    for split in SPLITS:
        try:
            read_entropies(corpus, split, fingerprint)
        except (FileNotFoundError, ValueError):
            told = None if show is None else functools.partial(show, split)
            scored = score_documents(model, params, corpus.documents(split), batch=batch, show=told)
            write_entropies(corpus, split, scored, fingerprint)
    return fingerprint
