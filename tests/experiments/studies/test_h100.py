from pathlib import Path

from bltjax.scaling.footprint import held
from bltjax.scaling.forecast import forecast
from bltjax.scaling.machines import named_machine
from bltjax.scaling.spend import bill, label_of
from bltjax.scaling.studyfile import read_study

ROOT = Path(__file__).resolve().parents[3]


def test_it_can_be_costed_on_its_machine_and_fits_there():
    study = read_study(ROOT / "experiments" / "studies" / "h100.py")
    machine = named_machine(ROOT / "scripts" / "machines.toml", "h100")
    planned = forecast(study, print)
    plans = {label_of(study, run.plan): run.plan for run in planned.runs}
    found = bill(planned, machine, {label: held(plan, machine.devices) for label, plan in plans.items()})
    assert len(plans) == 5 and found.total.runs == 15
    assert found.total.paper > 14e18 and found.total.money is None
    assert not [note for note in found.notes if "does not fit" in note or "steps" in note]
