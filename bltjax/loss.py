"""Cross entropy and bits per byte, summed exactly.

A target stands for a number of raw bytes of its document: 1 for a byte, several for a token, 0 for BOS and EOS. What
the model pays for bytes and what it pays for BOS and EOS are summed apart, so bits per byte are over raw bytes only.
A delimiter stands for no byte, but tells of the bytes after it: what it costs is paid for bytes.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from bltjax import vocabulary


@chex.dataclass
class Sums:
    """Sums over scored targets; each field a scalar, or one value per row (`row_sums`)."""

    byte_nats: Float[Array, "*rows"]  # -log probability of the targets that stand for raw bytes, and of delimiters
    bytes: Int[Array, "*rows"]  # raw bytes they stand for; int32, since float32 counts no further than 2^24
    special_nats: Float[Array, "*rows"]  # -log probability of BOS and EOS targets
    specials: Int[Array, "*rows"]  # how many of those


@jax.custom_vjp
def cross_entropy(logits: Float[Array, "*shape vocabulary"], targets: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """-log probability in nats of each target, from float32 logits.

    Written as log-sum-exp less the target's logit, with its own backward pass, so that the logits and one number per
    position are all that is kept between the two: no second array of the size of the logits.

    Args:
      logits: unnormalised log probabilities; cast to float32.
      targets: ids; a negative one gives 0, and no gradient.
    """
    return _forward(logits, targets)[0]


def _forward(logits, targets):
    logits32 = logits.astype(jnp.float32)
    norm = jax.nn.logsumexp(logits32, axis=-1)
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    # A masked sum, not a gather: it fuses, its rows may be split over devices, and it needs no scatter backwards.
    picked = jnp.sum(jnp.where(hit, logits32, 0.0), axis=-1)
    return jnp.where(targets >= 0, norm - picked, 0.0), (logits, targets, norm)


def _backward(kept, cotangent):
    logits, targets, norm = kept
    weight = jnp.where(targets >= 0, cotangent, 0.0)[..., None]
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    probability = jnp.exp(logits.astype(jnp.float32) - norm[..., None])
    return (weight * (probability - hit)).astype(logits.dtype), None


cross_entropy.defvjp(_forward, _backward)


def row_sums(
    logits: Float[Array, "batch length vocabulary"],
    targets: Integer[Array | np.ndarray, "batch length"],
    target_bytes: Integer[Array | np.ndarray, "batch length"],
) -> Sums:
    """Sums over each row apart, for sums over many rows in float64 on the host.

    Args:
      logits: float32 scores of the next id.
      targets: the next ids; -1 is not scored.
      target_bytes: raw bytes that each target stands for; 0 for BOS and EOS.

    Returns:
      Sums of shape [batch].
    """
    chex.assert_equal_shape((targets, target_bytes))
    chex.assert_equal_shape_prefix((logits, targets), 2)
    targets = jnp.asarray(targets, jnp.int32)
    nats = cross_entropy(logits, targets)
    scored = targets >= 0
    special = scored & (target_bytes == 0) & (targets != vocabulary.DELIMITER)
    byte = scored & ~special
    return Sums(
        byte_nats=jnp.sum(nats, axis=1, where=byte),
        bytes=jnp.sum(target_bytes, axis=1, where=byte, dtype=jnp.int32),
        special_nats=jnp.sum(nats, axis=1, where=special),
        specials=jnp.sum(special, axis=1, dtype=jnp.int32),
    )


def loss_sums(
    logits: Float[Array, "batch length vocabulary"],
    targets: Integer[Array | np.ndarray, "batch length"],
    target_bytes: Integer[Array | np.ndarray, "batch length"],
) -> Sums:
    """Sums over all rows of a batch: the scalars of `row_sums` added up. Arguments as there."""
    return jax.tree.map(lambda x: jnp.sum(x, dtype=x.dtype), row_sums(logits, targets, target_bytes))


def real_bytes(
    targets: Integer[Array | np.ndarray, "batch length"], target_bytes: Integer[Array | np.ndarray, "batch length"]
) -> Int[Array, ""]:
    """Raw bytes that the scored targets of a batch stand for: what the training loss is divided by."""
    return jnp.sum(target_bytes, where=targets >= 0, dtype=jnp.int32)


def bits_per_byte(nats: float, count: int) -> float:
    """Bits per raw byte of `count` bytes that cost `nats` together (host, float64).

    Raises:
      ValueError: for no bytes.
    """
    if count <= 0:
        raise ValueError(f"bits_per_byte of {count} bytes: nothing was scored; check the targets and the corpus.")
    return float(nats) / (math.log(2.0) * int(count))
