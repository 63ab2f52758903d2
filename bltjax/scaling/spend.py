"""What a study costs on a named machine: FLOPs, hours, device-hours and money of every run, and whether that may be.

The devices carry out the model's own FLOPs in the accounting `full`, padding included, whatever accounting the budgets
are in: three forward passes over what a run trains on, one over the held-out windows that it is scored on. Divided by
the measured share of the machine's peak that is the time. Compiling, saving and reading text are not in it. What runs
share are items of their own: the entropy model's training and its scores, and the trunks that runs leave, each once. A
run that leaves a trunk costs its cool-down, however much it is charged for its whole path.
"""

import dataclasses
import datetime
import math
from collections.abc import Iterable, Mapping, Sequence

from bltjax.config import TokenTransformerConfig
from bltjax.flops import Breakdown, flops_per_byte
from bltjax.scaling.edges import Prediction
from bltjax.scaling.footprint import Footprint
from bltjax.scaling.forecast import Forecast, Foreseen, Piece
from bltjax.scaling.machines import Machine
from bltjax.scaling.plan import RunPlan
from bltjax.scaling.plots import flops_text
from bltjax.scaling.series import series_of
from bltjax.scaling.study import USUAL_RATE, Study

SHARED = "entropy"  # the series of what runs share
DEAREST = 5  # runs that are named where a cap is exceeded


class OverCap(Exception):
    """A study costs more than it may; the message says how much, and which runs cost most."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One run, or what runs share: a piece of a trunk, or the entropy model.

    Attributes:
      label: the model, with its patch size where the study has several; see `label_of`.
      run: None for what runs share.
      training: FLOPs of training by the model's own in the full accounting; of a run that leaves a trunk from there on.
      scoring: of scoring what is held out (or, of the entropy model, the corpus); None: not known, so not counted.
      fraction: measured share of the peak; None: not measured.
      seconds: with all devices of the machine at work; None without a fraction.
      money: None where time or price is not known.
    """

    label: str
    series: str
    run: Foreseen | None
    training: float
    scoring: float | None
    fraction: float | None
    seconds: float | None
    device_seconds: float | None
    money: float | None
    done: bool  # complete: it is spent already
    piece: Piece | None = None  # of a trunk

    @property
    def name(self) -> str:
        """For messages: model, budget and seed."""
        if self.piece is not None:
            return f"{self.label}, trunk to step {self.piece.last:,}, seed {self.piece.plan.seed}"
        if self.run is None:
            return self.label
        plan = self.run.plan
        rate = "" if plan.rate == USUAL_RATE else f", rate {plan.rate:g}"
        return f"{self.label} at {flops_text(plan.budget)}{rate}, seed {plan.seed}"


@dataclasses.dataclass(frozen=True)
class Total:
    """Sums over items; None where a summand is not known."""

    of: str
    runs: int
    paper: float | None  # training FLOPs; None for what runs share, which the paper's accounting does not know
    work: float  # FLOPs that the devices carry out, scoring included; trunks once
    alone: float  # the same if every run were trained alone, over its whole path
    bytes: float
    seconds: float | None
    device_seconds: float | None
    money: float | None


@dataclasses.dataclass(frozen=True)
class Bill:
    """A study, item by item."""

    forecast: Forecast
    machine: Machine
    items: tuple[Item, ...]
    footprints: Mapping[str, Footprint]  # by label
    predictions: tuple[Prediction, ...]
    notes: tuple[str, ...]  # what a reader should know

    def totals(self) -> list[Total]:
        """By series, in the order of the study, then what runs share, all, and what is left where some are done."""
        series = dict.fromkeys(item.series for item in self.items)
        out = [_total(name, [item for item in self.items if item.series == name]) for name in series] + [self.total]
        return [*out, self.left] if any(item.done for item in self.items) else out

    @property
    def total(self) -> Total:
        return _total("all", self.items)

    @property
    def left(self) -> Total:
        """What is not done yet: that is what a cap is held to."""
        return _total("left", [item for item in self.items if not item.done])

    def check(self, max_money: float | None = None, max_device_hours: float | None = None) -> None:
        """Refuses a study of which more is left than a cap allows.

        Raises:
          OverCap: naming the sum and the dearest runs.
          ValueError: for a cap that can't be checked, since the price or a share of the peak is not known, or how much
            text is to be scored.
        """
        total, machine = self.left, self.machine
        items = [item for item in self.items if not item.done]
        if max_money is not None:
            if total.money is None:
                missing = "price" if machine.price is None else "measured fraction of peak"
                raise ValueError(f"max_money={max_money:g}: can't be checked, [{machine.name}] has no {missing}.")
            unit = f" {machine.currency}"
            _refuse_above("max_money", max_money, total.money, unit, [(i.money or 0.0, i.name) for i in items])
        if max_device_hours is not None:
            if total.device_seconds is None:
                raise ValueError(
                    f"max_device_hours={max_device_hours:g}: can't be checked, [{machine.name}] lacks a measured "
                    "fraction of peak for some model; see --probe."
                )
            costs = [((i.device_seconds or 0.0) / 3600, i.name) for i in items]
            _refuse_above("max_device_hours", max_device_hours, total.device_seconds / 3600, " device-hours", costs)
        unscored = dict.fromkeys(item.label for item in items if item.scoring is None)
        if unscored and (max_money is not None or max_device_hours is not None):
            raise ValueError(
                f"the cap can't be checked: how many bytes {', '.join(unscored)} must score is not known. Prepare the "
                "corpus (--prepare), or set corpus_bytes in the study."
            )


