"""The runs that a study comes to.

A run's steps follow from its budget, from the FLOPs per byte of the model under the study's accounting, and from the
bytes that a training row holds as measured on the training split: never from nominal patch or token sizes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from bltjax.config import (
    ModelConfig,
    PatcherConfig,
    RowsConfig,
    TokenTransformerConfig,
    TrainConfig,
    config_hash,
    family_of,
)
from bltjax.data.views import Source
from bltjax.flops import Accounting, Breakdown, flops_per_byte
from bltjax.scaling.rates import learning_rate_rule
from bltjax.scaling.schedules import branch_step, scheduled
from bltjax.scaling.series import patch_size, series_of
from bltjax.scaling.store import digest
from bltjax.scaling.study import Equal, Study, steps_within
from bltjax.scaling.throughput import Throughput

FEWEST_STEPS, MOST_EPOCHS, LEAST_FILL = 10, 4, 0.9  # beyond these a plan warns


@dataclasses.dataclass(frozen=True)
class RowFacts:
    """What training rows hold, measured on the training split; or, before that is there, as it is wanted."""

    corpus_bytes: int | None  # raw bytes of the split; None: not known before the text is read
    positions: int  # of the byte stream that a row has room for; with the delimiters of a row, where there are any
    mean_row_bytes: float  # raw bytes per row
    unit_bytes: float  # raw bytes per patch or token; 1 for bytes
    byte_fill: float  # raw bytes per byte position
    slot_fill: float  # patches or tokens per slot

    def epochs(self, seen: float) -> float | None:
        """How often the split is passed over in so many bytes; None where its size is not known."""
        return None if self.corpus_bytes is None else seen / self.corpus_bytes

    @classmethod
    def of(cls, source: Source, model: ModelConfig) -> "RowFacts":
        """Measures the rows of a source for a model that reads it."""
        rows, total = len(source.rows), source.documents.total_bytes
        is_token = isinstance(model, TokenTransformerConfig)
        is_bytes = not (model.reads_patches or is_token)
        positions = source.config.bytes if is_token else source.length
        return cls(
            corpus_bytes=total,
            positions=positions,
            mean_row_bytes=source.mean_row_bytes,
            # At least 1: where patches are single bytes, those of BOS and EOS alone hold none.
            unit_bytes=1.0 if is_bytes else max(1.0, total / int(source.rows.used.sum())),
            byte_fill=total / (rows * positions),
            slot_fill=source.rows.fill()[1],
        )


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """One run of a study, before it begins."""

    name: str  # of the preset
    series: str  # what it is compared as: its family in the study, with the patch size where there are several
    budget: float  # training FLOPs, or device-seconds
    wanted: PatcherConfig | None  # how text is cut, before a threshold was calibrated
    seed: int
    accounting: Accounting
    train: TrainConfig
    facts: RowFacts
    flops: dict[str, Breakdown]  # by accounting
    inputs: dict[str, Any]  # fingerprints of corpus, tokenizer and patcher, and how it is scored
    throughput: Throughput | None = None  # where the budget is device-seconds

    @property
    def family(self) -> str:
        return family_of(self.train.model)

    @property
    def patch_size(self) -> float | None:
        """Bytes per patch that were asked for."""
        return patch_size(self.wanted)

    @property
    def by_entropy(self) -> bool:
        """Whether it shares the entropy model."""
        return self.wanted is not None and self.wanted.rule == "entropy"

    @property
    def branch_step(self) -> int:
        """The step at which it leaves its trunk; 0: it is trained alone."""
        return branch_step(self.train.optim, self.train.steps)

    @property
    def bytes(self) -> float:
        """Raw bytes it trains on over its whole path, as expected."""
        return self.train.steps * self.train.rows.batch * self.facts.mean_row_bytes

    @property
    def epochs(self) -> float | None:
        return self.facts.epochs(self.bytes)

    @property
    def training_flops(self) -> float:
        return self.flops[self.accounting].training * self.bytes

    @property
    def equal(self) -> Equal:
        """What its budget is of."""
        return "flops" if self.throughput is None else "seconds"

    @property
    def bench_seconds(self) -> float | None:
        """Device-seconds of its training by the bench; None where its budget is FLOPs."""
        return None if self.throughput is None else self.train.steps * self.throughput.device_seconds

    @property
    def device_flops(self) -> float:
        """Training FLOPs on the devices, as expected: the model's own, nothing left out."""
        return 3 * self.flops["full"].model * self.bytes

    def warnings(self) -> list[str]:
        """What a reader of its result should know."""
        out = []
        if self.train.steps < FEWEST_STEPS:
            out.append(f"only {self.train.steps} steps")
        if self.epochs is not None and self.epochs > MOST_EPOCHS:
            out.append(f"{self.epochs:.1f} epochs: repeated data teach less")
        if self.facts.slot_fill < LEAST_FILL:
            out.append(f"{1 - self.facts.slot_fill:.0%} of the {_units(self.train.model)} slots are empty")
        if self.train.model.reads_patches and self.facts.byte_fill < LEAST_FILL:
            out.append(f"{1 - self.facts.byte_fill:.0%} of the byte positions are empty")
        return out


