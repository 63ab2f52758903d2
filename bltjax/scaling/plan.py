"""A study: which models are trained at which budgets, and the runs that this comes to.

A budget is a number of training FLOPs. A run's steps follow from it, from the FLOPs per byte of the model under the
study's accounting, and from the bytes that a training row holds as measured on the training split: never from nominal
patch or token sizes.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bltjax.config import (
    EntropyModelConfig,
    ModelConfig,
    PatcherConfig,
    RowsConfig,
    TokenTransformerConfig,
    TrainConfig,
    TransformerConfig,
    config_hash,
    family_of,
)
from bltjax.data.views import Source
from bltjax.flops import Accounting, Breakdown, flops_per_byte
from bltjax.presets import preset
from bltjax.scaling.schedules import Schedule, branch_step, check_schedule, scheduled
from bltjax.scaling.series import Family, named, patch_size, rule_of
from bltjax.scaling.store import digest

RATE_WIDTH = 64  # the width for which Study.peak_rate is meant
FEWEST_STEPS, MOST_EPOCHS, LEAST_FILL = 10, 4, 0.9  # beyond these a plan warns
NOMINAL_BYTES = 4.0  # of a token or a patch, before it is measured; only to refuse budgets that are far too small


@dataclasses.dataclass(frozen=True)
class Study:
    """Families of models, trained at equal compute on one text and scored on its held-out documents."""

    out: Path = Path("runs/isoflop")
    """Folder for all of it; started again with the same folder, a study goes on where it was."""
    corpus: tuple[str, ...] = ()
    """Files, folders or globs of text, .jsonl or .parquet; none: the standard library of the running Python."""
    families: tuple[Family, ...] = ("blt", "byte", "token")
    """Families to compare; blt is blt-entropy."""
    sizes: tuple[str, ...] = ("cpu-0", "cpu-1", "cpu-2")
    """Sizes of each family: the presets <family>-<size>."""
    preset: tuple[str, ...] = ()
    """Names of presets, in the place of families and sizes."""
    budgets: tuple[float, ...] = (8e10, 2e11, 5e11)
    """Training FLOPs of a run."""
    seeds: tuple[int, ...] = (0,)
    """Of the initial parameters and of the order of rows."""
    patch_sizes: tuple[float, ...] = (4.5,)
    """Mean bytes per patch that thresholds are calibrated to, on the training split."""
    patch_lengths: tuple[int, ...] = (4,)
    """Bytes of a patch of blt-strided."""
    delimiter_tokens: int = 2048
    """Tokens of the BPE whose tokens are the patches of blt-bpe."""
    accounting: Accounting = "paper"
    """How budgets are counted; every table has both."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and products."""
    remat: Literal["none", "full", "dots"] = "none"
    """What a layer recomputes in the backward pass."""
    row_bytes: int = 256
    """Byte positions of a training row: the context of every family."""
    batch: int = 2
    """Rows of a step."""
    peak_rate: float = 8e-3
    """Learning rate of a model whose narrowest tower is 64 wide; of others times 64 / width."""
    schedule: Schedule = "cosine"
    """A cosine to zero, or wsd: one trunk at a constant rate, which the runs of all budgets leave to cool down."""
    cooldown: float = 0.2
    """Share of a run's steps spent cooling down; for wsd."""
    warmup_steps: int | None = None
    """By default a tenth of a run's steps, 2,000 at most; with wsd of the run at the smallest budget."""
    entropy_model: str = "entropy-cpu"
    """Preset of the model whose entropies set the patches."""
    entropy_bytes: float = 1e6
    """Bytes that it is trained on."""
    corpus_bytes: int | None = None
    """At most so many bytes of documents, chosen by hash; by default 8 MB of the standard library, all of others."""
    heldout_percent: float = 5.0
    """Share of the documents held out."""
    heldout_bytes: int | None = 100_000
    """At most so many bytes of held-out documents are scored, chosen by hash."""
    stride_bytes: int | None = None
    """New bytes of each further window in scoring; by default three quarters of a row, which is what a window is."""
    keep_weights: bool = True
    """Whether the last checkpoint of each run stays, and that of every point where one left a trunk."""

    def __post_init__(self) -> None:
        for name in ("families", "sizes", "preset", "budgets", "seeds", "patch_sizes", "patch_lengths"):
            values = getattr(self, name)
            if name != "preset" and not values:
                raise ValueError(f"{name}=(): give at least one.")
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={values!r}: give each value once.")
        for name in ("budgets", "patch_sizes"):
            if not all(math.isfinite(value) and value > 0 for value in getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be positive numbers.")
        for name in ("peak_rate", "entropy_bytes"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be a positive number.")
        for name in ("corpus_bytes", "heldout_bytes", "stride_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1.")
        if not 0 < self.heldout_percent <= 50:
            raise ValueError(f"heldout_percent={self.heldout_percent}: must lie in (0, 50]: runs are scored on them.")
        check_schedule(self.cooldown, self.warmup_steps)
        RowsConfig(bytes=self.row_bytes, batch=self.batch)
        if not 1 <= self.stride <= self.row_bytes:
            raise ValueError(f"stride_bytes={self.stride_bytes}: must lie in 1 .. row_bytes, {self.row_bytes}.")
        for size in self.patch_sizes:
            PatcherConfig(mean_patch_bytes=size)
        for length in self.patch_lengths:
            PatcherConfig(rule="strided", size=length)
        if self.delimiter_tokens <= 256:
            raise ValueError(f"delimiter_tokens={self.delimiter_tokens}: 256 bytes and at least one token are needed.")
        if not isinstance(preset(self.entropy_model), EntropyModelConfig):
            raise ValueError(f"entropy_model={self.entropy_model!r}: name the preset of an entropy model.")
        for name, model in self.models().items():
            if isinstance(model, EntropyModelConfig):
                raise ValueError(
                    f"preset={name!r}: an entropy model only sets patches; name a model of another family."
                )
        self._check_budgets()

    @property
    def stride(self) -> int:
        """New byte positions of each further window in scoring."""
        return self.row_bytes * 3 // 4 if self.stride_bytes is None else self.stride_bytes

    def models(self) -> dict[str, ModelConfig]:
        """The models of the study by name, computed as it asks for."""
        names = self.preset or tuple(f"{family}-{size}" for family in self.families for size in self.sizes)
        return {name: self._computed(named(name)[1]) for name in names}

    def patcher_model(self) -> EntropyModelConfig:
        """The model whose entropies set the patches."""
        model = self._computed(preset(self.entropy_model))
        assert isinstance(model, EntropyModelConfig)
        return model

    def _computed(self, model: ModelConfig) -> ModelConfig:
        compute = dataclasses.replace(model.compute, dtype=self.dtype, remat=self.remat)
        return dataclasses.replace(model, compute=compute)

    def patchers_of(self, name: str) -> tuple[PatcherConfig | None, ...]:
        """How text is cut for the models of a name, thresholds left open; (None,) for one that reads no patches."""
        rule = rule_of(name)
        if rule is not None and rule.rule == "entropy":
            return tuple(dataclasses.replace(rule, mean_patch_bytes=size) for size in self.patch_sizes)
        if rule is not None and rule.rule == "strided":
            return tuple(dataclasses.replace(rule, size=length) for length in self.patch_lengths)
        return (rule,)

    @property
    def patched_runs(self) -> int:
        """Runs that share the entropy model."""
        patchers = [patcher for name in self.models() for patcher in self.patchers_of(name)]
        by_entropy = sum(patcher is not None and patcher.rule == "entropy" for patcher in patchers)
        return by_entropy * len(self.budgets) * len(self.seeds)

    def shared_patcher(self) -> dict[str, float]:
        """How the training of the entropy model is charged to runs in the full accounting."""
        return {"patcher_training_bytes": self.entropy_bytes, "patcher_runs": self.patched_runs}

    def _check_budgets(self) -> None:
        """Refuses a budget that is clearly below one step, before anything is computed."""
        for name, model in self.models().items():
            for wanted in self.patchers_of(name):
                is_bytes = wanted is None and not isinstance(model, TokenTransformerConfig)
                unit = 1.0 if is_bytes else patch_size(wanted) or NOMINAL_BYTES
                cost = flops_per_byte(model, unit, self.row_bytes).training * self.row_bytes * self.batch
                steps_within(min(self.budgets), name, cost)


def steps_within(budget: float, name: str, flops_per_step: float, shared_flops: float = 0.0) -> int:
    """Steps that come nearest to a budget, of which shared_flops are spent beforehand.

    Raises:
      ValueError: if not even one step fits.
    """
    steps = (budget - shared_flops) / flops_per_step
    if steps < 1:
        shared = f" and its share of the entropy model's training {shared_flops:.3g}" if shared_flops else ""
        raise ValueError(
            f"budgets: {budget:.3g} FLOPs are less than one step of {name}, which takes {flops_per_step:.3g}{shared}. "
            "Raise the budget, choose smaller models, or lower batch or row_bytes."
        )
    return round(steps)


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
            unit_bytes=1.0 if is_bytes else total / int(source.rows.used.sum()),
            byte_fill=total / (rows * positions),
            slot_fill=source.rows.fill()[1],
        )


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """One run of a study, before it begins."""

    name: str  # of the preset
    series: str  # what it is compared as: its family in the study, with the patch size where there are several
    budget: float  # training FLOPs
    wanted: PatcherConfig | None  # how text is cut, before a threshold was calibrated
    seed: int
    accounting: Accounting
    train: TrainConfig
    facts: RowFacts
    flops: dict[str, Breakdown]  # by accounting
    inputs: dict[str, Any]  # fingerprints of corpus, tokenizer and patcher, and how it is scored

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


def learning_rate_rule(study: Study, model: ModelConfig) -> float:
    """Peak learning rate of a model: one rule for all families, inverse to the width of its narrowest tower.

    For a BLT those are the local models. The default gives 4e-4 at a width of 1,280, the paper's rate for its 8B.
    """
    widths = [tower.width for tower in vars(model).values() if isinstance(tower, TransformerConfig)]
    return study.peak_rate * RATE_WIDTH / min(widths)


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
) -> RunPlan:
    """The run of one model at one budget.

    Args:
      rows: of the source, its slots measured.
      facts: of the same source.
      patcher: calibrated, for models that read patches.
      wanted: what was asked for: the same before it was calibrated.
      inputs: fingerprints that belong to the run's identity.

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
    steps, shortest = (steps_within(c, name, flops_per_step, share) for c in (budget, min(budget, *study.budgets)))
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
    family, size = named(name)[0], patch_size(wanted)
    several = size is not None and len(study.patchers_of(name)) > 1
    return RunPlan(
        name=name,
        series=f"{family}-{size:g}" if several else family,
        budget=budget,
        wanted=wanted,
        seed=seed,
        accounting=study.accounting,
        train=train,
        facts=facts,
        flops={each: cost(each, steps * row_bytes) for each in ("paper", "full")},
        inputs=inputs or {},
    )


def plan_table(plans: Sequence[RunPlan]) -> str:
    """The runs to come, one a line, for people."""
    head = ("run", "budget", "FLOPs/byte paper", "full", "steps", "MB", "epochs", "bytes/unit", "fill")
    lines = [("{:<16} {:>8} {:>16} {:>8} {:>7} {:>7} {:>6} {:>10} {:>5}").format(*head)]
    for plan in plans:
        epochs = "?" if plan.epochs is None else f"{plan.epochs:.2f}"
        paper, full = (plan.flops[each].training for each in ("paper", "full"))
        lines.append(
            f"{plan.name:<16} {plan.budget:>8.2g} {paper:>16.3g} {full:>8.3g} {plan.train.steps:>7,} "
            f"{plan.bytes / 1e6:>7.2f} {epochs:>6} {plan.facts.unit_bytes:>10.2f} {plan.facts.slot_fill:>5.0%}"
        )
    by_warning: dict[str, list[str]] = {}
    for plan in plans:
        for warning in plan.warnings():
            by_warning.setdefault(warning, []).append(f"{plan.name} at {plan.budget:.2g}")
    lines += [f"note: {warning}: {', '.join(names)}" for warning, names in by_warning.items()]
    return "\n".join(lines)


def run_hash(plan: RunPlan) -> str:
    """What a run's folder is named by: configuration, budget, and what went in."""
    return digest([config_hash(plan.train), plan.name, plan.budget, plan.accounting, plan.inputs])