def _refuse_above(flag: str, cap: float, total: float, unit: str, costs: Sequence[tuple[float, str]]) -> None:
    if total <= cap:
        return
    dearest = sorted(costs, key=lambda cost: -cost[0])[:DEAREST]
    words = "; ".join(f"{name}: {cost:,.2f}" for cost, name in dearest)
    raise OverCap(f"{flag}={cap:,.2f}: the study takes {total:,.2f}{unit}. Its dearest runs: {words}.")


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else math.fsum(value for value in known if value is not None)


def _total(of: str, items: Sequence[Item]) -> Total:
    plans = [item.run.plan for item in items if item.run is not None]
    paths = [(training_flops(item.run.plan), item) for item in items if item.run is not None]
    shared = [(item.training, item) for item in items if item.run is None and item.piece is None]
    return Total(
        of=of,
        runs=len(plans),
        paper=math.fsum(plan.flops["paper"].training * plan.bytes for plan in plans) if plans else None,
        work=math.fsum(item.training + (item.scoring or 0.0) for item in items),
        alone=math.fsum(training + (item.scoring or 0.0) for training, item in paths + shared),
        bytes=math.fsum(plan.bytes for plan in plans),
        seconds=_sum(item.seconds for item in items),
        device_seconds=_sum(item.device_seconds for item in items),
        money=_sum(item.money for item in items),
    )


def label_of(study: Study, plan: RunPlan) -> str:
    """What a model is called in a bill, and in a machine's [fraction]: its preset, with its patch size if need be."""
    several = plan.patch_size is not None and len(study.patchers_of(plan.name)) > 1
    return f"{plan.name}-p{plan.patch_size:g}" if several else plan.name


def row_flops(plan: RunPlan) -> float:
    """Training FLOPs of a row on the devices: the model's own, in the full accounting."""
    return 3 * plan.flops["full"].model * plan.facts.mean_row_bytes


def training_flops(plan: RunPlan) -> float:
    """Training FLOPs of a run on the devices over its whole path, in the full accounting, if it is trained alone."""
    return 3 * plan.flops["full"].model * plan.bytes


def input_positions(plan: RunPlan) -> int:
    """Inputs of a row: its bytes, with delimiters where there are any, or its tokens."""
    if isinstance(plan.train.model, TokenTransformerConfig):
        assert plan.train.rows.slots is not None
        return plan.train.rows.slots
    return plan.facts.positions


def patcher_cost(study: Study) -> Breakdown:
    """FLOPs per byte of the entropy model, in the full accounting."""
    return flops_per_byte(study.patcher_model(), 1.0, study.row_bytes, "full")


def scored_bytes(forecast: Forecast) -> float | None:
    """Byte positions that scoring a run passes through the model, context read again included; None: not known."""
    study, there = forecast.study, forecast.text.heldout_bytes
    known = [value for value in (study.heldout_bytes, there) if value is not None]
    return min(known) * study.row_bytes / study.stride if known else None


