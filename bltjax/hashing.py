"""Byte n-gram hashes (BLT paper section 3.2.1): exact wrapping 64-bit arithmetic in 32-bit halves, without x64."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Int32, UInt32

from bltjax.config import HashConfig
from bltjax.layers import look_up, truncated_normal
from bltjax.parallel import per_device

# One prime a hash function, in the order of the released code.
MULTIPLIERS = (
    1000000007,
    5915587277,
    1500450271,
    3267000013,
    5754853343,
    4093082899,
    9576890767,
    3628273133,
    2860486313,
    5463458053,
    3367900313,
)

Half = UInt32[Array, "..."]


def _halves(constants: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower halves of 64-bit constants."""
    return (
        np.array([c >> 32 & 0xFFFFFFFF for c in constants], np.uint32),
        np.array([c & 0xFFFFFFFF for c in constants], np.uint32),
    )


def _multiply_high(x: Half, constants: np.ndarray) -> Half:
    """Upper 32 bits of the 64-bit products, from products of 16-bit halves, which cannot overflow."""
    c_high, c_low = constants >> 16, constants & np.uint32(0xFFFF)
    x_high, x_low = x >> 16, x & 0xFFFF
    middle = x_high * c_low + (x_low * c_low >> 16)
    other = x_low * c_high + (middle & 0xFFFF)
    return x_high * c_high + (middle >> 16) + (other >> 16)


def _multiply(high: Half, low: Half, constants: list[int]) -> tuple[Half, Half]:
    c_high, c_low = _halves(constants)
    return high * c_low + low * c_high + _multiply_high(low, c_low), low * c_low


def _add(high: Half, low: Half, high_term: Half | int, low_term: Half) -> tuple[Half, Half]:
    total = low + low_term
    return high + high_term + (total < low_term).astype(jnp.uint32), total


def _signed_modulo(high: Half, low: Half, divisor: int) -> Int32[Array, "..."]:
    """The 64-bit number, read as signed, modulo the divisor: the non-negative remainder."""
    v = np.uint32(divisor)
    # The remainder so far is below 2^bits, so that many bits fewer than 32 can be brought down at a time.
    step = 32 - (divisor - 1).bit_length()
    remainder = high % v
    left = 32
    while left:
        take = min(step, left)
        left -= take
        down = low >> left & np.uint32((1 << take) - 1)
        remainder = remainder << take | down
        # One bit at most doubles the remainder: a subtraction is then cheaper than a division.
        remainder = jnp.where(remainder >= v, remainder - v, remainder) if take == 1 else remainder % v
    wrap = np.uint32(divisor - (1 << 64) % divisor)
    remainder = remainder + jnp.where(high >> 31 > 0, wrap, np.uint32(0))
    return jnp.where(remainder >= v, remainder - v, remainder).astype(jnp.int32)


def _shifted(ids: Array, distance: int) -> Array:
    """Entry t is the id `distance` bytes before t; id 0 before the row."""
    if distance == 0:
        return ids
    return jnp.pad(ids, ((0, 0), (distance, 0)))[:, : ids.shape[1]]


def _polynomials(
    ids: Array, sizes: tuple[int, ...], multipliers: tuple[int, ...], power_order: str
) -> tuple[Half, Half]:
    """The wrapped 64-bit polynomial of the window that ends at each byte: halves [batch, bytes, functions, sizes]."""
    low = jnp.broadcast_to(ids.astype(jnp.uint32)[:, :, None], (*ids.shape, len(multipliers)))
    high = jnp.zeros_like(low)
    found = {1: (high, low)}
    for size in range(2, max(sizes) + 1):
        older = _shifted(ids, size - 1).astype(jnp.uint32)[:, :, None]
        if power_order == "code":  # the window's oldest id has power 0: multiply what is newer
            high, low = _multiply(high, low, list(multipliers))
            high, low = _add(high, low, 0, older)
        else:
            powers = [pow(a, size - 1, 1 << 64) for a in multipliers]
            high, low = _add(high, low, *_multiply(jnp.zeros_like(older), older, powers))
        found[size] = (high, low)
    return (
        jnp.stack([found[size][0] for size in sizes], axis=-1),
        jnp.stack([found[size][1] for size in sizes], axis=-1),
    )


