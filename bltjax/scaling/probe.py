"""The share of a machine's peak that training reaches, measured with real steps before anything is booked.

How long a step takes is measured as `throughput` does it.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping

import jax

from bltjax.config import RowsConfig, TrainConfig
from bltjax.scaling.forecast import Forecast
from bltjax.scaling.machines import Machine
from bltjax.scaling.spend import input_positions, label_of, patcher_cost, row_flops
from bltjax.scaling.throughput import STEPS, step_seconds


@dataclasses.dataclass(frozen=True)
class Probe:
    """What was measured of one model.

    Attributes:
      seconds: of a step, the median.
      fraction: of the peak of the devices used, by the model's own FLOPs in the full accounting.
      devices: on which it was measured.
    """

    seconds: float
    fraction: float
    devices: int


def check_here(machine: Machine) -> None:
    """Refuses to measure one machine on another (ValueError)."""
    here = jax.devices()[0].platform
    if here != machine.platform:
        raise ValueError(
            f"probe: [{machine.name}] is a machine of {machine.platform}, and this process sees {here} devices. Probe "
            "on the machine itself, and write what is measured under its [fraction]."
        )


def probe(
    train: TrainConfig,
    positions: int,
    row_flops: float,
    machine: Machine,
    steps: int = STEPS,
    timer: Callable[[], float] = time.perf_counter,
) -> Probe:
    """Takes steps of a training on the devices here, as many of them as the machine has.

    Where there are fewer, each gets the rows that it would have in the run, and what devices send one another beyond
    them is not measured.

    Args:
      positions: inputs of a row.
      row_flops: training FLOPs of a row, by the model's own in the full accounting.

    Raises:
      ValueError: on another kind of machine, or for rows that do not divide.
    """
    check_here(machine)
    count = min(len(jax.devices()), machine.devices)
    rows = train.rows.batch
    if rows % machine.devices:
        raise ValueError(f"batch={rows}: rows do not divide over the {machine.devices} devices of [{machine.name}].")
    rows = rows // machine.devices * count
    train = dataclasses.replace(train, rows=dataclasses.replace(train.rows, batch=rows))
    seconds = step_seconds(train, positions, count, steps, timer)
    peak = count * machine.peak_of(train.model.compute.dtype)
    return Probe(seconds, rows * row_flops / seconds / peak, count)


def probe_study(
    forecast: Forecast, machine: Machine, say: Callable[[str], None], steps: int = STEPS
) -> dict[str, Probe]:
    """Measures every model of a study, small ones reaching less than large ones, and the entropy model if it has one.

    Returns:
      What was measured, by the names under which a machine's [fraction] is looked up.

    Raises:
      ValueError: as `probe` does.
    """
    check_here(machine)
    study = forecast.study
    asked: dict[str, tuple[TrainConfig, int, float]] = {}
    for run in forecast.runs:
        plan = run.plan
        asked.setdefault(label_of(study, plan), (plan.train, input_positions(plan), row_flops(plan)))
    if forecast.by_entropy:
        rows = RowsConfig(bytes=study.row_bytes, batch=study.batch)
        flops = 3 * patcher_cost(study).model * study.row_bytes
        asked[study.entropy_model] = (TrainConfig(study.patcher_model(), steps, rows=rows), study.row_bytes, flops)
    found = {}
    for label, work in asked.items():
        found[label] = probe(*work, machine, steps)
        of = (
            ""
            if found[label].devices == machine.devices
            else f" on {found[label].devices} of {machine.devices} devices"
        )
        say(f"{label}: {found[label].seconds * 1e3:.3g} ms a step, {found[label].fraction:.3%} of peak{of}")
    return found


def fraction_toml(machine: Machine, probes: Mapping[str, Probe]) -> str:
    """What was measured, as a table for the machine's file."""
    lines = [f'"{label}" = {one.fraction:.4g}' for label, one in probes.items()]
    return "\n".join([f"[{machine.name}.fraction]", *lines])
