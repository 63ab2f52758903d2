"""A training step compiled for a pod that is not there: whether it fits, what it computes, what it sends, how long.

The very program that `train.fit` runs is compiled for a named topology by the compiler for TPUs (extra `tpu`) or that
for NVIDIA GPUs (extra `cuda-compile`), on any machine; nothing is run. What comes back is read from the compiled
program, and set beside what the model needs.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bltjax import topology
from bltjax.chips import NOTED, Chip, chip
from bltjax.config import MeshConfig, ModelConfig, OptimConfig
from bltjax.flops import flops_per_byte
from bltjax.hlo import Program, Traffic, by_axis
from bltjax.least import least_traffic
from bltjax.movement import memory_traffic
from bltjax.sharding import make_mesh
from bltjax.step import TrainStep, compile_step

ASSUMPTIONS = (
    f"chip figures as their makers state them ({NOTED}); products at the peak; main memory read and written by every "
    "instruction that is not fused; all links of a chip busy, and the network card of every GPU where nodes talk; "
    "compute, memory and links each overlapped in full"
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be compiled."""

    model: ModelConfig
    topology: str  # chip:shape, such as v5e:4x4, or nodes x GPUs, such as h100:16x8
    mesh: MeshConfig = MeshConfig()
    rows: int = 1  # of the global batch
    positions: int = 8192  # bytes (or tokens) of a row
    slots: int | None = None  # patch slots of a row, for BLT
    accumulation: int = 1
    slices: int = 1


@dataclasses.dataclass(frozen=True)
class Report:
    """What a compiled step needs. Sizes are bytes and FLOPs of one device unless said otherwise.

    Attributes:
      parameters, optimizer, batch: what the step is given.
      scratch: activations, gradients and all else that it makes on the way.
      memory: of a chip.
      model_flops: of the whole step by the accounting `full`, divided by the devices.
      compiled_flops: of the matrix products in the compiled program, loops counted as often as they run.
      traffic: what devices send each other.
      least: of that, what this sharding can't do without, by mesh axes; see `bltjax.least`.
      seconds: what compute, memory and links each take at least.
    """

    devices: int
    parameters: float
    optimizer: float
    batch: float
    scratch: float
    memory: float
    model_flops: float
    compiled_flops: float
    traffic: tuple[Traffic, ...]
    least: dict[str, float]
    seconds: dict[str, float]
    lower_seconds: float
    compile_seconds: float
    assumptions: str = ASSUMPTIONS

    @property
    def free(self) -> float:
        """Bytes of a chip's memory that are left; negative where the step does not fit."""
        return self.memory - self.parameters - self.optimizer - self.batch - self.scratch

    @property
    def step_seconds(self) -> float:
        """The longest of compute, memory and links: no step is faster."""
        return max(self.seconds.values())


def compile_ahead(plan: Plan) -> Report:
    """Compiles the training step of a plan and reads the program.

    Raises:
      ValueError: for an unknown chip, a mesh or batch that does not fit, or parameters that do not divide.
      RuntimeError: from the compiler, as where the step needs more memory than a chip has.
    """
    machine = chip(plan.topology)
    mesh = make_mesh(plan.mesh, topology.devices(plan.topology, plan.slices))
    nodes = _nodes(plan, mesh)
    begin = time.perf_counter()
    with topology.traceable(plan.topology):
        step = compile_step(plan.model, OptimConfig(), mesh, plan.accumulation, plan.slots)
        lowered = step.lower(plan.rows, plan.positions)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    program = Program(compiled.as_text() or "", dict(mesh.shape))
    memory: Any = compiled.memory_analysis()
    parameters, optimizer = (_on_one_device(tree) for tree in _state_parts(step))
    flops = program.flops
    talk = talk_seconds(machine, nodes, mesh.axis_names, by_axis(program.traffic))
    return Report(
        devices=mesh.size,
        parameters=parameters,
        optimizer=optimizer,
        batch=max(0.0, memory.argument_size_in_bytes - parameters - optimizer),
        scratch=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        memory=machine.memory,
        model_flops=model_flops(plan) / mesh.size,
        compiled_flops=flops,
        traffic=tuple(program.traffic),
        least=least_traffic(plan.model, mesh.shape, plan.rows, plan.positions, plan.slots, plan.accumulation),
        seconds={"compute": flops / machine.peak, "memory": memory_traffic(program) / machine.bandwidth, **talk},
        lower_seconds=middle - begin,
        compile_seconds=end - middle,
    )


def _nodes(plan: Plan, mesh: Mesh) -> np.ndarray:
    """The node of GPUs that each device of a mesh lies in; 0 for all TPUs."""
    if chip(plan.topology).node is None:
        return np.zeros(mesh.devices.shape, int)
    several, each = topology.nodes(plan.topology)
    # Real nodes are told apart by `make_mesh`; devices that can only be compiled for don't say where they lie.
    if mesh.shape["replica"] % several:
        raise ValueError(
            f"mesh(replica={mesh.shape['replica']}) over {several} nodes: must be a multiple of them, since only "
            "replicas may talk over the slow network between nodes."
        )
    return np.vectorize(lambda device: device.id // each, otypes=[int])(mesh.devices)


def talk_seconds(
    machine: Chip, nodes: np.ndarray, names: tuple[str, ...], sent: Mapping[tuple[str, ...], float]
) -> dict[str, float]:
    """What links take at least, and the network where nodes of GPUs talk.

    Args:
      nodes: the node that each device of a mesh lies in.
      names: of the axes of that mesh.
      sent: bytes that each device sends along some of its axes; () for all of them.
    """
    found = {"links": 0.0}
    for axes, size in sent.items():
        group = nodes[tuple(slice(None) if name in (axes or names) else 0 for name in names)]
        parts = len(np.unique(group))
        if machine.network is None or parts == 1:
            found["links"] += size / machine.links
        else:  # each member of a group has a network card of its own, and what leaves a node leaves it once
            found["network"] = found.get("network", 0.0) + size * parts / group.size / machine.network
    return found


def _state_parts(step: TrainStep) -> tuple[Any, Any]:
    state = step.abstract_state
    return state.params, (state.opt_state, state.recent)


def _on_one_device(tree: Any) -> float:
    return math.fsum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def model_flops(plan: Plan) -> float:
    """FLOPs of one training step over all devices by the accounting `full`, every place of a row in use."""
    patch_size = plan.positions / plan.slots if plan.model.reads_patches and plan.slots else 1.0
    per_byte = flops_per_byte(plan.model, patch_size, plan.positions, "full").training
    return per_byte * plan.rows * plan.positions
