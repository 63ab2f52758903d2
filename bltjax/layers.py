"""Projection, RMSNorm, rotary, SwiGLU, embedding: the only place that declares parameters.

Parameters are float32; products run in the compute dtype; statistics and rotations are float32. What is cheap to
compute again (norms, the gate) is not kept for the backward pass: on most machines writing it costs more.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bltjax.config import TransformerConfig


def truncated_normal(std: float) -> nn.initializers.Initializer:
    """Normal of the given std, cut at three standard deviations, as the released code draws it."""
    return nn.initializers.truncated_normal(std, lower=-3.0, upper=3.0)


def matrix_std(config: TransformerConfig, fan_in: int) -> float:
    """Std of a layer's matrix: the configured base if there is one, else fan_in^-0.5 over the factor."""
    if config.init_std is not None:
        return config.init_std
    factors = {"none": 1.0, "depth": math.sqrt(2 * (config.layers + 1)), "width": config.width / 4096}
    return fan_in**-0.5 / factors[config.init_factor]


class Projection(nn.Module):
    """Linear map without bias from the trailing `inputs` axes to `outputs`; the kernel is [*inputs, *outputs]."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    std: float
    dtype: str = "float32"

    @nn.compact
    def kernel(self) -> Float[Array, "..."]:
        return self.param("kernel", truncated_normal(self.std), (*self.inputs, *self.outputs), jnp.float32)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        kernel, axes = self.kernel(), len(self.inputs)
        dimensions = (tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes)))
        return jax.lax.dot_general(x.astype(self.dtype), kernel.astype(self.dtype), (dimensions, ((), ())))


@functools.partial(jax.checkpoint, static_argnums=2)
def _normed(x: Array, scale: Array, epsilon: float | Array) -> Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon) * scale


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, in float32 (Zhang and Sennrich 2019)."""

    width: int
    epsilon: float = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        scale = self.param("scale", nn.initializers.ones, (self.width,), jnp.float32)
        return _normed(x, scale, self.epsilon).astype(self.dtype)


class Embedding(nn.Module):
    """Rows of a table; the gradient of a row is the sum over its uses."""

    rows: int
    width: int
    std: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
        # jnp.asarray: params read from a checkpoint are numpy arrays, which have no .at
        table = jnp.asarray(self.param("table", truncated_normal(self.std), (self.rows, self.width), jnp.float32))
        # An id out of range gives NaN; wrapped, a -1 would be taken for the last byte.
        return table.at[ids].get(mode="fill", wrap_negative_indices=False).astype(self.dtype)


@jax.checkpoint
def _gated(gate: Array, up: Array) -> Array:
    return nn.silu(gate) * up


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (Shazeer 2020)."""

    config: TransformerConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        width, hidden = self.config.width, self.config.hidden_width
        std = matrix_std(self.config, width)
        gate = Projection((width,), (hidden,), std, self.dtype, name="gate")(x)
        up = Projection((width,), (hidden,), std, self.dtype, name="up")(x)
        down = Projection((hidden,), (width,), matrix_std(self.config, hidden), self.dtype, name="down")
        return down(_gated(gate, up))


Rotation = tuple[Float[Array, "positions half"], Float[Array, "positions half"]]


def rotation(length: int, head_width: int, theta: float) -> Rotation:
    """Cosines and sines of rotary position embedding for positions 0 .. length - 1 of a row.

    Frequency i is theta^(-2 i / head_width) (Su et al. 2021); angles are float32 radians.
    """
    frequencies = theta ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "batch positions heads head_width"], angles: Rotation
) -> Float[Array, "batch positions heads head_width"]:
    """Rotates the interleaved pairs (2 i, 2 i + 1) of every head; float32 inside, the dtype of x outside."""
    cosine, sine = (a[:, None, :] for a in angles)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack((even * cosine - odd * sine, even * sine + odd * cosine), axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
