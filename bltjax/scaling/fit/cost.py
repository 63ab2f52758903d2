"""What one byte costs in training, as a function of the model's size: the real constraint of a family.

C = 6 N D is that of a large Transformer without attention, embeddings or patches. A family of this package has its own:
the FLOPs per byte of its sizes, as its runs paid them, between which they are interpolated; the same in seconds.
"""

import dataclasses
import functools
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator

from bltjax.scaling.fit.points import Points

_AGREE = 0.02  # runs of one size and patch size cost the same for each byte, up to padding
_SHARED_AGREE = 0.1  # a share is charged by the bytes that a run was planned for, not those it saw
_SECONDS_AGREE = 0.5  # a timing is not exact

Unit = Literal["flops", "seconds"]


@dataclasses.dataclass(frozen=True, eq=False)
class Cost:
    """Cost of a byte of raw text in training, for each size and patch size.

    Attributes:
      unit: "flops" or "seconds".
      label: unit and accounting in words.
      sizes: N of each column, ascending.
      patch_sizes: T of each row, ascending, in bytes; None: one row for all.
      per_byte: the costs.
      shared: what a run pays besides, however long it is.
    """

    unit: Unit
    label: str
    sizes: Float[np.ndarray, " sizes"]
    patch_sizes: Float[np.ndarray, " patch_sizes"] | None
    values: Float[np.ndarray, "rows sizes"]
    shared: float = 0.0

    def __post_init__(self) -> None:
        if len(self.sizes) < 2:
            raise ValueError(f"sizes={self.sizes}: the cost of a family is known from two sizes on.")
        if (np.diff(self.sizes) <= 0).any() or (self.values <= 0).any():
            raise ValueError("sizes: must ascend, and every cost must be positive.")

    def per_byte(
        self, size: Float[np.ndarray, "*shape"], patch_size: float | None = None
    ) -> Float[np.ndarray, "*shape"]:
        """Cost of a byte: a monotone curve through ln N and ln cost, going on straight beyond the ends.

        Between two patch sizes it is interpolated in 1/T, in which the cost of a global model is linear.

        Raises:
          ValueError: for a patch size that lies outside of those measured, or is asked for where there is none.
        """
        if (patch_size is None) != (self.patch_sizes is None):
            does = "does not depend" if self.patch_sizes is None else "depends"
            raise ValueError(f"patch_size={patch_size}: this cost {does} on it.")
        if patch_size is None or self.patch_sizes is None:
            return self._row(0, size)
        first, last = self.patch_sizes[0], self.patch_sizes[-1]
        if not first * (1 - 1e-9) <= patch_size <= last * (1 + 1e-9):
            raise ValueError(f"patch_size={patch_size}: the cost was measured from {first:g} to {last:g} bytes.")
        if len(self.patch_sizes) == 1:
            return self._row(0, size)
        right = int(np.clip(np.searchsorted(self.patch_sizes, patch_size), 1, len(self.patch_sizes) - 1))
        left = right - 1
        ends = 1 / self.patch_sizes[left], 1 / self.patch_sizes[right]
        share = (1 / patch_size - ends[0]) / (ends[1] - ends[0])
        return (1 - share) * self._row(left, size) + share * self._row(right, size)

    @functools.cached_property
    def _curves(self) -> list[PchipInterpolator]:
        return [PchipInterpolator(np.log(self.sizes), np.log(row)) for row in self.values]

    def _row(self, index: int, size: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        x, curve = np.log(self.sizes), self._curves[index]
        slopes = curve(x[[0, -1]], 1)
        at = np.log(size)
        inside = np.clip(at, x[0], x[-1])
        beyond = np.where(at < x[0], (at - x[0]) * slopes[0], np.where(at > x[-1], (at - x[-1]) * slopes[1], 0.0))
        return np.exp(curve(inside) + beyond)

    def bytes_within(
        self, budget: float, size: Float[np.ndarray, "*shape"], patch_size: float | None = None
    ) -> Float[np.ndarray, "*shape"]:
        """Bytes that a budget pays for.

        Raises:
          ValueError: for a budget that the shared part uses up.
        """
        if budget <= self.shared:
            raise ValueError(f"budget={budget:.3g}: the shared {self.shared:.3g} use it up.")
        return (budget - self.shared) / self.per_byte(size, patch_size)


def transformer(k: float = 6.0) -> Cost:
    """C = k N D, where a byte is the unit of D."""
    sizes = np.array([1.0, 1e15])
    return Cost("flops", f"FLOPs ({k:g} N D)", sizes, None, k * sizes[None])


def of_points(points: Points, unit: Unit = "flops") -> Cost:
    """The cost that the runs of a family paid: for each size the sum of FLOPs (or seconds) over the sum of bytes.

    Raises:
      ValueError: if runs of one size and patch size differ in what a byte costs, or if not every size was trained
        with every patch size.
    """
    if unit == "seconds":
        if points.seconds is None:
            raise ValueError("unit='seconds': these points have no device seconds.")
        spent, shared, agree, label = points.seconds, 0.0, _SECONDS_AGREE, "device seconds"
    else:
        common = np.zeros(len(points)) if points.shared_flops is None else points.shared_flops
        shared = float(common.mean())
        if np.ptp(common) > _SHARED_AGREE * shared:
            raise ValueError("shared_flops: differ between the runs; a family shares one entropy model evenly.")
        spent, agree, label = points.flops - common, _AGREE, f"FLOPs ({points.about.accounting})"
    sizes = np.unique(points.size)
    rows = [np.ones(len(points), bool)]
    patch_sizes = None
    if points.patch_size is not None:
        patch_sizes = np.unique(points.patch_size)
        rows = [points.patch_size == patch_size for patch_size in patch_sizes]
    values = np.empty((len(rows), len(sizes)))
    for i, row in enumerate(rows):
        for j, size in enumerate(sizes):
            own = row & (points.size == size)
            if not own.any():
                raise ValueError(
                    f"patch_size: size {size:g} was not trained with every patch size; the cost of the others is "
                    "not known. Leave out what is not a full grid."
                )
            ratios = spent[own] / points.bytes[own]
            if ratios.max() > (1 + agree) * ratios.min():
                raise ValueError(
                    f"flops: runs of size {size:g} cost {ratios.min():.4g} to {ratios.max():.4g} {unit} a byte; N does "
                    "not say what was trained. Fit each kind apart, or give patch sizes."
                )
            values[i, j] = spent[own].sum() / points.bytes[own].sum()
    return Cost(unit, label, sizes, patch_sizes, values, shared)