def bill(
    forecast: Forecast,
    machine: Machine,
    footprints: Mapping[str, Footprint],
    predictions: Sequence[Prediction] = (),
    notes: Sequence[str] = (),
    today: datetime.date | None = None,
) -> Bill:
    """Costs a study.

    Args:
      machine: its fractions of peak are used as they are; put probed ones there first.
      footprints: memory by label.
      notes: further ones, of the caller.
      today: by which the machine's figures are old; None: today.

    Raises:
      ValueError: where the machine has no peak for the study's dtype.
    """
    study = forecast.study
    speed = machine.peak_of(study.dtype) * machine.devices

    def item(
        label: str,
        series: str,
        names: Sequence[str],
        run: Foreseen | None,
        training: float,
        scoring: float | None,
        done: bool,
        piece: Piece | None = None,
    ) -> Item:
        fraction = machine.fraction_of(names)
        seconds = None if fraction is None else (training + (scoring or 0.0)) / (speed * fraction)
        spent = None if seconds is None else seconds * machine.devices
        money = None if spent is None else machine.cost(spent)
        return Item(label, series, run, training, scoring, fraction, seconds, spent, money, done, piece)

    def names_of(label: str, plan: RunPlan) -> tuple[str, ...]:
        return (label, plan.name, plan.series, series_of(plan.name.partition("+")[0]), plan.family)

    items, scored = [], scored_bytes(forecast)
    for run in forecast.runs:
        plan = run.plan
        label, own = label_of(study, plan), plan.flops["full"].model
        scoring = None if scored is None else own * scored
        training = training_flops(plan) * (1 - plan.branch_step / plan.train.steps)
        items.append(item(label, plan.series, names_of(label, plan), run, training, scoring, run.done))
    for piece in forecast.pieces:
        plan = piece.plan
        label, training = label_of(study, plan), row_flops(plan) * piece.bytes / plan.facts.mean_row_bytes
        items.append(item(label, plan.series, names_of(label, plan), None, training, 0.0, piece.done, piece))
    if forecast.by_entropy:
        forward, text = patcher_cost(study).model, forecast.text
        corpus = _sum([text.train_bytes, text.heldout_bytes])
        scoring = None if corpus is None else forward * corpus
        names = (study.entropy_model, SHARED)
        training = 3 * forward * study.entropy_bytes
        items.append(item(study.entropy_model, SHARED, names, None, training, scoring, forecast.entropy_done))
    found = Bill(forecast, machine, tuple(items), footprints, tuple(predictions), ())
    today = today or datetime.date.today()
    return dataclasses.replace(found, notes=(*_warnings(found), *notes, *machine.warnings(today)))


def _those(labels: Iterable[str], found: Bill) -> str:
    """Labels as words, "all models" where no run is left out."""
    meant = set(labels)
    others = [item.label for item in found.items if item.run is not None and item.label not in meant]
    return ", ".join(labels) if others else "all models"


def _warnings(found: Bill) -> list[str]:
    forecast, machine = found.forecast, found.machine
    by_warning: dict[str, dict[str, list[str]]] = {}
    for item in found.items:
        if item.run is not None:
            for warning in item.run.warnings():
                budgets = by_warning.setdefault(warning, {}).setdefault(item.label, [])
                budgets.append(flops_text(item.run.plan.budget))
    out = [
        f"{warning}: " + "; ".join(f"{label} at {', '.join(dict.fromkeys(at))}" for label, at in labels.items())
        for warning, labels in by_warning.items()
    ]
    out += [f"at an edge: {one}" for one in found.predictions if one.bound is not None]
    for label, footprint in found.footprints.items():
        if footprint.total > machine.memory:
            least = "at least " if footprint.is_bound else ""
            needs = f"{least}{footprint.total / 1e9:.1f} GB of {machine.memory / 1e9:.1f}"
            out.append(f"does not fit: {label} needs {needs}")
    guessed = dict.fromkeys(item.label for item in found.items if item.run is not None and not item.run.measured)
    if guessed:
        out.append(f"rows not measured yet (marked ~): {_those(guessed, found)}; --prepare makes what measures them")
    if not forecast.text.measured:
        out.append(f"the text is {forecast.text.words}")
    slow = dict.fromkeys(item.label for item in found.items if item.fraction is None)
    if slow:
        out.append(f"no measured fraction of peak, so no hours: {_those(slow, found)}; --probe measures them")
    if machine.price is None:
        out.append(f"money is unknown: [{machine.name}] has no price")
    if forecast.pieces:
        total = found.total
        out.append(
            f"trunks are trained once: {flops_text(total.work)} FLOPs on the devices, where the runs, each trained "
            f"alone, would take {flops_text(total.alone)}; a run is charged for its whole path"
        )
    done = sum(item.done for item in found.items)
    if done:
        out.append(f"{done} of {len(found.items)} are done already (marked *); a cap is held to what is left")
    unscored = dict.fromkeys(item.label for item in found.items if item.scoring is None)
    if unscored:
        out.append(f"how many bytes are to be scored is not known, so hours leave it out: {', '.join(unscored)}")
    return out
