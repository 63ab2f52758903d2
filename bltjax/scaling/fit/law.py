"""The form of the laws: the loss of a model of N parameters after D bytes, with patches of T bytes or without.

    L(N, D)    = E + A / N^alpha + B / D^beta
    L(N, D, T) = L(N, D) + linear ln(T/T0) + quadratic ln(T/T0)^2 + with_size ln(T/T0) ln(N/N0)

The second is exploratory: T0 and N0 are the geometric means of the points, so that the first three terms are those of
the mean patch. While it is fitted, a law is a row of numbers in a frame: logarithms of N, D and T are counted from
their means over the points, which takes away most of the correlation between a coefficient and its exponent.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from bltjax.scaling.fit.points import Points

PARAMETERS = ("E", "A", "alpha", "B", "beta")
PATCH_PARAMETERS = ("linear", "quadratic", "with_size")

# Every search stays in here. Beyond these an exponent is not told from a constant or from a step.
LEAST_EXPONENT, LARGEST_EXPONENT = 0.02, 2.0


@dataclasses.dataclass(frozen=True)
class PatchTerm:
    """How the loss depends on the mean patch size at a given size and a given number of bytes, in bits per byte."""

    linear: float
    quadratic: float
    with_size: float
    patch_size: float  # T0, bytes
    size: float  # N0

    def __call__(
        self, size: Float[np.ndarray, "*shape"], patch_size: Float[np.ndarray, "*shape"]
    ) -> Float[np.ndarray, "*shape"]:
        t = np.log(patch_size / self.patch_size)
        return t * (self.linear + self.quadratic * t + self.with_size * np.log(size / self.size))


@dataclasses.dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta, and what the patch size adds.

    A and B are those of the units of N and D: they are strongly correlated with the exponents and mean nothing alone.
    """

    E: float  # bits per byte that neither size nor text removes
    A: float
    alpha: float
    B: float
    beta: float
    patch: PatchTerm | None = None

    def loss(self, size: float, bytes: float, patch_size: float | None = None) -> float:
        """Bits per byte of a model.

        Raises:
          ValueError: for a patch size in a law without one, or none in a law with one.
        """
        if (patch_size is None) != (self.patch is None):
            does = "does not depend" if self.patch is None else "depends"
            raise ValueError(f"patch_size={patch_size}: this law {does} on it.")
        loss = self.E + self.A * size**-self.alpha + self.B * bytes**-self.beta
        if self.patch is not None and patch_size is not None:
            loss += float(self.patch(np.array([size]), np.array([patch_size]))[0])
        return float(loss)

    def closed_form(self, flops: float, k: float = 6.0) -> tuple[float, float]:
        """N and D of the least loss where FLOPs are k N D exactly; of a plain Transformer without attention.

        The optima of a family are those of `optimum`, along its own cost: this is what they are checked against.
        """
        total = self.alpha + self.beta
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        return ratio * (flops / k) ** (self.beta / total), (flops / k) ** (self.alpha / total) / ratio


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where the logarithms of a fit are counted from."""

    size: float
    bytes: float
    patch_size: float | None

    @classmethod
    def of(cls, points: Points) -> "Frame":
        def mean(values: np.ndarray) -> float:
            return math.exp(float(np.log(values).mean()))

        patch_size = None if points.patch_size is None else mean(points.patch_size)
        return cls(mean(points.size), mean(points.bytes), patch_size)

    def coordinates(self, points: Points) -> "Coordinates":
        """The points in this frame."""
        return self.place(points.size, points.bytes, points.patch_size)

    def place(
        self,
        size: Float[np.ndarray, "*shape"],
        bytes: Float[np.ndarray, "*shape"],
        patch_size: Float[np.ndarray, "*shape"] | None = None,
    ) -> "Coordinates":
        """Models in this frame.

        Raises:
          ValueError: for patch sizes in a frame that has none, or the other way.
        """
        if (patch_size is None) != (self.patch_size is None):
            does = "does not depend" if self.patch_size is None else "depends"
            raise ValueError(f"patch_size={patch_size}: this law {does} on it.")
        t = None if patch_size is None else np.log(patch_size / self.patch_size)
        return Coordinates(np.log(size / self.size), np.log(bytes / self.bytes), t)

    @property
    def parameters(self) -> tuple[str, ...]:
        return PARAMETERS if self.patch_size is None else PARAMETERS + PATCH_PARAMETERS

    def law(self, theta: Float[np.ndarray, " parameters"]) -> Law:
        """The law that a row of numbers stands for."""
        e, a, alpha, b, beta, *rest = (float(value) for value in theta)
        patch = None
        if self.patch_size is not None:
            patch = PatchTerm(*rest, patch_size=self.patch_size, size=self.size)
        exact = alpha * math.log(self.size), beta * math.log(self.bytes)
        return Law(math.exp(e), _exp(a + exact[0]), alpha, _exp(b + exact[1]), beta, patch)

    def parameter(self, name: str, theta: Float[np.ndarray, "draws parameters"]) -> Float[np.ndarray, " draws"]:
        """E, A, alpha, B or beta of many rows at once."""
        e, a, alpha, b, beta = theta.T[:5]
        if name in ("alpha", "beta"):
            return {"alpha": alpha, "beta": beta}[name]
        level = {"E": e, "A": a + alpha * math.log(self.size), "B": b + beta * math.log(self.bytes)}[name]
        return np.exp(np.minimum(level, 700.0))

    def theta(self, law: Law) -> Float[np.ndarray, " parameters"]:
        """The row of numbers of a law without patch sizes; the other way round of `law`."""
        a = math.log(law.A) - law.alpha * math.log(self.size)
        b = math.log(law.B) - law.beta * math.log(self.bytes)
        return np.array([math.log(law.E), a, law.alpha, b, law.beta])


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


@dataclasses.dataclass(frozen=True, eq=False)
class Coordinates:
    """Logarithms of N, D and T in a frame; of shape [points], or any that broadcasts with rows of numbers."""

    n: Float[np.ndarray, "..."]
    d: Float[np.ndarray, "..."]
    t: Float[np.ndarray, "..."] | None

    def power_terms(self, theta: Float[np.ndarray, "*draws parameters"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """E, A / N^alpha and B / D^beta for each row of numbers: [*draws, 1] and twice [*draws, points]."""
        e, a, alpha, b, beta = (theta[..., i, None] for i in range(5))
        return np.exp(e), np.exp(a - alpha * self.n), np.exp(b - beta * self.d)

    def linear_columns(self) -> tuple[np.ndarray, ...]:
        """What the coefficients of the patch size multiply; nothing without one."""
        return () if self.t is None else (self.t, self.t**2, self.t * self.n)

    def predict(self, theta: Float[np.ndarray, "*draws parameters"]) -> Float[np.ndarray, "*draws points"]:
        """Losses in bits per byte."""
        loss = sum(self.power_terms(theta))
        for index, column in enumerate(self.linear_columns(), start=5):
            loss = loss + theta[..., index, None] * column
        return np.asarray(loss)

    def jacobian(
        self, theta: Float[np.ndarray, "*draws parameters"]
    ) -> tuple[Float[np.ndarray, "*draws points"], Float[np.ndarray, "*draws points parameters"]]:
        """Losses and their derivatives by the numbers of a row."""
        irreducible, by_size, by_bytes = self.power_terms(theta)
        linear = [np.broadcast_to(column, by_size.shape) for column in self.linear_columns()]
        constant = np.broadcast_to(irreducible, by_size.shape)
        columns = [constant, by_size, -self.n * by_size, by_bytes, -self.d * by_bytes, *linear]
        loss = irreducible + by_size + by_bytes
        for index, column in enumerate(linear, start=5):
            loss = loss + theta[..., index, None] * column
        return loss, np.stack(columns, axis=-1)


def box(coordinates: Coordinates) -> tuple[Float[np.ndarray, " parameters"], Float[np.ndarray, " parameters"]]:
    """The least and the largest row of numbers that a search may reach."""
    free = [5.0] * len(coordinates.linear_columns())  # bits per byte for each unit of ln T
    low = [-30.0, -30.0, LEAST_EXPONENT, -30.0, LEAST_EXPONENT, *(-value for value in free)]
    return np.array(low), np.array([5.0, 5.0, LARGEST_EXPONENT, 5.0, LARGEST_EXPONENT, *free])


def at_edge(law: Law) -> tuple[str, ...]:
    """The exponents with which a search ended at an end of where it may go."""
    ends = np.array([LEAST_EXPONENT, LARGEST_EXPONENT])
    named = {"alpha": law.alpha, "beta": law.beta}
    return tuple(name for name, value in named.items() if np.isclose(value, ends, rtol=1e-3).any())
