"""What a run has counted so far, and the rows of metrics that come of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bltjax.loss import bits_per_byte
from bltjax.step import StepMetrics


@dataclasses.dataclass
class Tally:
    """What a run has counted so far; it lies in the checkpoints. The interval is that since the last row of metrics.

    A step whose update was skipped trained nothing: its batch is in no sum, and it counts as skipped alone.
    """

    bytes_seen: int = 0  # raw bytes trained on
    device_seconds: float = 0.0  # taken by steps, times devices; compiling, saving and scoring are left out
    positions: int = 0  # scored targets
    patches: int = 0
    skipped: int = 0  # steps of the whole run
    bad: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # those skipped in a row up to now
    steps: int = 0  # of the interval that trained, like all that follows
    skips: int = 0
    seconds: float = 0.0
    gradient_norms: float = 0.0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, step: int, metrics: StepMetrics, seconds: float, devices: int) -> None:
        """Counts step number `step`, from 1, by its metrics on the host."""
        self.seconds += seconds
        self.device_seconds += seconds * devices
        if metrics.skipped:
            self.skipped += 1
            self.skips += 1
            nats = float(metrics.sums.byte_nats) + float(metrics.sums.special_nats)
            loss = nats / max(int(metrics.sums.bytes), 1)
            # As text, since JSON has no word for what is not finite.
            self.bad.append({"step": step, "nats_per_byte": str(loss), "gradient_norm": str(metrics.gradient_norm)})
            return
        counts = {"positions": int(metrics.positions), "patches": int(metrics.patches)}
        nats = {name: float(getattr(metrics.sums, name)) for name in ("byte_nats", "special_nats")}
        of_nats = {name: int(getattr(metrics.sums, name)) for name in ("bytes", "specials")}
        for name, value in {**nats, **of_nats, **counts}.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.bytes_seen += of_nats["bytes"]
        self.positions += counts["positions"]
        self.patches += counts["patches"]
        self.gradient_norms += float(metrics.gradient_norm)
        self.steps += 1
        self.bad = []

    def row(self, step: int, rate: float, room: Mapping[str, int]) -> dict[str, Any]:
        """Closes the interval and gives its row; all of it but "timing" is the same however often a run was killed.

        Where every step of the interval was skipped, what has no mean is None.

        Args:
          step: the last of the interval.
          rate: the learning rate of that step.
          room: "positions", and for BLT "patches", of one step.
        """
        sums = {name: self.sums.get(name, 0) for name in ("byte_nats", "bytes", "special_nats", "specials")}
        steps, seconds = self.steps, max(self.seconds, 1e-9)
        row = {
            "step": step,
            "bytes_seen": self.bytes_seen,
            "bits_per_byte": bits_per_byte(sums["byte_nats"], int(sums["bytes"])) if steps else None,
            "gradient_norm": self.gradient_norms / steps if steps else None,
            "rate": rate,
            "skipped": self.skips,
            "sums": sums,
            "fill": {name: self.sums[name] / (steps * places) if steps else None for name, places in room.items()},
            "timing": {
                "seconds": seconds,
                "seconds_per_step": seconds / (steps + self.skips),
                "bytes_per_second": sums["bytes"] / seconds,
            },
        }
        self.steps, self.skips, self.seconds, self.gradient_norms, self.sums = 0, 0, 0.0, 0.0, {}
        return row
