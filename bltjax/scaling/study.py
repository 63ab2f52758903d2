"""A study as it is asked for: which models are trained at which budgets, on what text.

A budget is a number of training FLOPs, or of device-seconds.
"""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bltjax.config import (
    EntropyModelConfig,
    ModelConfig,
    PatcherConfig,
    RowsConfig,
    TokenTransformerConfig,
    TransferConfig,
)
from bltjax.flops import Accounting, flops_per_byte, non_embedding_parameters
from bltjax.presets import preset
from bltjax.scaling.schedules import Schedule, check_schedule
from bltjax.scaling.series import Family, named, patch_size, rule_of, sized, with_vocabulary
from bltjax.scaling.variants import Variant
from bltjax.transfer import check_transfer

USUAL_RATE = 8e-3
Equal = Literal["flops", "seconds"]
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
    variants: Annotated[tuple[Variant, ...], tyro.conf.Suppress] = ()
    """Changed presets, after those of `preset`, in the place of families and sizes. One of an entropy model is to be
    named, as <preset>+<name>, in entropy_model."""
    budgets: tuple[float, ...] = (8e10, 2e11, 5e11)
    """Training FLOPs of a run; or, with equal="seconds", device-seconds."""
    equal: Equal = "flops"
    """What runs of a budget have in common: training FLOPs, or seconds of the machine on which their throughput was
    measured before they were trained."""
    seeds: tuple[int, ...] = (0,)
    """Of the initial parameters and of the order of rows."""
    patch_sizes: tuple[float, ...] = (4.5,)
    """Mean bytes per patch that thresholds are calibrated to, on the training split."""
    patch_lengths: tuple[int, ...] = (4,)
    """Bytes of a patch of blt-strided."""
    vocabularies: tuple[int, ...] = ()
    """Tokens of the BPE of token models, each trained with each; none: their presets' own. Variants keep theirs."""
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
    peak_rates: tuple[float, ...] = (USUAL_RATE,)
    """Learning rate of a model whose narrowest tower is 64 wide; of others times 64 / width. Each is tried."""
    entropy_rate: float = USUAL_RATE
    """That of the model whose entropies set the patches."""
    transfer: Literal["none", "width", "width-depth"] = "none"
    """How the rate goes from a base to larger models: none, as 64 / width; width, by muP; width-depth, by CompleteP."""
    transfer_base: str | None = None
    """Size of the bases, such as cpu-0; by default the smallest of each family in the study."""
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
        several = ("families", "sizes", "preset", "budgets", "seeds", "patch_sizes", "patch_lengths", "vocabularies")
        for name in (*several, "peak_rates"):
            values = getattr(self, name)
            if name not in ("preset", "vocabularies") and not values:
                raise ValueError(f"{name}=(): give at least one.")
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={values!r}: give each value once.")
        for name in ("budgets", "patch_sizes", "peak_rates"):
            if not all(math.isfinite(value) and value > 0 for value in getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be positive numbers.")
        for name in ("entropy_rate", "entropy_bytes"):
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
        wrong = [tokens for tokens in self.vocabularies if tokens <= 256]
        if wrong:
            raise ValueError(f"vocabularies={wrong}: 256 bytes and at least one token are needed.")
        if self.delimiter_tokens <= 256:
            raise ValueError(f"delimiter_tokens={self.delimiter_tokens}: 256 bytes and at least one token are needed.")
        if not isinstance(self._entropy_model(), EntropyModelConfig):
            raise ValueError(f"entropy_model={self.entropy_model!r}: name the preset of an entropy model.")
        names = [*self.preset, *(variant.full_name for variant in self.variants)]
        if len(set(names)) < len(names):
            raise ValueError(f"variants={names}: give each name once.")
        if self.vocabularies and not any(isinstance(named(name)[1], TokenTransformerConfig) for name in self._names()):
            raise ValueError(f"vocabularies={self.vocabularies!r}: the study has no token model that could have them.")
        for name, model in self.models().items():
            if isinstance(model, EntropyModelConfig):
                raise ValueError(
                    f"preset={name!r}: an entropy model only sets patches; name a model of another family."
                )
        if self.transfer == "none" and self.transfer_base is not None:
            raise ValueError(f"transfer_base={self.transfer_base!r}: nothing is transferred; set transfer.")
        for name, model in self.models().items():
            transfer = self.transfer_of(name)
            if transfer is not None:
                check_transfer(transfer, model)
        self._check_budgets()

    @property
    def stride(self) -> int:
        """New byte positions of each further window in scoring."""
        return self.row_bytes * 3 // 4 if self.stride_bytes is None else self.stride_bytes

    def models(self) -> dict[str, ModelConfig]:
        """The models of the study by name, computed as it asks for."""
        variants = {each.full_name: each.model() for each in self.variants if each.full_name != self.entropy_model}
        names = (each for name in self._names() for each in self._sizes_of(name))
        models = {name: named(name)[1] for name in names}
        return {name: self._computed(model) for name, model in (models | variants).items()}

    def _names(self) -> tuple[str, ...]:
        """Of models that are no variants."""
        if self.preset or any(each.full_name != self.entropy_model for each in self.variants):
            return self.preset
        return tuple(f"{family}-{size}" for family in self.families for size in self.sizes)

    def _sizes_of(self, name: str) -> tuple[str, ...]:
        """A name, or one for each vocabulary that is asked for."""
        if self.vocabularies and isinstance(named(name)[1], TokenTransformerConfig):
            return tuple(with_vocabulary(name, tokens) for tokens in self.vocabularies)
        return (name,)

    def patcher_model(self) -> EntropyModelConfig:
        """The model whose entropies set the patches."""
        model = self._computed(self._entropy_model())
        assert isinstance(model, EntropyModelConfig)
        return model

    def _entropy_model(self) -> ModelConfig:
        changed = {variant.full_name: variant for variant in self.variants}.get(self.entropy_model)
        return preset(self.entropy_model) if changed is None else changed.model()

    def _computed(self, model: ModelConfig) -> ModelConfig:
        compute = dataclasses.replace(model.compute, dtype=self.dtype, remat=self.remat)
        return dataclasses.replace(model, compute=compute)

    def transfer_of(self, name: str) -> TransferConfig | None:
        """How a model of the study has its rate from its base; None where nothing is transferred, and for a base."""
        if self.transfer == "none":
            return None
        base, model = self._base_of(name), named(name)[1]
        return None if base == model else TransferConfig(self.transfer, base)

    def _base_of(self, name: str) -> ModelConfig:
        family = named(name)[0]
        if self.transfer_base is not None:
            return named(f"{family}-{self.transfer_base}")[1]
        alike = [model for other, model in map(named, self.models()) if other == family]
        return min(alike, key=non_embedding_parameters)

    def patchers_of(self, name: str) -> tuple[PatcherConfig | None, ...]:
        """How text is cut for the models of a name, thresholds left open; (None,) for one that reads no patches."""
        rule = rule_of(name)
        for variant in self.variants:
            if variant.full_name == name and variant.patch_size is not None:
                return (sized(rule, variant.patch_size),)
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
        return by_entropy * len(self.budgets) * len(self.seeds) * len(self.peak_rates)

    def shared_patcher(self) -> dict[str, float]:
        """How the training of the entropy model is charged to runs in the full accounting."""
        return {"patcher_training_bytes": self.entropy_bytes, "patcher_runs": self.patched_runs}

    def _check_budgets(self) -> None:
        """Refuses a budget that is clearly below one step, before anything is computed; seconds are to be measured."""
        if self.equal == "seconds":
            return
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
