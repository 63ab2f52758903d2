"""The devices of machines that are not there, for a compiler: slices of TPUs and nodes of GPUs.

A TPU topology is a chip and the shape of a slice, `v5p:4x4x8`. One of GPUs is a chip, the number of nodes and the GPUs
of each, `h100:16x8`; a single node is `h100:8`. The compiler for GPUs knows none by name: it reads a description of its
target, of which `targets/` holds one for each.
"""

import contextlib
import math
from collections.abc import Iterator
from importlib import resources
from typing import Any
from unittest import mock

from jax.experimental import topologies

from bltjax.chips import chip


def nodes(topology: str) -> tuple[int, int]:
    """How many nodes, and how many GPUs in each: (16, 8) for "h100:16x8".

    Raises:
      ValueError: for what is no topology of GPUs, or for more GPUs in a node than its links join.
    """
    name, _, shape = topology.partition(":")
    most = chip(topology).node
    sizes = [int(size) for size in shape.split("x") if size.isdecimal()]
    if most is None or len(sizes) != shape.count("x") + 1 or len(sizes) > 2 or min(sizes) < 1:
        raise ValueError(f"topology={topology!r}: write GPUs as h100:8, or as h100:16x8 for 16 nodes of 8.")
    if sizes[-1] > most:
        many = -(-math.prod(sizes) // most)
        raise ValueError(f"topology={topology!r}: a node has {most} GPUs at most; write {name}:{many}x{most}.")
    return (1, *sizes)[-2], sizes[-1]


def target(topology: str) -> str:
    """What the compiler for GPUs is told of one: a GpuTargetConfigProto as text."""
    return resources.files("bltjax").joinpath("targets", f"{topology.partition(':')[0]}.txtpb").read_text()


def devices(topology: str, slices: int = 1) -> list[Any]:
    """The devices of a topology, in order; they can be compiled for, and nothing can be run on them.

    Args:
      slices: of TPUs, joined by the slow network. Nodes of GPUs stand in the topology.

    Raises:
      ValueError: for an unknown chip or shape.
      ImportError: where the compiler for that chip is not installed.
    """
    if chip(topology).node is None:
        options = {"num_slices": slices} if slices > 1 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    if slices > 1:
        raise ValueError(f"slices={slices}: is for TPUs; write nodes of GPUs as h100:16x8.")
    several, each = nodes(topology)
    # Slices, hosts of a slice, devices of a host: a node is a slice, as JAX takes it to be where the GPUs are real.
    options = {"topology": f"{several}x1x{each}", "target_config": target(topology)}
    try:
        described = topologies.get_topology_desc(platform="cuda", topology_name=topology, **options)
    except NotImplementedError as error:
        raise ImportError(f"topology={topology!r}: its compiler is missing; install the extra cuda-compile.") from error
    return described.devices


CUDNN = 91500  # the release that JAX is told of where none is installed, 9.15


@contextlib.contextmanager
def traceable(topology: str) -> Iterator[None]:
    """While this lasts, programs for the GPUs of a topology may hold calls of cuDNN, which need not be installed.

    JAX has no such switch: it asks the library for its release, only to refuse old ones, wherever attention by cuDNN is
    traced. The compiler itself needs nothing of the library.
    """
    if chip(topology).node is None:
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo as calls

    installed = calls.check_cudnn_version

    def release() -> int:
        try:
            return installed()
        except RuntimeError:
            return CUDNN

    with mock.patch.object(calls, "check_cudnn_version", release):
        yield
