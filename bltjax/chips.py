"""What one chip can do, as its maker states it. Figures noted 2026-11-22; check them before booking."""

import dataclasses

from bltjax.flops import PEAKS

NOTED = "2026-11-22"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      peak: dense bfloat16 FLOP/s.
      memory: bytes of its main memory.
      bandwidth: bytes per second to and from it.
      links: bytes per second that it sends to other chips of its slice, over all its links together.
    """

    peak: float
    memory: float
    bandwidth: float
    links: float


CHIPS: dict[str, Chip] = {
    "v4": Chip(PEAKS["tpu-v4"], 32 * 2**30, 1228e9, 300e9),
    "v5e": Chip(PEAKS["tpu-v5e"], 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(PEAKS["tpu-v5p"], 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(PEAKS["tpu-v6e"], 32 * 2**30, 1640e9, 448e9),
}


def chip(topology: str) -> Chip:
    """The chip of a topology, such as "v5p:4x4x8".

    Raises:
      ValueError: for one that is not in the table.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise ValueError(f"topology={topology!r}: chips known here are {', '.join(CHIPS)}; write one as v5e:4x4.")
    return CHIPS[name]
