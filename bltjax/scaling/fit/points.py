"""Measured points: what a law is fitted to, and what is said about them on every axis.

One point is one trained model at the end of its schedule: its size by a named convention, the bytes it saw, the
compute that was spent on it over its whole path, and its held-out loss.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from bltjax.flops import ACCOUNTING_VERSIONS, Accounting
from bltjax.scaling.fit.best import LOSS, best_of_rates
from bltjax.scaling.fit.vocabularies import chosen as of_best_vocabulary
from bltjax.scaling.fit.vocabularies import vocabulary_of

MOST_EPOCHS = 4  # beyond these repeated data teach less, which none of the laws knows

# What N may count. Anything else is a tuple of the groups of `bltjax.flops.parameters`.
SIZES: dict[str, str] = {
    "non_embedding": "parameters without byte, token and hash embeddings",
    "all": "all parameters, look-up tables included",
    "latent": "parameters of the global model or of the flat tower",
}
_LATENT = ("global", "tower")
_SUM = "non_embedding"  # stands beside the groups in a manifest

Size = str | Sequence[str]


def size_label(size: Size) -> str:
    """What N counts, in the words of an axis.

    Raises:
      ValueError: for an unknown name.
    """
    if not isinstance(size, str):
        return f"parameters of {', '.join(size)}"
    if size not in SIZES:
        raise ValueError(f"size={size!r}: choose one of {', '.join(SIZES)}, or give a tuple of parameter groups.")
    return SIZES[size]


def count(groups: Mapping[str, int], size: Size) -> int:
    """Parameters of a model by a convention.

    Args:
      groups: numbers of parameters by group, as in a manifest.
      size: a name of `SIZES`, or the groups whose sum is meant.

    Raises:
      ValueError: for an unknown name or group, or where nothing is counted.
    """
    size_label(size)
    own = {name: value for name, value in groups.items() if name != _SUM}
    if size == "all":
        chosen = tuple(own)
    elif size == "non_embedding":
        chosen = tuple(name for name in own if not name.endswith("embedding"))
    elif size == "latent":
        chosen = tuple(name for name in own if name in _LATENT)
    else:
        chosen = tuple(size)
    unknown = sorted(set(chosen) - set(own))
    if unknown:
        raise ValueError(f"size={size!r}: no parameter group {', '.join(unknown)}; there are {', '.join(own)}.")
    total = sum(own[name] for name in chosen)
    if total < 1:
        raise ValueError(f"size={size!r}: counts no parameter of this model, whose groups are {', '.join(own)}.")
    return total


@dataclasses.dataclass(frozen=True)
class About:
    """What every number and axis made from points says of them."""

    name: str  # of the series
    size: str  # what N counts, in words
    accounting: str  # how FLOPs were counted: "paper-v1"
    scored: str  # which text the loss is of; losses of different texts are not compared
    loss: str = "bits per byte"
    seeds: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Final losses of one family's models, column by column, in 64-bit floating point.

    Attributes:
      size: N, parameters by the convention of `about.size`.
      bytes: bytes of raw text seen in training.
      loss: held-out bits per byte.
      flops: training FLOPs over the whole path from step 0, shared ones included.
      cluster: which runs belong together in a bootstrap: those branched from one trunk. A run of its own is one.
      about: what they are.
      budget: FLOPs (or seconds) that the run was planned for; None: there were no budgets, so there is no IsoFLOP and
        no hold-out.
      patch_size: measured bytes per patch; None: one law for all.
      seconds: device seconds over the whole path; by the bench, where budgets are such seconds.
      epochs: passes over the training text.
      shared_flops: part of `flops` that does not grow with `bytes`: the share of the entropy model's training.
      equal: what budgets are of.
    """

    size: Float[np.ndarray, " points"]
    bytes: Float[np.ndarray, " points"]
    loss: Float[np.ndarray, " points"]
    flops: Float[np.ndarray, " points"]
    cluster: tuple[str, ...]
    about: About
    budget: Float[np.ndarray, " points"] | None = None
    patch_size: Float[np.ndarray, " points"] | None = None
    seconds: Float[np.ndarray, " points"] | None = None
    epochs: Float[np.ndarray, " points"] | None = None
    shared_flops: Float[np.ndarray, " points"] | None = None
    equal: Literal["flops", "seconds"] = "flops"

    def __post_init__(self) -> None:
        if len(self.loss) == 0:
            raise ValueError("points: there are none.")
        if len(self.cluster) != len(self.loss):
            raise ValueError(f"cluster: {len(self.cluster)} names for {len(self.loss)} points; give one for each.")
        for name, column in self.columns().items():
            if column.dtype != np.float64:
                raise ValueError(f"{name}: is {column.dtype}; fits are made in float64, sums before them too.")
            if column.shape != self.loss.shape:
                raise ValueError(f"{name}: shape {column.shape} beside losses of shape {self.loss.shape}.")
            least = 0 if name in ("epochs", "shared_flops") else np.nextafter(0, 1)
            wrong = ~np.isfinite(column) | (column < least)
            if wrong.any():
                raise ValueError(f"{name}={column[wrong][:3]}: must be positive finite numbers; leave failed runs out.")

    def columns(self) -> dict[str, np.ndarray]:
        """The columns that are there, by name."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, np.ndarray)}

    def __len__(self) -> int:
        return len(self.loss)

    def where(self, mask: Bool[np.ndarray, " points"]) -> "Points":
        """The points for which the mask is true."""
        kept = {name: column[mask] for name, column in self.columns().items()}
        chosen = tuple(name for name, keep in zip(self.cluster, mask, strict=True) if keep)
        return dataclasses.replace(self, **kept, cluster=chosen)

    def budgets(self) -> Float[np.ndarray, " budgets"]:
        """The budgets, ascending.

        Raises:
          ValueError: if the points have none.
        """
        if self.budget is None:
            raise ValueError("budget=None: these points belong to no budgets; give the column that names them.")
        return np.unique(self.budget)

    def warnings(self) -> tuple[str, ...]:
        """What a reader of a fit to these points should know."""
        out = []
        if self.epochs is not None and (self.epochs > MOST_EPOCHS).any():
            often = int((self.epochs > MOST_EPOCHS).sum())
            out.append(f"{often} of {len(self)} runs repeat their text more than {MOST_EPOCHS} times; no law has that")
        return tuple(out)


def _choice(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is chosen by among those at other rates or with other vocabularies: the columns of a table."""
    named = {name: manifest[name] for name in ("series", "preset", "budget")}
    rate, loss = manifest["config"]["optim"]["peak_rate"], manifest["result"]["heldout_bits_per_byte"]
    return {**named, "peak_rate": rate, "vocabulary": vocabulary_of(manifest), LOSS: loss, "manifest": manifest}


