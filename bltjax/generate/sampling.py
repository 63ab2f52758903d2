"""Which id comes next: greedy, or drawn at random from what the filters leave of the distribution.

In go logits, a key for every row and what `Sampling` says, as arrays, so that one compiled program serves every
setting; out comes an id for every row. `decode` calls this at every step.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How ids are drawn. The filters apply in this order, each to what the one before has left; the likeliest id stays.

    Raises:
      ValueError: for a value out of range, or a filter where nothing is drawn at random.
    """

    temperature: float = 0.0  # logits are divided by it; 0: the likeliest id, always
    top_k: int | None = None  # only the k likeliest ids; of equally likely ones those with the lower ids
    top_p: float | None = None  # only the likeliest ids that together reach this probability
    min_p: float | None = None  # only ids with at least this share of the probability of the likeliest
    seed: int = 0  # row i of a batch draws with the seed + i, whatever the other rows are

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, advice: str) -> None:
            if not condition:
                raise ValueError(f"sampling.{name}={getattr(self, name)!r}: {advice}")

        require(0 <= self.temperature < float("inf"), "temperature", "must be finite and at least 0, which is greedy.")
        require(self.top_k is None or self.top_k >= 1, "top_k", "must be at least 1.")
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", "must lie in (0, 1].")
        require(self.min_p is None or 0 <= self.min_p <= 1, "min_p", "must lie in 0 .. 1.")
        require(0 <= self.seed < 2**31, "seed", "must lie in 0 .. 2^31 - 1.")
        for name in ("top_k", "top_p", "min_p"):
            advice = "has no effect at temperature 0, which is greedy; set a temperature, or leave it out."
            require(self.temperature > 0 or getattr(self, name) is None, name, advice)


GREEDY = Sampling()


@chex.dataclass
class Drawing:
    """A `Sampling` as arrays, for one batch."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]
    keys: Key[Array, "batch"]
    allowed: Bool[Array, "vocabulary"]  # which ids may be drawn at all


def drawing(sampling: Sampling, batch: int, allowed: Bool[np.ndarray, "vocabulary"]) -> Drawing:
    """The arrays that `draw` takes."""
    return Drawing(
        temperature=jnp.float32(sampling.temperature),
        top_k=jnp.int32(len(allowed) if sampling.top_k is None else min(sampling.top_k, len(allowed))),
        top_p=jnp.float32(1 if sampling.top_p is None else sampling.top_p),
        min_p=jnp.float32(0 if sampling.min_p is None else sampling.min_p),
        keys=jax.vmap(jax.random.key)(jnp.uint32(sampling.seed) + jnp.arange(batch, dtype=jnp.uint32)),
        allowed=jnp.asarray(allowed),
    )


def filtered(logits: Float[Array, "batch vocabulary"], drawing: Drawing) -> Float[Array, "batch vocabulary"]:
    """Logits with those that top-k, top-p and min-p leave out at minus infinity."""
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(logits.shape[-1])
    keep = rank < drawing.top_k
    weights = jax.nn.softmax(jnp.where(keep, ranked, -jnp.inf), axis=-1)
    # An id stays if the likelier ones alone do not reach top_p.
    keep &= jnp.cumsum(weights, axis=-1) - weights < drawing.top_p
    keep &= weights >= drawing.min_p * weights[:, :1]
    keep |= rank == 0
    return jnp.where(jnp.take_along_axis(keep, jnp.argsort(order, axis=-1), axis=-1), logits, -jnp.inf)


def draw(logits: Float[Array, "batch vocabulary"], place: Int[Array, "batch"], drawing: Drawing) -> Int[Array, "batch"]:
    """The next id of every row, by its own logits and key alone.

    Args:
      place: of the id in its row; another random number for each.
    """
    logits = jnp.where(drawing.allowed, logits, -jnp.inf)

    def at_random() -> Array:
        scaled = logits / drawing.temperature
        few = (drawing.top_k < logits.shape[-1]) | (drawing.top_p < 1) | (drawing.min_p > 0)
        scaled = jax.lax.cond(few, lambda: filtered(scaled, drawing), lambda: scaled)
        keys = jax.vmap(jax.random.fold_in)(drawing.keys, place)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
        return jnp.argmax(scaled + noise, axis=-1)

    likeliest = jnp.argmax(logits, axis=-1)
    return jax.lax.cond(drawing.temperature > 0, at_random, lambda: likeliest).astype(jnp.int32)
