"""Plans a study before anything is spent on it: every run with its FLOPs, bytes, steps, memory, hours and money.

    python scripts/plan.py experiments/studies/isoflop.py --machine cpu --probe
    python scripts/plan.py experiments/studies/h100.py --machine h100 --max-money 5000 --json plan.json

A study is a Python file that says `study = Study(...)`. Machines stand in scripts/machines.toml, or in --machines: copy
it and fill in what you pay. What the study has made already (corpus, tokenizer, entropy model) is measured; before that
rows are planned as they are wanted, and marked ~. A study above a cap is refused with status 1. See docs/planning.md.
"""

import dataclasses
import json
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro

# Before JAX starts: a plan asks for no accelerator unless it measures one, and no machine about itself.
if "--probe" not in sys.argv:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from bltjax.scaling import ledger
from bltjax.scaling.edges import BYTES_PER_PARAMETER, laws_of, predictions
from bltjax.scaling.footprint import compiled, held
from bltjax.scaling.forecast import Forecast, forecast
from bltjax.scaling.inputs import Inputs
from bltjax.scaling.machines import Machine, named_machine
from bltjax.scaling.probe import check_here, fraction_toml, probe_study
from bltjax.scaling.spend import Bill, OverCap, bill, input_positions, label_of
from bltjax.scaling.studyfile import command, read_study
from bltjax.scaling.sweep import claim
from bltjax.scaling.throughput import measure

MACHINES = Path(__file__).resolve().parent / "machines.toml"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Costs a study."""

    study: Annotated[Path, tyro.conf.Positional]
    """A Python file that says `study = Study(...)`."""
    machine: str
    """Name of a machine in the file of machines."""
    machines: Path = MACHINES
    """TOML file of machines, dated, with peak, price and measured share of the peak."""
    devices: int | None = None
    """Devices to use; None: as many as the machine has."""
    prepare: bool = False
    """Make what the study's rows are measured with first: corpus, tokenizers, entropy model. The study finds them."""
    probe: bool = False
    """Measure the share of the peak of every model with 20 training steps on the devices here, and use that."""
    compile: bool = False
    """Have every step compiled for the machine, so that memory counts all that it makes on the way."""
    max_money: float | None = None
    """Refuse a study that costs more, in the machine's currency."""
    max_device_hours: float | None = None
    """Refuse a study that takes more hours of devices."""
    bytes_per_parameter: float = BYTES_PER_PARAMETER
    """Where optima are predicted: bytes of text for each parameter but those of look-up tables."""
    fit: Path | None = None
    """table.csv or .parquet of an earlier study, by whose laws optima are predicted instead."""
    json: Path | None = None
    """Where to write every run in full as JSON."""
    csv: Path | None = None
    """Where to write every run in full as CSV."""
    markdown: Path | None = None
    """Where to write the tables as Markdown."""

    def __post_init__(self) -> None:
        for name in ("max_money", "max_device_hours"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value}: must be a number that is not negative.")
        if not (math.isfinite(self.bytes_per_parameter) and self.bytes_per_parameter > 0):
            raise ValueError(f"bytes_per_parameter={self.bytes_per_parameter}: must be a positive number.")


def say(message: str) -> None:
    sys.stderr.write(f"{message}\n")


def costed(arguments: Arguments, planned: Forecast, machine: Machine) -> Bill:
    """The bill of a study, with memory, and optima predicted."""
    labels = {label_of(planned.study, run.plan): run.plan for run in planned.runs}
    footprints = {
        label: compiled(plan, machine, input_positions(plan)) if arguments.compile else held(plan, machine.devices)
        for label, plan in labels.items()
    }
    laws = None if arguments.fit is None else laws_of(arguments.fit)
    found, notes = predictions([run.plan for run in planned.runs], arguments.bytes_per_parameter, laws)
    return bill(planned, machine, footprints, found, notes)


def main(arguments: Arguments) -> None:
    study = read_study(arguments.study)
    machine = named_machine(arguments.machines, arguments.machine)
    if arguments.devices is not None:
        machine = dataclasses.replace(machine, devices=arguments.devices)
    machine.peak_of(study.dtype)  # whatever does not fit is found before anything is made
    if arguments.prepare:
        claim(study)
    if study.equal == "seconds" and arguments.prepare and arguments.probe:
        check_here(machine)
        measure(study, Inputs(study, say), say, machine.devices)
    planned = forecast(study, say, arguments.prepare)
    probes = probe_study(planned, machine, say) if arguments.probe else {}
    if probes:
        measured = {label: one.fraction for label, one in probes.items()}
        machine = dataclasses.replace(machine, fraction={**machine.fraction, **measured})
    found = costed(arguments, planned, machine)
    print(ledger.as_text(found))
    if probes:
        print(f"\nWhat was measured, to be kept in {arguments.machines.name}:\n{fraction_toml(machine, probes)}")
    runs = shlex.join(["python", "scripts/study.py", "run", str(arguments.study)])
    print(f"\nTo run it:\n{runs if study.variants else command(study)}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(ledger.as_json(found), indent=1, default=str, allow_nan=False) + "\n")
    if arguments.csv is not None:
        arguments.csv.write_text(ledger.as_csv(found))
    if arguments.markdown is not None:
        arguments.markdown.write_text(ledger.as_markdown(found))
    found.check(arguments.max_money, arguments.max_device_hours)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except OverCap as over:
        sys.exit(f"refused: {over}")
    except KeyboardInterrupt:
        sys.exit("interrupted.")
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.exit(f"error: {error}")