def from_manifests(
    manifests: Sequence[Mapping[str, Any]], size: Size = "non_embedding", accounting: Accounting | None = None
) -> Points:
    """The points of complete runs of one family.

    Args:
      manifests: as the store has them. Several patch sizes give points with `patch_size`; a "trunk", where a
        manifest has one, is the cluster. Of several learning rates the best at each size and budget counts, of several
        vocabularies the best at each budget.
      size: what N counts.
      accounting: how FLOPs are counted; by default as the budgets are.

    Raises:
      ValueError: for a run that is not complete, for runs of several families, accountings or held-out texts.
    """
    if not manifests:
        raise ValueError("manifests=[]: a fit needs complete runs.")
    unfinished = [m["id"] for m in manifests if m["status"] != "complete"]
    if unfinished:
        raise ValueError(f"manifests: {unfinished[:3]} are not complete; a loss in mid-schedule is not a point.")

    def only(what: str, values: Sequence[Any]) -> Any:
        found = sorted({str(value) for value in values})
        if len(found) > 1:
            raise ValueError(f"manifests: {what} {', '.join(found)} in one fit; fit each apart.")
        return values[0]

    family = only("families", [m["family"] for m in manifests])
    equal = only("budgets of", [m.get("equal", "flops") for m in manifests])
    manifests = [row["manifest"] for row in of_best_vocabulary(best_of_rates([_choice(m) for m in manifests]))]
    chosen: Accounting = accounting or only("accountings", [m["accounting"] for m in manifests])
    version = only("accountings", [m["flops_per_byte"][chosen]["version"] for m in manifests])
    assert version == ACCOUNTING_VERSIONS[chosen]
    text = only("held-out texts of", [f"{m['result']['heldout_sums']['bytes']:,} bytes" for m in manifests])
    corpus = only("corpora", [m["inputs"].get("corpus", "unnamed") for m in manifests])
    series = list(dict.fromkeys(m["series"] for m in manifests))
    patch_sizes = [m["rows"]["unit_bytes"] for m in manifests]
    several = len({m.get("patch_size_wanted") for m in manifests}) > 1

    def column(values: Sequence[float]) -> np.ndarray:
        return np.asarray(values, np.float64)

    def shared(manifest: Mapping[str, Any]) -> float:
        return (
            manifest["flops_per_byte"][chosen]["parts"].get("patcher_training", 0.0) * manifest["result"]["bytes_seen"]
        )

    results = [m["result"] for m in manifests]
    return Points(
        size=column([count(m["parameters"], size) for m in manifests]),
        bytes=column([r["bytes_seen"] for r in results]),
        loss=column([r["heldout_bits_per_byte"] for r in results]),
        flops=column([r["training_flops"][chosen] for r in results]),
        cluster=tuple(str(m.get("trunk", m["id"])) for m in manifests),
        about=About(
            name=series[0] if len(series) == 1 else family,
            size=size_label(size),
            accounting=version,
            scored=f"{text} of corpus {corpus}",
            seeds=tuple(sorted({m["config"]["seed"] for m in manifests})),
        ),
        budget=column([m["budget"] for m in manifests]),
        patch_size=column(patch_sizes) if several else None,
        seconds=column([r["device_seconds" if equal == "flops" else "bench_seconds"] for r in results]),
        epochs=column([r["epochs"] for r in results]),
        shared_flops=column([shared(m) for m in manifests]),
        equal=equal,
    )
