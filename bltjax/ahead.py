"""A training step compiled for a pod that is not there: whether it fits, what it computes, what it sends, how long.

The very program that `train.fit` runs is compiled by the TPU compiler for a named topology, on any machine (extra
`tpu`); nothing is run. What comes back is read from the compiled program, and set beside what the model needs.
"""

import dataclasses
import math
import time
from typing import Any

import jax
from jax.experimental import topologies

from bltjax import families
from bltjax.chips import NOTED, Chip, chip
from bltjax.config import BLTConfig, MeshConfig, ModelConfig, OptimConfig
from bltjax.flops import flops_per_byte
from bltjax.hlo import Program, Traffic, by_axis
from bltjax.sharding import make_mesh, parameter_axes, parameter_paths
from bltjax.step import TrainStep, compile_step

ASSUMPTIONS = (
    f"chip figures as their makers state them ({NOTED}); products at the peak; main memory read and written by every "
    "instruction that is not fused; all links of a chip busy; compute, memory and links each overlapped in full"
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be compiled."""

    model: ModelConfig
    topology: str  # chip:shape, such as v5e:4x4
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
      least: what this sharding can't do without, by mesh axes: each kernel gathered once forward and once backward,
        each gradient summed once, what is looked up exchanged there and back. For axes that are absent it is not worked
        out.
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
    options = {"num_slices": plan.slices} if plan.slices > 1 else {}
    described = topologies.get_topology_desc(platform="tpu", topology_name=plan.topology, **options)
    mesh = make_mesh(plan.mesh, described.devices)
    step = compile_step(plan.model, OptimConfig(), mesh, plan.accumulation, plan.slots)
    begin = time.perf_counter()
    lowered = step.lower(plan.rows, plan.positions)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    program = Program(compiled.as_text() or "", dict(mesh.shape))
    memory: Any = compiled.memory_analysis()
    parameters, optimizer = (_on_one_device(tree) for tree in _state_parts(step))
    flops = program.flops
    crossed = by_axis(program.traffic)
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
        least=least_traffic(plan, dict(mesh.shape)),
        seconds=_roofline(machine, flops, program.memory_traffic, crossed),
        lower_seconds=middle - begin,
        compile_seconds=end - middle,
    )


def _roofline(machine: Chip, flops: float, memory: float, crossed: dict[tuple[str, ...], float]) -> dict[str, float]:
    return {
        "compute": flops / machine.peak,
        "memory": memory / machine.bandwidth,
        "links": math.fsum(crossed.values()) / machine.links,
    }


def _state_parts(step: TrainStep) -> tuple[Any, Any]:
    state = step.abstract_state
    return state.params, (state.opt_state, state.recent)


def _on_one_device(tree: Any) -> float:
    return math.fsum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def model_flops(plan: Plan) -> float:
    """FLOPs of one training step over all devices by the accounting `full`, every place of a row in use."""
    patch_size = plan.positions / plan.slots if isinstance(plan.model, BLTConfig) and plan.slots else 1.0
    per_byte = flops_per_byte(plan.model, patch_size, plan.positions, "full").training
    return per_byte * plan.rows * plan.positions


def least_traffic(plan: Plan, mesh: dict[str, int]) -> dict[str, float]:
    """Bytes that each device must send in a step along `data`, with nothing else split; see `Report.least`."""
    data, model = mesh["data"], mesh["model"]
    if data == 1:
        return {}
    width = 2 if plan.model.compute.dtype == "bfloat16" else 4
    share = (data - 1) / data
    kernels = tables = 0.0
    for path, leaf in parameter_paths(families.abstract_params(plan.model)):
        axes = parameter_axes(path)
        size = math.prod(leaf.shape) / (model if "heads" in axes or "hidden" in axes else 1)
        if path.endswith("table"):
            tables += leaf.shape[1]
        elif "shard" in axes:
            kernels += size
    places = plan.rows * plan.positions / (mesh["replica"] * data * mesh["sequence"])
    kernel_bytes = kernels * share * (2 * width * plan.accumulation + 4)
    return {"data": kernel_bytes + 2 * places * tables * width * share}
