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
      links: bytes per second that it sends to other chips of its slice or node, over all its links together.
      node: GPUs that those links join; None for TPUs, whose links join a slice of any size.
      network: bytes per second that it sends beyond its node; None where that is not known.
    """

    peak: float
    memory: float
    bandwidth: float
    links: float
    node: int | None = None
    network: float | None = None


CHIPS: dict[str, Chip] = {
    "v4": Chip(PEAKS["tpu-v4"], 32 * 2**30, 1228e9, 300e9),
    "v5e": Chip(PEAKS["tpu-v5e"], 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(PEAKS["tpu-v5p"], 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(PEAKS["tpu-v6e"], 32 * 2**30, 1640e9, 448e9),
    # SXM5, 80 GB; NVLink one way, and a network card of 400 Gb/s for each GPU
    "h100": Chip(PEAKS["nvidia-h100"], 80e9, 3350e9, 450e9, node=8, network=50e9),
}


def chip(topology: str) -> Chip:
    """The chip of a topology, such as "v5p:4x4x8" or "h100:8".

    Raises:
      ValueError: for one that is not in the table.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        known = ", ".join(CHIPS)
        raise ValueError(f"topology={topology!r}: chips known here are {known}; write one as v5e:4x4 or h100:8.")
    return CHIPS[name]
