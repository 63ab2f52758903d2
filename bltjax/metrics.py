"""What a run reports: a JSONL file that survives crashes, trackers if installed and asked for, a progress line."""

import importlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

from bltjax.flops import PEAKS

Row = Mapping[str, Any]

TRACKERS = ("tensorboard", "wandb")


class Journal:
    """Rows of a run, one JSON object a line, each with its "step", in ascending order.

    A row is in the file when `write` returns, so a killed process loses none; `sync` makes them outlast the machine.
    Opening drops what does not belong: a last line that was cut short, and rows after the step that the run goes on
    from, since those steps will be taken, and written, again.

    Attributes:
      dropped: the rows that were dropped on opening.
    """

    def __init__(self, path: str | os.PathLike[str], after_step: int) -> None:
        """Opens or makes the file at `path`, keeping the rows of steps up to `after_step`.

        Raises:
          ValueError: for a line, other than a torn last one, that is not a row.
        """
        self.path = Path(path)
        lines = _lines(self.path)
        kept = [line for row, line in lines if row["step"] <= after_step]
        self.dropped = [row for row, _ in lines if row["step"] > after_step]
        text = b"".join(kept)
        if not self.path.exists() or self.path.read_bytes() != text:
            replace_file(self.path, text)

    def write(self, row: Row) -> None:
        """Appends a row.

        Raises:
          ValueError: for a value that JSON has no word for, such as NaN.
        """
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with open(self.path, "ab") as file:
            file.write(line)

    def sync(self) -> None:
        """Waits until the rows are on the disk."""
        with open(self.path, "ab") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Syncs; there is nothing else to let go of."""
        self.sync()


def _lines(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")  # what follows the last line break was cut short; mostly nothing
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError("its step is no number")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is not a row of metrics ({error!r}): repair or move the file."
            ) from error
        rows.append((row, line + b"\n"))
    return rows


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a metrics file, without a torn last line.

    Raises:
      FileNotFoundError: where there is none.
      ValueError: for a line that is not a row.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: there are no metrics here; name the metrics.jsonl of a run.")
    return [row for row, _ in _lines(Path(path))]


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@runtime_checkable
class Tracker(Protocol):
    """Another place for rows."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Rows as TensorBoard scalars, through the tensorboardX package."""

    def __init__(self, folder: Path) -> None:
        self._writer = _optional("tensorboardX").SummaryWriter(str(folder / "tensorboard"))

    def write(self, row: Row) -> None:
        for name, value in flat(row).items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Rows as a W&B run that goes on under the same id after a restart; WANDB_MODE=offline works."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str) -> None:
        self._run = _optional("wandb").init(
            project="bltjax", name=folder.name, id=identity, dir=str(folder), config=dict(config), resume="allow"
        )

    def write(self, row: Row) -> None:
        self._run.log({k: v for k, v in flat(row).items() if k != "step"}, step=row["step"])

    def close(self) -> None:
        self._run.finish()


def trackers(names: Sequence[str], folder: Path, config: Mapping[str, Any], identity: str) -> list[Tracker]:
    """The trackers of these names.

    Args:
      names: any of `TRACKERS`.
      folder: of the run.
      config: what the tracker shows beside the run.
      identity: the same for every restart of one run.

    Raises:
      ValueError: for an unknown name.
      ImportError: for one whose package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"track={name!r}: choose from {', '.join(TRACKERS)}.")
    return [TensorBoard(folder) if n == "tensorboard" else WeightsAndBiases(folder, config, identity) for n in names]


def _optional(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{package} is not installed: pip install 'bltjax[tracking]', or do not ask for it."
        ) from error


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, keys joined by "/"."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        out.update(flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return out


class Progress:
    """One line about a run: rewritten in place on a terminal, printed now and then elsewhere."""

    def __init__(
        self,
        label: str = "",
        stream: TextIO | io.TextIOBase | None = None,
        every_seconds: float = 10.0,
        silent: bool = False,
    ) -> None:
        """
        Args:
          label: put in front of the line.
          stream: where to; None: standard error.
          every_seconds: at most one line in this time where the stream is no terminal (the last step always).
          silent: shows nothing; for all processes of a run but the first.
        """
        self._stream = io.StringIO() if silent else sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._label = f"{label}: " if label else ""
        self._every = every_seconds
        self._last = -math.inf
        self._width = 0

    def show(self, row: Row, total_steps: int) -> None:
        """Shows a row of metrics."""
        now = time.monotonic()
        last = row["step"] == total_steps
        if not self._terminal and not last and now - self._last < self._every:
            return
        self._last = now
        rate = row["timing"]["bytes_per_second"]
        seconds = row["timing"]["seconds_per_step"] * (total_steps - row["step"])
        bits = "-" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}"
        text = (
            f"{self._label}step {row['step']:,}/{total_steps:,}  {readable(row['bytes_seen'], 'B')}  "
            f"{bits} bits/byte  {readable(rate, 'B/s')}  {_speed(row)}{duration(seconds)} left"
        )
        if self._terminal:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
            if last:
                self.end()
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def say(self, message: str) -> None:
        """A message on a line of its own."""
        self.end()
        self._stream.write(f"{self._label}{message}\n")
        self._stream.flush()

    def end(self) -> None:
        """Leaves the rewritten line as it stands."""
        if self._terminal and self._width:
            self._stream.write("\n")
            self._width = 0


def _speed(row: Row) -> str:
    timing = row["timing"]
    if "flops_per_second" not in timing:
        return ""
    share = f" ({timing['of_peak']:.1%} of peak)" if "of_peak" in timing else ""
    return f"{readable(timing['flops_per_second'], 'FLOP/s')}{share}  "


# What JAX calls a device, by what `flops.PEAKS` calls its chip; the more special names come first.
_KINDS = {
    "v6 lite": "tpu-v6e", "v6e": "tpu-v6e", "v5 lite": "tpu-v5e", "v5e": "tpu-v5e", "v5": "tpu-v5p", "v4": "tpu-v4",
    "h100": "nvidia-h100", "a100": "nvidia-a100",
}  # fmt: skip


def peak_of(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of a device by the name that JAX has for it, such as "TPU v5 lite"; None if not known."""
    found = [chip for name, chip in _KINDS.items() if name in device_kind.lower()]
    return PEAKS[found[0]] if found else None


def readable(value: float, unit: str) -> str:
    """A number with a decimal prefix: 12,345,678 B is "12.3 MB"."""
    prefixes = ("", "k", "M", "G", "T", "P")
    index = 0
    while value >= 999.5 and index < len(prefixes) - 1:
        value, index = value / 1000, index + 1
    return f"{value:.3g} {prefixes[index]}{unit}"


def duration(seconds: float) -> str:
    """Seconds as "45 s", "3 min 20 s" or "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
