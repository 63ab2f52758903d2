"""The state of a run on disk, through Orbax: written beside the training, whole or not at all.

A checkpoint holds the state (parameters, optimiser, step) and a record: the configuration, what was counted so far,
the shapes, so that whatever does not fit is named before it is read, and checksums, since Orbax does not notice a
flipped bit in an array. The checksums are made where the arrays lie, and are the same for every layout over devices
and processes. The data position is the step.
"""

import json
import math
import os
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt32

from bltjax.metrics import flat
from bltjax.runtime import agree, together

_STATE, _RECORD = "state", "record"


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Saving returns when the state has been copied; a thread writes it. A checkpoint that was not finished when its
    process died is not seen here, and is removed by the next save.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2, keep_every: int | None = None) -> None:
        """
        Args:
          folder: is made by the first save.
          keep: how many of the newest to keep; with one, a damaged one leaves nothing to fall back to.
          keep_every: those of steps that are multiples of it are kept for good besides; None: none.
        """
        self.folder = Path(folder).absolute()
        self._keep, self._keep_every = keep, keep_every
        self._manager: ocp.CheckpointManager | None = None

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, keep_period=self._keep_every, create=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=(_STATE, _RECORD))
        return self._manager

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted(self._open().all_steps(), reverse=True)

    def save(self, step: int, state: Any, record: Mapping[str, Any]) -> None:
        """Saves the state after `step` steps, unless that one is there.

        Args:
          state: a pytree of arrays. It may be donated or changed as soon as this returns.
          record: JSON values; may be changed then, too.

        Raises:
          OSError: when this one can't be begun, or the one before it could not be finished.
        """
        try:
            if step in self._open().all_steps():
                return
            # A copy: the thread that writes it must not see what the caller changes in it meanwhile.
            record = json.loads(json.dumps({**record, "shapes": _shapes(state), "checksums": checksums(state)}))
            sealed = {"record": record, "checksum": _record_checksum(record)}
            self._open().save(
                step,
                args=ocp.args.Composite(**{_STATE: ocp.args.StandardSave(state), _RECORD: ocp.args.JsonSave(sealed)}),
                force=True,  # whether to save is decided by the caller, on all processes alike
            )
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> OSError:
        return OSError(
            f"a checkpoint can't be written to {self.folder} ({_first_line(error)}): see to free space and to the "
            "right to write there, then run the same command again; it goes on from the last one, which is intact."
        )

    def record(self, step: int) -> dict[str, Any]:
        """What was recorded with the checkpoint of that step.

        Raises:
          ValueError: for a damaged one, and whatever Orbax raises besides.
        """
        args = ocp.args.Composite(**{_RECORD: ocp.args.JsonRestore()})
        sealed = self._open().restore(step, args=args)[_RECORD]
        if _record_checksum(sealed["record"]) != sealed["checksum"]:
            raise ValueError("the checksum of its record is wrong")
        return sealed["record"]

    def _state(self, step: int, abstract_state: Any, stored: Mapping[str, int]) -> Any:
        args = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(abstract_state)})
        state, failed = None, None
        try:
            state = self._open().restore(step, args=args)[_STATE]
        except Exception as error:
            failed = error
        # Before anything that all processes must do: one alone may have met the damaged part.
        agree(f"checkpoint-{step}", failed)
        found = checksums(state)
        wrong = [path for path, value in stored.items() if found[path] != value]
        if wrong:
            raise ValueError(f"the checksum of {', '.join(wrong)} is wrong")
        return state

    def restore(
        self, abstract_state: Any, check: Callable[[Mapping[str, Any]], None], say: Callable[[str], None]
    ) -> tuple[Any, dict[str, Any]] | None:
        """The newest sound checkpoint: its state and its record; None where there is none at all.

        Args:
          abstract_state: jax.ShapeDtypeStruct leaves, with the sharding that each is to be restored to.
          check: raises when a record does not belong to this run.
          say: is told of a checkpoint that is damaged and passed over.

        Raises:
          ValueError: from `check`; for shapes that do not fit, naming them; when every checkpoint is damaged.
        """
        steps = self.steps()
        for step in steps:
            try:
                record = together(f"record-{step}", lambda step=step: self.record(step))
            except Exception as error:  # Orbax raises many kinds; all of them mean that it can't be read
                say(f"checkpoint {self.folder / str(step)} is damaged and is passed over ({_first_line(error)})")
                continue
            check(record)
            check_shapes(record["shapes"], _shapes(abstract_state), str(self.folder / str(step)))
            try:
                state = self._state(step, abstract_state, record["checksums"])
            except Exception as error:
                say(f"checkpoint {self.folder / str(step)} is damaged and is passed over ({_first_line(error)})")
                continue
            self._drop(newer_than=step)
            return state, record
        if steps:
            raise ValueError(
                f"{self.folder}: none of its checkpoints can be read. Remove the run's folder to start anew."
            )
        return None

    def _drop(self, newer_than: int) -> None:
        for step in self.steps():
            if step > newer_than:
                self._open().delete(step)

    def wait(self) -> None:
        """Returns when all that was saved is on the disk.

        Raises:
          OSError: where it could not be written, such as for a full disk.
        """
        if self._manager is not None:
            try:
                self._manager.wait_until_finished()
            except Exception as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Waits and lets go of the folder.

        Raises:
          OSError: where what was saved last could not be written.
        """
        if self._manager is not None:
            manager, self._manager = self._manager, None
            try:
                manager.close()
            except Exception as error:
                raise self._failed(error) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _shapes(state: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def checksums(state: Any) -> dict[str, int]:
    """A checksum of each array of a state; every changed bit changes it, the layout over devices does not."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    sums = np.asarray(_sums([leaf for _, leaf in leaves]))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return {name: int(value) for name, value in zip(names, sums, strict=True)}


