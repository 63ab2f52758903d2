"""The score of a trained model on documents: exact sums, the same for every family."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bltjax.batch import Batch
from bltjax.config import BLTConfig, ModelConfig
from bltjax.loss import Sums, bits_per_byte
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


def evaluate(
    model: ModelConfig,
    params: Any,
    batches: Iterable[Batch],
    *,
    slots: int | None = None,
    mesh: Mesh | None = None,
) -> Score:
    """The score of a model on batches such as `data.pipeline.heldout_batches` gives.

    Args:
      batches: all of one shape, this process's rows of each.
      slots: patches of a row, for BLT; None: `batches.slots`.
      mesh: None: that of the params, or of one device where they have none.

    Raises:
      ValueError: for batches that do not divide over the mesh, or a BLT without slots.
    """
    if mesh is None:
        mesh = mesh_of(params) or make_mesh(devices=jax.devices()[:1])
    blt = isinstance(model, BLTConfig)
    score = compile_score(model, mesh, getattr(batches, "slots", None) if blt and slots is None else slots)
    params = shard_params(params, mesh)
    return _total(score(params, batch) for batch in batches)


def _total(sums: Iterator[Sums]) -> Score:
    fields = [field.name for field in dataclasses.fields(Score)]
    totals: dict[str, Any] = dict.fromkeys(fields, 0)
    pending: deque[Sums] = deque()

    def fetch(leave: int) -> None:
        while len(pending) > leave:
            one = jax.device_get(pending.popleft())
            for name in fields:
                exact = np.float64 if name.endswith("nats") else np.int64
                totals[name] += one[name].sum(dtype=exact).item()

    for one in sums:
        pending.append(one)
        fetch(leave=1)
    fetch(leave=0)
    return Score(**totals)