def _units(model: ModelConfig) -> str:
    return "patch" if model.reads_patches else "token" if isinstance(model, TokenTransformerConfig) else "byte"


def plan_run(
    study: Study,
    name: str,
    model: ModelConfig,
    rows: RowsConfig,
    facts: RowFacts,
    budget: float,
    seed: int,
    patcher: PatcherConfig | None = None,
    wanted: PatcherConfig | None = None,
    inputs: dict[str, Any] | None = None,
    throughput: Throughput | None = None,
) -> RunPlan:
    """The run of one model at one budget.

    Args:
      rows: of the source, its slots measured.
      facts: of the same source.
      patcher: calibrated, for models that read patches.
      wanted: what was asked for: the same before it was calibrated.
      inputs: fingerprints that belong to the run's identity.
      throughput: of the model, where budgets are device-seconds; belongs to it, too.

    Raises:
      ValueError: for a budget of less than one step.
    """
    by_entropy = patcher is not None and patcher.rule == "entropy"
    entropy_model = study.patcher_model() if by_entropy else None
    extras: dict[str, dict[str, Any]] = {
        "paper": {},
        "full": {"byte_fill": facts.byte_fill, "patch_fill": facts.slot_fill, "patcher": entropy_model},
    }

    def cost(accounting: Accounting, run_bytes: float | None) -> Breakdown:
        more = dict(extras[accounting])
        if accounting == "full" and entropy_model is not None and run_bytes is not None:
            more |= {**study.shared_patcher(), "run_bytes": run_bytes}
        positions = facts.positions if accounting == "full" else study.row_bytes
        return flops_per_byte(model, facts.unit_bytes, positions, accounting, **more)

    # Of the entropy model's training a run pays the same share however long it is.
    row_bytes = rows.batch * facts.mean_row_bytes
    share = cost(study.accounting, row_bytes).parts.get("patcher_training", 0.0) * row_bytes
    flops_per_step = cost(study.accounting, None).training * row_bytes

    def within(c: float) -> int:
        if throughput is not None:
            return throughput.steps_within(c, name)
        return steps_within(c, name, flops_per_step, share)

    steps, shortest = within(budget), within(min(budget, *study.budgets))
    rate = learning_rate_rule(study, model)
    train = TrainConfig(
        model=model,
        steps=steps,
        patcher=patcher,
        rows=dataclasses.replace(rows, seed=seed),
        optim=scheduled(rate, steps, shortest, study.schedule, study.cooldown, study.warmup_steps),
        seed=seed,
        log_every=max(1, steps // 50),
        checkpoint_every=1000,
    )
    size = patch_size(wanted)
    several = size is not None and len(study.patchers_of(name)) > 1
    return RunPlan(
        name=name,
        series=series_of(name, size if several else None),
        budget=budget,
        wanted=wanted,
        seed=seed,
        accounting=study.accounting,
        train=train,
        facts=facts,
        flops={each: cost(each, steps * row_bytes) for each in ("paper", "full")},
        inputs={**(inputs or {}), **({} if throughput is None else {"throughput": dataclasses.asdict(throughput)})},
        throughput=throughput,
    )


def plan_table(plans: Sequence[RunPlan]) -> str:
    """The runs to come, one a line, for people."""
    wide = max(16, *(len(plan.name) for plan in plans))
    head = ("run", "budget", "FLOPs/byte paper", "full", "steps", "MB", "epochs", "bytes/unit", "fill")
    lines = [(f"{{:<{wide}}} {{:>8}} {{:>16}} {{:>8}} {{:>7}} {{:>7}} {{:>6}} {{:>10}} {{:>5}}").format(*head)]
    for plan in plans:
        epochs = "?" if plan.epochs is None else f"{plan.epochs:.2f}"
        paper, full = (plan.flops[each].training for each in ("paper", "full"))
        lines.append(
            f"{plan.name:<{wide}} {plan.budget:>8.2g} {paper:>16.3g} {full:>8.3g} {plan.train.steps:>7,} "
            f"{plan.bytes / 1e6:>7.2f} {epochs:>6} {plan.facts.unit_bytes:>10.2f} {plan.facts.slot_fill:>5.0%}"
        )
    by_warning: dict[str, list[str]] = {}
    for plan in plans:
        for warning in plan.warnings():
            by_warning.setdefault(warning, []).append(f"{plan.name} at {plan.budget:.2g}")
    lines += [f"note: {warning}: {', '.join(dict.fromkeys(names))}" for warning, names in by_warning.items()]
    return "\n".join(lines)


def run_hash(plan: RunPlan) -> str:
    """What a run's folder is named by: configuration, budget, and what went in."""
    return digest([config_hash(plan.train), plan.name, plan.budget, plan.accounting, plan.inputs])
