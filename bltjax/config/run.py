"""A training run: how text is cut and drawn, the optimiser, the devices."""

import dataclasses
import math
from typing import Literal

from bltjax.config.checks import LATER, at_least, check_choices, require
from bltjax.config.model import MegabyteConfig, ModelConfig, SpaceByteConfig


@dataclasses.dataclass(frozen=True)
class PatcherConfig:
    """How a text is cut into patches."""

    rule: Literal["entropy", "space", "strided", "byte", "bpe"] = "entropy"
    variant: Literal["global", "monotonic", "add"] = "global"  # of the entropy rule
    threshold: float | None = None  # nats; None: calibrated to mean_patch_bytes on the training split
    threshold_add: float | None = None  # nats; the rise that the variant "add" asks for besides
    size: int = 4  # bytes per patch of the strided rule
    max_patch_length: int | None = None  # bytes; longer patches are cut into pieces of this length
    mean_patch_bytes: float = 4.5  # what a threshold of None is calibrated to

    def __post_init__(self) -> None:
        check_choices(self, "patcher.")
        adds, rise = self.rule == "entropy" and self.variant == "add", self.threshold_add
        require(not adds or rise is not None, "patcher.threshold_add", rise, 'the variant "add" needs it, in nats.')
        for name, nats in (("threshold", self.threshold), ("threshold_add", rise)):
            require(nats is None or math.isfinite(nats), f"patcher.{name}", nats, "must be a finite number of nats.")
        at_least(self, "patcher.", size=1, max_patch_length=1)
        require(self.mean_patch_bytes > 1, "patcher.mean_patch_bytes", self.mean_patch_bytes, "must exceed 1 byte.")


def usual_patcher(model: ModelConfig) -> PatcherConfig | None:
    """How text is cut for a model unless another rule is named: as its paper does; None where it reads no patches."""
    if not model.reads_patches:
        return None
    return PatcherConfig(rule="space") if isinstance(model, SpaceByteConfig) else PatcherConfig()


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """The shape of a training batch, and the order in which rows are drawn."""

    bytes: int = 1024  # positions of a byte row, BOS and EOS included; the context of every family
    slots: int | None = None  # patches of a BLT row, or tokens of a token row; None: from the measured mean
    batch: int = 8  # rows in a global batch
    seed: int = 0  # of the order of rows

    def __post_init__(self) -> None:
        at_least(self, "rows.", bytes=2, slots=2, batch=1)


@dataclasses.dataclass(frozen=True)
class TransferConfig:
    """A smaller model of the same family whose learning rate a run takes, and by which rule; see `bltjax.transfer`."""

    rule: Literal["width", "width-depth"]  # muP; CompleteP with alpha = 1
    base: ModelConfig  # how it is computed makes no difference

    def __post_init__(self) -> None:
        check_choices(self, "optim.transfer.")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up and a schedule. Defaults: the paper's (section 4.8), except for the length."""

    peak_rate: float = 4e-4
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.0  # of the peak rate, at the last step
    decay_fraction: float = 0.2  # wsd: share of all steps spent cooling down, as 1 - sqrt
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # on the global norm, after accumulation
    first_moment: Literal["float32", "bfloat16"] = "float32"  # how it is kept between steps
    spike_deviations: float | None = None  # a loss or gradient norm so far above the mean is skipped; None: none is
    spike_steps: int = 128  # over how many steps mean and deviation are taken
    # peak_rate is that of the transfer's base; None: of the model itself
    transfer: TransferConfig | None = dataclasses.field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        check_choices(self, "optim.")
        for name in ("peak_rate", "epsilon", "clip_norm", "spike_deviations"):
            value = getattr(self, name)
            require(value is None or value > 0, f"optim.{name}", value, "must be positive.")
        at_least(self, "optim.", warmup_steps=0, weight_decay=0, spike_steps=2)
        require(0 <= self.final_fraction <= 1, "optim.final_fraction", self.final_fraction, "must lie in 0 .. 1.")
        require(0 < self.decay_fraction <= 1, "optim.decay_fraction", self.decay_fraction, "must lie in (0, 1].")
        require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "must lie in [0, 1).")
        require(0 <= self.beta2 < 1, "optim.beta2", self.beta2, "must lie in [0, 1).")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 (at most one) fills with the devices that are left."""

    replica: int = 1
    data: int = -1
    model: int = 1
    sequence: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        require(all(s == -1 or s >= 1 for s in sizes), "mesh", sizes, "axis sizes are positive, or -1 to fill.")
        require(sizes.count(-1) <= 1, "mesh", sizes, "only one axis may be -1.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run: what is trained, on which rows, for how long."""

    model: ModelConfig
    steps: int
    patcher: PatcherConfig | None = None  # for models that read patches
    rows: RowsConfig = RowsConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    accumulation: int = 1  # micro-batches a step; must divide rows.batch
    seed: int = 0  # of the initial parameters
    log_every: int = 10  # steps
    checkpoint_every: int = 200  # steps; the newest two of these are kept
    keep_every: int | None = None  # steps; a checkpoint that is kept for good
    max_skips: int = 3  # steps in a row without an update, at which the run ends

    def __post_init__(self) -> None:
        at_least(self, steps=1, accumulation=1, log_every=1, checkpoint_every=1, keep_every=1, max_skips=1)
        batch, pieces, warmup = self.rows.batch, self.accumulation, self.optim.warmup_steps
        require(batch % pieces == 0, "accumulation", pieces, f"must divide rows.batch, {batch}.")
        require(warmup <= self.steps, "optim.warmup_steps", warmup, f"must not exceed steps, {self.steps}.")
        reads, advice = self.model.reads_patches, "a model that reads patches needs one, others take none."
        require(reads == (self.patcher is not None), "patcher", self.patcher, advice)
        strided = isinstance(self.model, MegabyteConfig) and self.model.inference == "strided"
        require(not strided, "model.inference", "strided", 'is for scoring; train with "basic".')
        transfer = self.optim.transfer
        if transfer is not None:
            same, advice = type(transfer.base) is type(self.model), "name a base of the model's own family."
            require(same, "optim.transfer.base", transfer.base, advice)
