"""Where the wall time of a run went, over all its restarts."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

BUCKETS = ("start", "compile", "data wait", "step", "checkpoint", "evaluation", "lost to restarts")


class WallTime:
    """Seconds by what they were spent on; what nothing else claims is the current default, "start" at first."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(BUCKETS, 0.0)
        self.default = "start"
        self._mark = time.perf_counter()

    def tick(self, name: str | None = None) -> None:
        """Books the time since the last tick to a bucket; None: the default."""
        now = time.perf_counter()
        self.seconds[self.default if name is None else name] += now - self._mark
        self._mark = now

    def skip(self) -> None:
        """Leaves the time since the last tick out: it is booked elsewhere."""
        self._mark = time.perf_counter()

    @contextmanager
    def spent(self, name: str) -> Iterator[None]:
        """Books what happens inside to a bucket."""
        self.tick()
        try:
            yield
        finally:
            self.tick(name)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds what earlier parts of the run took."""
        for name, value in seconds.items():
            self.seconds[name] += value


def table(seconds: Mapping[str, float]) -> str:
    """A line for each bucket: seconds, and the share of all."""
    total = sum(seconds.values())
    rows = [(name, value) for name, value in seconds.items() if value > 0] + [("all", total)]
    return "\n".join(f"{name:<18}{value:>12,.1f} s {value / max(total, 1e-9):>7.1%}" for name, value in rows)
