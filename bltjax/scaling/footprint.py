"""Memory of one device during a training step of a run.

What a run must hold is counted by shapes: parameters, both moments of the optimiser, and gradients, split over the
devices as `bltjax.sharding` splits them. What a step makes on the way (activations, logits, gathered kernels) is the
compiler's choice: the same step of `blt-400m` takes 5.9 GiB of it on one TPU and 7.4 on another (docs/pods.md). So it
has no formula here: it is asked of the compiler, or left out, and then the sum is a lower bound and says so.
"""

import dataclasses
import functools
import math

import jax

from bltjax.ahead import Plan, compile_ahead
from bltjax.config import MeshConfig, ModelConfig
from bltjax.families import abstract_params
from bltjax.scaling.machines import Machine
from bltjax.scaling.plan import RunPlan
from bltjax.sharding import make_mesh, parameter_axes, parameter_paths
from bltjax.step import compile_step

_MOMENTS = {"float32": 4, "bfloat16": 2}  # bytes of a number as the first moment is kept


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of one device.

    Attributes:
      parameters, optimizer: what is held between steps.
      gradients: as large as the parameters; 0 where the compiler counts them among `scratch`.
      scratch: all else that a step makes, at its highest; None: not compiled, so not known.
    """

    parameters: int
    optimizer: int
    gradients: int
    scratch: int | None = None

    @property
    def total(self) -> int:
        """All of it; without scratch a lower bound."""
        return self.parameters + self.optimizer + self.gradients + (self.scratch or 0)

    @property
    def is_bound(self) -> bool:
        return self.scratch is None


def held(plan: RunPlan, devices: int) -> Footprint:
    """What each of so many devices must hold of a run, counted by shapes.

    Raises:
      ValueError: for rows or a parameter that do not divide over the devices, as training would refuse them.
    """
    rows = plan.train.rows.batch
    if rows % devices:
        raise ValueError(f"batch={rows}: rows do not divide over {devices} devices; each trains on as many as others.")
    parameters = _held_parameters(plan.train.model, devices)
    moments = _MOMENTS[plan.train.optim.first_moment] + 4
    return Footprint(4 * parameters, moments * parameters, 4 * parameters)


@functools.lru_cache(maxsize=256)
def _shapes(model: ModelConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((path, tuple(leaf.shape)) for path, leaf in parameter_paths(abstract_params(model)))


def _held_parameters(model: ModelConfig, devices: int) -> int:
    count = 0
    for path, shape in _shapes(model):
        axes = parameter_axes(path)
        parts = devices if "shard" in axes else 1
        split = shape[axes.index("shard")] if "shard" in axes else parts
        if split % parts:
            raise ValueError(f"devices={devices}: parameter {path!r} of shape {shape} does not divide over them.")
        count += math.prod(shape) // parts
    return count


def compiled(plan: RunPlan, machine: Machine, positions: int) -> Footprint:
    """The same with what the compiler says of the very step, for the machine's topology or for the devices here.

    Args:
      positions: inputs of a row.

    Raises:
      ValueError: where the machine has no topology and is not the one that this runs on.
      RuntimeError: from the compiler, as where the step needs more memory than a device has.
      ImportError: where the compiler for the topology is not installed.
    """
    train = plan.train
    slots = train.rows.slots if train.model.reads_patches else None
    base = held(plan, machine.devices)
    if machine.topology is not None:
        asked = Plan(train.model, machine.topology, MeshConfig(), train.rows.batch, positions, slots)
        report = compile_ahead(asked)
        if report.devices != machine.devices:
            raise ValueError(f"[{machine.name}] topology={machine.topology!r} has {report.devices} devices, not "
                             f"{machine.devices}: change one of the two.")  # fmt: skip
        return dataclasses.replace(base, gradients=0, scratch=round(report.scratch + report.batch))
    here = jax.devices()
    if here[0].platform != machine.platform or len(here) < machine.devices:
        raise ValueError(
            f"compile: [{machine.name}] has no topology to compile for, and this process sees {len(here)} "
            f"{here[0].platform} devices, not {machine.devices} of {machine.platform}. Give it one, or compile there."
        )
    mesh = make_mesh(devices=here[: machine.devices])
    step = compile_step(train.model, train.optim, mesh, train.accumulation, slots)
    memory = step.lower(train.rows.batch, positions).compile().memory_analysis()
    if memory is None:
        raise RuntimeError(f"the compiler for {here[0].platform} does not say what a step needs.")
    return dataclasses.replace(base, gradients=0, scratch=int(memory.temp_size_in_bytes))