@jax.jit
def _sums(leaves: list[Array]) -> UInt32[Array, "leaves"]:
    return jnp.stack([_sum(leaf) for leaf in leaves])


def _sum(x: Array) -> UInt32[Array, ""]:
    # The sum, modulo 2^32, of the mixed bits of every element and its place: additions may come in any order.
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    mixed = bits.astype(jnp.uint32)
    for axis in range(x.ndim):
        stride = np.uint32(math.prod(x.shape[axis + 1 :]) * 0x9E3779B1 % 2**32)
        mixed += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        mixed = (mixed ^ (mixed >> 15)) * np.uint32(factor)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _record_checksum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], may_differ: Collection[str] = ()) -> list[str]:
    """Where two nested objects differ: "optim/peak_rate: 0.001 before, 0.002 now".

    Args:
      may_differ: keys ("log_every") or groups of keys ("mesh") that are not compared.
    """
    a, b = flat(stored), flat(wanted)
    out = []
    for key in sorted(a.keys() | b.keys()):
        if is_free(key, may_differ):
            continue
        if key not in b:
            out.append(f"{key}: {a[key]!r} before, absent now")
        elif key not in a:
            out.append(f"{key}: absent before, {b[key]!r} now")
        elif a[key] != b[key]:
            out.append(f"{key}: {a[key]!r} before, {b[key]!r} now")
    return out


def is_free(key: str, may_differ: Collection[str]) -> bool:
    """Whether a key, or a group that it is in, is among those that may differ."""
    return any(key == free or key.startswith(free + "/") for free in may_differ)


def check_same(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], where: str, may_differ: Collection[str] = ()
) -> None:
    """Refuses to go on with a run under another configuration.

    Raises:
      ValueError: naming every key that differs.
    """
    found = differences(stored, wanted, may_differ)
    if found:
        raise ValueError(
            f"{where} belongs to a run with another configuration:\n  " + "\n  ".join(found) + "\n"
            "Go on with the configuration it was started with, name in --allow-change what may change, or give this "
            "run a folder of its own."
        )


def check_shapes(stored: Mapping[str, str], wanted: Mapping[str, str], where: str) -> None:
    """Refuses a checkpoint whose arrays are not those of this model.

    Raises:
      ValueError: naming every path that is absent, superfluous or of another shape.
    """
    found = differences(stored, wanted)
    if found:
        raise ValueError(f"checkpoint {where} holds other arrays than this model has:\n  " + "\n  ".join(found))
