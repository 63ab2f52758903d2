"""Next-byte entropies of a whole corpus, stored beside it with the fingerprint of the model that they come from.

Documents are scored as they lie: a row is a stretch of the stream, with as many documents as it has room for, and the
model's document mask makes each of them come out as if it were alone. A row that begins inside a document repeats
what an entropy there can depend on. So nothing is padded but the last row of a shard, however short documents are.
"""

import dataclasses
import functools
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float16, Int64

from bltjax import families
from bltjax.config import EntropyModelConfig, config_hash
from bltjax.data.corpus import Corpus, Documents, Split
from bltjax.data.kept import replacing
from bltjax.data.stream import ByteStream, read_entropies, write_entropies
from bltjax.patching import next_byte_entropy
from bltjax.runtime import agree
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


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Stretches of a stream that are scored at once, in positions; every position is scored in exactly one.

    Attributes:
      begin: int64 [rows], the first input.
      after: int64 [rows], where scoring begins; what lies before it is context.
      end: int64 [rows], where inputs and scoring end.
    """

    begin: Int64[np.ndarray, "rows"]
    after: Int64[np.ndarray, "rows"]
    end: Int64[np.ndarray, "rows"]

    def __len__(self) -> int:
        return len(self.begin)


def cut_rows(document_starts: Int64[np.ndarray, "boundaries"], length: int, overlap: int) -> Rows:
    """Rows of a stream for scoring: full of documents, whichever lie next to each other.

    A row goes on where the one before it ended. Where that is inside a document, it first repeats as much of the
    document as an entropy depends on, so where rows are cut makes no difference.

    Args:
      document_starts: where each document of the stream begins; last, where the stream ends.
      length: positions of a row.
      overlap: positions before its own that an entropy depends on.
    """
    total, after, found = int(document_starts[-1]), 0, []
    while after < total:
        document = int(np.searchsorted(document_starts, after, "right")) - 1
        begin = max(int(document_starts[document]), after - overlap)
        end = min(begin + length, total)
        found.append((begin, after, end))
        after = end
    begin, after, end = np.array(found, np.int64).reshape(-1, 3).T
    return Rows(begin=begin, after=after, end=end)


class Scorer:
    """An entropy model compiled for rows of one shape, over all devices of a mesh and all processes that share it."""

    def __init__(
        self,
        model: EntropyModelConfig,
        params: Any,
        *,
        row_bytes: int | None = None,
        batch: int = 8,
        max_context: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        """
        Args:
          row_bytes: positions of a row; None: four times what an entropy depends on, 1,024 at least.
          batch: rows at once, over all devices; rounded up to what the mesh and the processes divide.
          max_context: positions that an entropy may depend on, itself included, where the model sees further than
            that; None: all that the model sees, or 8,192 where nothing limits it.
          mesh: None: one over all devices.

        Raises:
          ValueError: for a row that has no room for anything but context.
        """
        context = context_of(model)
        self.overlap = (context if max_context is None else min(context, max_context)) - 1
        self.length = max(4 * self.overlap, 1024) if row_bytes is None else row_bytes
        if self.length <= self.overlap:
            raise ValueError(
                f"row_bytes={row_bytes}: must exceed the {self.overlap} positions that an entropy depends on."
            )
        self.mesh = make_mesh() if mesh is None else mesh
        step = math.lcm(batch_ways(self.mesh), jax.process_count())
        self.rows = -(-batch // step) * step
        # A row holds several documents; with the mask each is scored as if it were alone.
        module = families.build(dataclasses.replace(model, document_mask=True))

        def entropies(params: Any, ids: jax.Array) -> jax.Array:
            logits: Any = module.apply({"params": params}, ids, None)
            return next_byte_entropy(logits)

        self._compiled = jax.jit(entropies, out_shardings=replicated(self.mesh))
        self._params = shard_params(params, self.mesh)

    def score(
        self, documents: Documents, show: Callable[[int, int], None] | None = None
    ) -> Float16[np.ndarray, "positions"]:
        """Entropies in nats of the id after each position of the documents' stream, each document as if alone.

        After an EOS nothing is predicted: its entropy is 0. All processes get all of them.

        Args:
          show: is told how many positions are done, of how many.

        Raises:
          ValueError: for a document that is damaged; on all processes, whichever has read it.
        """
        stream = ByteStream(documents)
        cut = cut_rows(stream.document_starts, self.length, self.overlap)
        out = np.zeros(stream.length, np.float16)
        share = self.rows // jax.process_count()

        def store(first: int, values: jax.Array) -> None:
            found = np.asarray(values.addressable_data(0))
            for row, place in enumerate(range(first, min(first + self.rows, len(cut)))):
                begin, after, end = (int(array[place]) for array in (cut.begin, cut.after, cut.end))
                out[after:end] = found[row, after - begin : end - begin]
            if show is not None:
                show(int(cut.end[min(first + self.rows, len(cut)) - 1]), stream.length)

        failed: Exception | None = None
        waiting: tuple[int, jax.Array] | None = None
        with jax.set_mesh(self.mesh):
            for first in range(0, len(cut), self.rows):
                ids = np.zeros((share, self.length), np.int32)
                try:
                    own = first + jax.process_index() * share
                    for place in range(own, min(own + share, len(cut)) if failed is None else own):
                        begin, end = int(cut.begin[place]), int(cut.end[place])
                        ids[place - own, : end - begin] = stream.ids(begin, end)
                except Exception as error:
                    if jax.process_count() == 1:
                        raise
                    failed = error  # no batch is scored without this process: the others would wait for ever
                values = self._compiled(self._params, put_batch(ids, self.mesh))
                # The devices work on this batch while the one before is stored and the next one is read.
                if waiting is not None:
                    store(*waiting)
                waiting = first, values
            if waiting is not None:
                store(*waiting)
        agree("scoring", failed)
        out[stream.document_starts[1:] - 1] = 0
        return out


def score_documents(
    model: EntropyModelConfig,
    params: Any,
    documents: Documents,
    *,
    row_bytes: int | None = None,
    batch: int = 8,
    max_context: int | None = None,
    show: Callable[[int, int], None] | None = None,
) -> Float16[np.ndarray, "positions"]:
    """`Scorer.score` of these documents, by a `Scorer` of this model."""
    scorer = Scorer(model, params, row_bytes=row_bytes, batch=batch, max_context=max_context)
    return scorer.score(documents, show)


def score_corpus(
    model: EntropyModelConfig,
    params: Any,
    corpus: Corpus,
    *,
    batch: int = 8,
    max_context: int | None = None,
    mesh: Mesh | None = None,
    overwrite: bool = False,
    show: Callable[[Split, int, int], None] | None = None,
) -> dict[str, Any]:
    """Stores the entropies of both splits of a corpus, unless those of this model are there.

    Done shard by shard: each leaves its part in a folder beside the corpus, so what a kill interrupts goes on from the
    last whole shard. All processes of a mesh call this together, and see the same folder; the first one writes.

    Args:
      batch, max_context, mesh: as for `Scorer`; `max_context` becomes part of the fingerprint where it is given.
      overwrite: replace the stored entropies of another model.
      show: is told the split, and how many of the positions of one of its shards are done, of how many.

    Returns:
      The fingerprint to read them with: `read_entropies(corpus, split, fingerprint)`.

    Raises:
      ValueError: where the entropies of another model are stored, and `overwrite` is not given.
    """
    fingerprint: dict[str, Any] = {"model": config_hash(model), "params": params_hash(params)}
    if max_context is not None:
        fingerprint["max_context"] = max_context
    if not overwrite:
        for split in SPLITS:
            _refuse_others(corpus, split, fingerprint)
    scorer = None
    for split in SPLITS:
        try:
            read_entropies(corpus, split, fingerprint)
            continue
        except (FileNotFoundError, ValueError):
            scorer = scorer or Scorer(model, params, batch=batch, max_context=max_context, mesh=mesh)
        told = None if show is None else functools.partial(show, split)
        _score_split(scorer, corpus, split, fingerprint, told)
    if scorer is not None and jax.process_count() > 1:
        multihost_utils.sync_global_devices("entropies are stored")
    return fingerprint


def _refuse_others(corpus: Corpus, split: Split, fingerprint: dict[str, Any]) -> None:
    about = corpus.folder / f"{split}.entropies.json"
    stored = json.loads(about.read_bytes())["fingerprint"] if about.is_file() else None
    if stored is not None and {**stored, "corpus": None} != {**fingerprint, "corpus": None}:
        raise ValueError(
            f"{about}: {corpus.folder} has the entropies of another model ({stored}, not {fingerprint}), which other "
            "runs may have read. Use that model, or say that they are to be overwritten (overwrite=True)."
        )


def _score_split(
    scorer: Scorer, corpus: Corpus, split: Split, fingerprint: dict[str, Any], show: Callable[[int, int], None] | None
) -> None:
    pieces = corpus.documents(split).pieces
    identity = json.dumps([fingerprint, corpus.fingerprint], sort_keys=True)
    parts = corpus.folder / f"{split}.entropies-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.parts"
    parts.mkdir(exist_ok=True)
    files = [parts / f"{number:05d}.f16" for number in range(len(pieces))]
    # Listed before any is written, so that all processes leave out the same.
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    for number in missing:
        scored = scorer.score(Documents(pieces[number : number + 1]), show)
        if jax.process_index() == 0:
            with replacing(files[number]) as file:
                file.write(scored.tobytes())
    if jax.process_index() == 0:
        write_entropies(corpus, split, (np.fromfile(file, np.float16) for file in files), fingerprint)
        shutil.rmtree(parts)
