"""Studies that were never run: points of a law with known constants, to see what a fit makes of them.

They answer two questions before any compute is spent: do the intervals hold the truth as often as they say, and how
far off is each estimator on this grid?
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from bltjax.scaling.fit.cost import Cost
from bltjax.scaling.fit.estimators import METHODS, Method, fit_law
from bltjax.scaling.fit.fitted import FittedLaw
from bltjax.scaling.fit.law import Frame, Law
from bltjax.scaling.fit.optimum import exponents, minimise
from bltjax.scaling.fit.points import About, Points

WIDEST = 1e3  # how far from the grid's centre the true optimum is sought


def surface(
    alpha: float,
    beta: float,
    irreducible: float = 0.6,
    reducible: float = 0.3,
    flops: float = 1e18,
    size: float = 2e8,
) -> Law:
    """A law with these exponents whose optimum along C = 6 N D is where it is asked for.

    Args:
      irreducible: E, bits per byte.
      reducible: what size and text still cost at that optimum, bits per byte.
      flops, size: C and N of it.
    """
    total, data = alpha + beta, flops / 6 / size
    by_size, by_bytes = reducible * beta / total, reducible * alpha / total
    return Law(irreducible, by_size * size**alpha, alpha, by_bytes * data**beta, beta)


@dataclasses.dataclass(frozen=True, eq=False)
class Design:
    """A study that is simulated.

    Attributes:
      law: the truth.
      cost: of a byte.
      budgets: FLOPs.
      sizes: how many at each budget.
      width: from the centre of a budget's sizes to their ends, as a factor.
      offset: of the centre from the true optimum at the geometric middle of the budgets, as a factor.
      drift: of that factor for each tenfold of budget.
      noise: standard deviation of one run, bits per byte.
      trunk_noise: of what all runs of one trunk share, bits per byte.
      trunks: whether all budgets of one size branch from one trunk; sizes are then the same at every budget.
      seeds: runs at each size and budget (or trunks of each size).
    """

    law: Law
    cost: Cost
    budgets: tuple[float, ...]
    sizes: int = 7
    width: float = 4.0
    offset: float = 1.0
    drift: float = 1.0
    noise: float = 0.003
    trunk_noise: float = 0.0
    trunks: bool = False
    seeds: int = 1

    def optimum(self, budget: float) -> tuple[float, float, float]:
        """N, D and the loss of the true optimum."""
        guess = self.law.closed_form(budget)[0]
        frame = Frame(guess, budget / guess, None)
        found = minimise(
            frame.theta(self.law)[None], frame, self.cost, budget, (guess / WIDEST, guess * WIDEST)
        )  # fmt: skip
        if found.edge[0]:
            raise ValueError(f"budget={budget:.3g}: the true optimum is not within {WIDEST:g} of {guess:.3g}.")
        return float(found.size[0]), float(found.bytes[0]), float(found.loss[0])

    def exponent(self) -> float:
        """Of C in the true optimum's size, over the budgets."""
        budgets = np.array(self.budgets)
        return float(exponents(budgets, np.array([[self.optimum(b)[0] for b in self.budgets]]))[0])

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Sizes and budgets of all runs of one seed."""
        middle = float(np.exp(np.mean(np.log(self.budgets))))
        steps = np.geomspace(1 / self.width, self.width, self.sizes)
        sizes, budgets = [], []
        for budget in self.budgets:
            centre = self.optimum(middle if self.trunks else budget)[0] * self.offset
            if not self.trunks:
                centre *= self.drift ** np.log10(budget / middle)
            sizes.append(centre * steps)
            budgets.append(np.full(self.sizes, budget))
        return np.concatenate(sizes), np.concatenate(budgets)

    def draw(self, seed: int) -> Points:
        """The points of one study."""
        generator = np.random.default_rng(seed)
        sizes, budgets = (np.tile(column, self.seeds) for column in self.grid())
        copies = np.repeat(np.arange(self.seeds), len(sizes) // self.seeds)
        data = np.array([self.cost.bytes_within(b, np.array([n]))[0] for n, b in zip(sizes, budgets, strict=True)])
        if self.trunks:
            names = [f"{n:.6g}/{copy}" for n, copy in zip(sizes, copies, strict=True)]
        else:
            names = [str(number) for number in range(len(sizes))]
        _, trunk = np.unique(np.array(names), return_inverse=True)
        shared = generator.normal(0, 1, trunk.max() + 1)[trunk] * self.trunk_noise
        truth = np.array([self.law.loss(n, d) for n, d in zip(sizes, data, strict=True)])
        return Points(
            size=sizes,
            bytes=data,
            loss=truth + shared + generator.normal(0, 1, len(sizes)) * self.noise,
            flops=budgets.copy(),
            cluster=tuple(names),
            about=About("simulated", "N", "simulated", "nothing: simulated", seeds=(seed,)),
            budget=budgets,
        )


@dataclasses.dataclass(frozen=True)
class Tally:
    """What one estimator made of many simulated studies, for one number."""

    method: Method
    number: str
    truth: float
    studies: int
    coverage: float | None  # share of the intervals that hold the truth; None without draws
    bias: float  # mean error
    spread: float  # standard deviation of the errors
    worst: float  # largest error in size
    missing: int  # studies that gave no such number; not counted in the others

    def __str__(self) -> str:
        coverage = "-" if self.coverage is None else f"{self.coverage:.1%}"
        return (
            f"{self.method:<10} {self.number:<14} {self.truth:>9.4g} {coverage:>8} {self.bias:>+10.2e} "
            f"{self.spread:>9.2e} {self.worst:>9.2e} {self.missing:>7}"
        )


HEADER = (
    f"{'method':<10} {'number':<14} {'truth':>9} {'coverage':>8} {'bias':>10} {'spread':>9} {'worst':>9} {'missing':>7}"
)


def trial(
    design: Design,
    studies: int = 200,
    draws: int = 200,
    methods: tuple[Method, ...] = METHODS,
    seed: int = 0,
    redraw: Callable[[Points], Points] = lambda points: points,
) -> list[Tally]:
    """Fits many simulated studies and compares with the truth.

    Numbers: E, alpha and beta of the surfaces; of all, the exponent of N* and ln N* and the loss at the largest budget.

    Args:
      redraw: changes a study before it is fitted, to see what a wrong analysis would say.
    """
    largest = max(design.budgets)
    size, _, loss = design.optimum(largest)
    truth = {name: getattr(design.law, name) for name in ("E", "alpha", "beta")}
    truth |= {"size_exponent": design.exponent(), "ln_size": float(np.log(size)), "loss": loss}
    found: dict[tuple[Method, str], list[tuple[float, bool]]] = {}
    for study in range(studies):
        points = redraw(design.draw(seed + study))
        for method in methods:
            fit = fit_law(points, method, design.cost, draws, seed=seed + study)
            numbers = {"size_exponent": fit.exponents()[0]}
            if isinstance(fit, FittedLaw):
                numbers |= {name: fit.parameter(name) for name in ("E", "alpha", "beta")}
            last = [optimum for optimum in fit.optima() if optimum.budget == largest and optimum.bound is None]
            if last:
                numbers["loss"] = last[0].loss
                numbers["ln_size"] = last[0].size
            for name, value in numbers.items():
                if value.value is None:
                    continue
                wanted = np.exp(truth[name]) if name == "ln_size" else truth[name]
                error = np.log(value.value / wanted) if name == "ln_size" else value.value - wanted
                found.setdefault((method, name), []).append((float(error), wanted in value))
    out = []
    for (method, name), pairs in found.items():
        errors = np.array([error for error, _ in pairs])
        out.append(
            Tally(
                method=method,
                number=name,
                truth=truth[name],
                studies=studies,
                coverage=float(np.mean([held for _, held in pairs])) if draws else None,
                bias=float(errors.mean()),
                spread=float(errors.std(ddof=1)) if len(errors) > 1 else 0.0,
                worst=float(np.abs(errors).max()),
                missing=studies - len(pairs),
            )
        )
    return out