def ngram_hash(
    ids: Int[Array, "batch bytes"], size: int, buckets: int, function: int = 0
) -> Int32[Array, "batch bytes"]:
    """Bucket of the n-gram that ends at each byte, as the released code hashes it.

    The window's ids, oldest first, are the coefficients of a polynomial in a prime, summed in wrapping signed 64-bit
    arithmetic; its non-negative remainder modulo `buckets` is the bucket. Special ids are hashed too, documents do
    not end a window, and ids before the row count as 0. The paper gives the newest id power 0; see
    `ngram_hashes` for that.

    Args:
      ids: byte ids, none negative.
      size: n, bytes in the window.
      buckets: 1 .. 2^31 - 1.
      function: which of the 11 primes.

    Raises:
      ValueError: for a size, number of buckets or function out of range.
    """
    if not 0 <= function < len(MULTIPLIERS):
        raise ValueError(f"function={function}: there are {len(MULTIPLIERS)}, numbered from 0.")
    config = HashConfig(sizes=(size,), buckets=buckets, functions=1)
    return _buckets(ids, config, MULTIPLIERS[function : function + 1])[:, :, 0]


def ngram_hashes(
    ids: Int[Array, "batch bytes"], config: HashConfig, first: Int[Array, "batch"] | None = None
) -> Int32[Array, "batch bytes tables"]:
    """Row of the fused embedding table for every n-gram that ends at each byte.

    Table e = function * len(sizes) + (place of the size) fills rows e * buckets .. (e + 1) * buckets - 1. With
    `short_ngrams="omit"` a window that begins before the row has the row -1 and no embedding; gather with
    `table.at[rows].get(mode="fill", fill_value=0, wrap_negative_indices=False)`. Otherwise no row is negative.

    Args:
      ids: byte ids, none negative.
      first: column of each row's first byte: ids in columns before it stand for nothing. Negative where the row
        began before these ids. None: 0.

    Raises:
      ValueError: for no sizes at all, or tables of 2^31 rows and more in all.
    """
    if not config.sizes:
        raise ValueError("hash.sizes=(): hash embeddings are switched off, so there is nothing to hash.")
    if config.tables * config.buckets >= 1 << 31:
        raise ValueError(
            f"hash.buckets={config.buckets}: {config.tables} tables make 2^31 rows or more; use fewer buckets."
        )
    offsets = np.arange(config.tables, dtype=np.int32) * np.int32(config.buckets)
    rows = _buckets(ids, config, MULTIPLIERS[: config.functions]) + offsets
    if config.short_ngrams == "omit":
        sizes = np.tile(np.array(config.sizes, np.int32), config.functions)
        places = jnp.arange(ids.shape[1]) - (jnp.zeros(1, jnp.int32) if first is None else first)[:, None]
        rows = jnp.where(places[:, :, None] >= sizes - 1, rows, -1)
    return rows


def _buckets(ids: Array, config: HashConfig, multipliers: tuple[int, ...]) -> Int32[Array, "batch bytes tables"]:
    high, low = _polynomials(jnp.asarray(ids), config.sizes, multipliers, config.power_order)
    return _signed_modulo(high, low, config.buckets).reshape(*ids.shape, -1)


class HashEmbedding(nn.Module):
    """Sum of the embeddings of the n-grams that end at each byte (BLT paper section 3.2.1); one fused table."""

    config: HashConfig
    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, ids: Int[Array, "batch bytes"], first: Int[Array, "batch"] | None = None, skip: int = 0
    ) -> Float[Array, "batch new width"]:
        """
        Args:
          ids, first: as for `ngram_hashes`.
          skip: so many ids only stand before the others, and are not embedded themselves.
        """
        config = self.config
        shape = (config.tables * config.buckets, self.width)
        table = self.param("table", truncated_normal(self.width**-0.5), shape, jnp.float32)
        hashes = functools.partial(ngram_hashes, config=config)
        parts = [ids] if first is None else [ids, first]
        axes = [("batch", None), ("batch",)][: len(parts)]
        rows = per_device(lambda ids, first=None: hashes(ids, first=first), axes, ("batch", None, None))(*parts)
        rows = rows[:, skip:]
        return look_up(table, rows, self.dtype, absent=0 if config.short_ngrams == "omit" else None)
