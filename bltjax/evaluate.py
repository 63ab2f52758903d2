"""The score of a trained model on documents: exact sums, the same for every family.

In go batches whose rows are windows over documents, as `data.pipeline.heldout_batches` cuts them; out comes what all
of them cost together, or each document by itself. A `Reader` makes what such batches are cut from, of any documents and
any model that `generate.Source` holds. Training, scripts/evaluate.py and the harness call this.
"""

import dataclasses
import functools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bltjax.batch import Batch
from bltjax.config import ModelConfig, RowsConfig, TokenTransformerConfig
from bltjax.data.corpus import Documents
from bltjax.data.pipeline import HeldoutBatches
from bltjax.data.starts import patch_starts
from bltjax.data.stream import ByteStream
from bltjax.data.tokenizer import Tokenizer
from bltjax.data.views import BLTSource, ByteSource, StreamSource, TokenSource
from bltjax.generate.source import Source
from bltjax.loss import Sums, bits_per_byte
from bltjax.scoring import Scorer, context_of, params_hash
from bltjax.sharding import make_mesh, mesh_of, shard_params
from bltjax.step import compile_score


@dataclasses.dataclass(frozen=True)
class Score:
    """What a model pays for documents; exact sums on the host."""

    byte_nats: float = 0.0  # for raw bytes
    bytes: int = 0  # raw bytes scored
    special_nats: float = 0.0  # for BOS and EOS
    specials: int = 0

    @property
    def bits_per_byte(self) -> float:
        return bits_per_byte(self.byte_nats, self.bytes)

    @classmethod
    def total(cls, scores: "Iterable[Score]") -> "Score":
        """The sums of scores; those of nats are rounded once."""
        columns = zip(*map(dataclasses.astuple, scores), strict=True)
        sums: Any = (math.fsum(column) if isinstance(column[0], float) else sum(column) for column in columns)
        return cls(*sums)


_KINDS = {field.name: np.float64 if field.type is float else np.int64 for field in dataclasses.fields(Score)}


def evaluate(
    model: ModelConfig,
    params: Any,
    batches: Iterable[Batch],
    *,
    slots: int | None = None,
    mesh: Mesh | None = None,
) -> Score:
    """The score of a model on batches such as `data.pipeline.heldout_batches` gives.

    MEGABYTE is scored in two passes half a patch apart by `dataclasses.replace(model, inference="strided")`.

    Args:
      batches: all of one shape, this process's rows of each.
      slots: patches of a row, for a model that reads them; None: `batches.slots`.
      mesh: None: that of the params, or of one device where they have none.

    Raises:
      ValueError: for batches that do not divide over the mesh, or a BLT without slots.
    """
    sums = _scored(model, params, batches, slots, mesh)

    def total(one: Sums) -> Score:
        return Score(**{name: getattr(one, name).sum(dtype=kind).item() for name, kind in _KINDS.items()})

    return Score.total(map(total, sums))


def evaluate_documents(
    model: ModelConfig, params: Any, batches: HeldoutBatches, *, mesh: Mesh | None = None
) -> list[Score]:
    """The score of each of `batches.documents`, in their order; on one process.

    Args:
      mesh: as for `evaluate`.

    Raises:
      ValueError: as `evaluate` does.
    """
    totals = {name: np.zeros(len(batches.documents), kind) for name, kind in _KINDS.items()}
    for rows, sums in zip(batches.row_documents, _scored(model, params, batches, None, mesh), strict=True):
        real = rows >= 0
        place = np.searchsorted(batches.documents, rows[real])
        for name, total in totals.items():
            np.add.at(total, place, getattr(sums, name)[real].astype(total.dtype))
    return [Score(*values) for values in zip(*(total.tolist() for total in totals.values()), strict=True)]


def _scored(
    model: ModelConfig, params: Any, batches: Iterable[Batch], slots: int | None, mesh: Mesh | None
) -> Iterator[Sums]:
    """The sums of each row of each batch, on the host; the devices are at the next batch meanwhile."""
    if mesh is None:
        mesh = mesh_of(params) or make_mesh(devices=jax.devices()[:1])
    if slots is None and model.reads_patches:
        slots = getattr(batches, "slots", None)
    score = compile_score(model, mesh, slots)
    params = shard_params(params, mesh)
    pending: deque[Sums] = deque()
    for batch in batches:
        pending.append(score(params, batch))
        if len(pending) > 1:
            yield jax.device_get(pending.popleft())
    yield from map(jax.device_get, pending)


class Reader:
    """Makes documents readable for a trained model: as the stream of its family, cut into its patches."""

    def __init__(self, trained: Source, *, batch: int = 8, mesh: Mesh | None = None) -> None:
        """
        Args:
          batch: rows of the entropy model at once.
          mesh: for the entropy model; None: one over all devices.
        """
        self.trained = trained
        self._batch, self._mesh = batch, mesh
        self._scorers: dict[int, Scorer] = {}

    def __call__(
        self,
        documents: Documents,
        context_bytes: int,
        entropies: Any = None,
        fingerprint: dict[str, Any] | None = None,
    ) -> StreamSource:
        """Documents as the model reads them, each alone.

        Args:
          context_bytes: positions of the rows that they will be cut into.
          entropies: of their byte stream, where they are stored; None: they are made, if the model needs any.
          fingerprint: what stored entropies are known by.
        """
        trained, rows = self.trained, RowsConfig(bytes=context_bytes)
        if trained.config.reads_patches:
            assert trained.patcher is not None
            if trained.patcher.rule == "entropy" and entropies is None:
                entropies = self._entropies(documents)
                fingerprint = self._fingerprint
            return BLTSource(documents, patch_starts(documents, trained.patcher, entropies, fingerprint), rows)
        if isinstance(trained.config, TokenTransformerConfig):
            assert isinstance(trained.tokenizer, Tokenizer), "token models are scored by the tokens of a byte-level BPE"
            return TokenSource(documents, trained.tokenizer, rows)
        return ByteSource(documents, rows)

    @functools.cached_property
    def _fingerprint(self) -> dict[str, Any]:
        return {"params": params_hash(self.trained.entropy_params)}

    def _entropies(self, documents: Documents) -> np.ndarray:
        config = self.trained.entropy_config
        assert config is not None
        # As long as rows are by default; but where all the documents have less room than one, no longer than they need.
        overlap, positions = context_of(config) - 1, ByteStream(documents).length
        length = min(max(4 * overlap, 1024), max(overlap + 1, 1 << (positions - 1).bit_length()))
        if length not in self._scorers:
            params = self.trained.entropy_params
            self._scorers[length] = Scorer(config, params, row_bytes=length, batch=self._batch, mesh=self._mesh)
        return self._scorers[length].score(documents)
