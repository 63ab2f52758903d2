"""Projection, RMSNorm, rotary, SwiGLU, embedding: the only place that declares parameters.

Parameters are float32; products run in the compute dtype; statistics and rotations are float32. What is cheap to
compute again (norms, the gate) is not kept for the backward pass: on most machines writing it costs more.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bltjax.blocked import Blocked
from bltjax.config import TransformerConfig
from bltjax.parallel import exchanged, joined, per_device, summed, summed_part
from bltjax.sharding import gathered, is_spread, split_axis, summing_axis


def truncated_normal(std: float) -> nn.initializers.Initializer:
    """Normal of the given std, cut at three standard deviations, as the released code draws it."""
    return nn.initializers.truncated_normal(std, lower=-3.0, upper=3.0)


def matrix_std(config: TransformerConfig, fan_in: int) -> float:
    """Std of a layer's matrix: the configured base if there is one, else fan_in^-0.5 over the factor.

    With the factor "current_depth" it is that of every layer before `layer_factors` divide it.
    """
    if config.init_std is not None:
        return config.init_std
    factors = {"depth": math.sqrt(2 * (config.layers + 1)), "width": config.width / 4096}
    return fan_in**-0.5 / factors.get(config.init_factor, 1.0)


def layer_factors(config: TransformerConfig) -> tuple[float, ...]:
    """What the fresh matrices of each layer are divided by beyond `matrix_std`; () for nothing."""
    if config.init_std is not None or config.init_factor != "current_depth":
        return ()
    return tuple(math.sqrt(2 * (layer + 1)) for layer in range(config.layers))


Axes = tuple[str | None, ...]


class Projection(nn.Module):
    """Linear map without bias from the trailing `inputs` axes to `outputs`; the kernel is [*inputs, *outputs].

    `axes` are the logical names of the kernel's axes, as `sharding.PARAMETER_RULES` has them. `result` is the dtype of
    what comes out, if not that of the products: sums are float32, and logits are not rounded after them.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: Axes
    std: float
    dtype: str = "float32"
    result: str | None = None

    @nn.compact
    def kernel(self) -> Float[Array, "..."] | Blocked:
        given = self.get_variable("params", "kernel")
        if isinstance(given, Blocked):
            return given
        return self.param("kernel", truncated_normal(self.std), (*self.inputs, *self.outputs), jnp.float32)

    def __call__(self, x: Float[Array, "batch positions ..."]) -> Float[Array, "batch positions ..."]:
        out: Any = product(x.astype(self.dtype), self.kernel(), self.axes, len(self.inputs), self.result)
        return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def product(
    x: Float[Array, "batch positions ..."],
    kernel: Float[Array, "..."] | Blocked,
    axes: Axes,
    inputs: int = 1,
    result: str | None = None,
) -> Float[Array, "batch positions ..."]:
    """x times kernel, summed over the last `inputs` axes of x and the first of the kernel.

    On a mesh each device gathers the kernel for its use, in the dtype of x, and its gradient is summed into the parts
    in which the kernel lies: left to a compiler, that sum is made whole on every device first.

    Args:
      kernel: float32; on a mesh in the parts that `axes` say. One that is `Blocked` has no gradient.
      axes: logical names of the kernel's axes.
      result: dtype of what comes out; None: that of x. Its gradient is rounded to that of x all the same.
    """
    if isinstance(kernel, Blocked):
        return kernel.times(x, result)
    x_axes, out_axes = _around(x.ndim - inputs, axes, inputs)
    parts, over = split_axis("shard"), _summing(x_axes[x.ndim - inputs :])

    def multiply(x: Array, kernel: Array) -> Array:
        whole = _whole(kernel.astype(x.dtype), axes, parts)
        return summed(_dot(x, whole, _trailing(x.ndim, inputs), tuple(range(inputs)), result), *over)

    return per_device(multiply, [x_axes, axes], out_axes)(x, jnp.asarray(kernel))


def _around(kept: int, axes: Axes, inputs: int) -> tuple[Axes, Axes]:
    """Logical axes of what goes into a product and of what comes out, when `kept` axes of x are kept."""
    axes = gathered(axes)
    leading = ("batch", "positions", *[None] * (kept - 2))[:kept]
    return (*leading, *axes[:inputs]), (*leading, *axes[inputs:])


def _summing(axes: Axes) -> list[str | None]:
    return [summing_axis(name) for name in axes if name is not None]


def _trailing(dimensions: int, count: int) -> tuple[int, ...]:
    return tuple(range(dimensions - count, dimensions))


def _whole(kernel: Array, axes: Axes, parts: str | None) -> Array:
    return joined(kernel, parts, axes.index("shard")) if "shard" in axes else kernel


def _dot(a: Array, b: Array, over_a: tuple[int, ...], over_b: tuple[int, ...], dtype: Any = None) -> Array:
    return jax.lax.dot_general(a, b, ((over_a, over_b), ((), ())), preferred_element_type=dtype)


def _product_forward(
    x: Array, kernel: Array, axes: Axes, inputs: int, result: str | None
) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel, axes, inputs, result), (x, kernel)


def _product_backward(
    axes: Axes, inputs: int, result: str | None, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    g = g.astype(x.dtype)
    kept, outputs = x.ndim - inputs, kernel.ndim - inputs
    if not is_spread():
        dx = _dot(g, kernel.astype(g.dtype), _trailing(g.ndim, outputs), _trailing(kernel.ndim, outputs))
        rows = x.reshape(-1, math.prod(kernel.shape[:inputs])), g.reshape(-1, math.prod(kernel.shape[inputs:]))
        dkernel = jax.lax.platform_dependent(*rows, cpu=_transposed_product_on_cpu, default=_transposed_product)
        return dx, dkernel.reshape(kernel.shape)
    x_axes, out_axes = _around(kept, axes, inputs)
    parts, over = split_axis("shard"), _summing(out_axes[kept:])
    # Rows lie on replicas and on the devices that share a kernel.
    elsewhere = _summing(("replicas", *x_axes[1:kept], *(() if "shard" in axes else ("shard",))))

    def multiply(x: Array, kernel: Array, g: Array) -> list[Array]:
        whole = _whole(kernel.astype(g.dtype), axes, parts)
        dx = summed(_dot(g, whole, _trailing(g.ndim, outputs), _trailing(kernel.ndim, outputs)), *over)
        # Summed over bytes and devices in float32, and left in parts where the kernel lies in parts.
        dkernel = _dot(x, g, tuple(range(kept)), tuple(range(kept)), jnp.float32)
        dkernel = summed_part(dkernel, parts, axes.index("shard")) if "shard" in axes else dkernel
        return [dx, summed(dkernel, *elsewhere)]

    dx, dkernel = per_device(multiply, [x_axes, axes, out_axes], [x_axes, axes])(x, jnp.asarray(kernel), g)
    return dx, dkernel


def _transposed_product(x: Array, g: Array) -> Array:
    return jax.lax.dot_general(x, g, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _transposed_product_on_cpu(x: Array, g: Array) -> Array:
    # XLA has no fast code on CPUs for a product whose first operand is transposed: in bfloat16 it computes it in
    # float32 (140 to 340 GFLOP/s instead of 700 on two cores). So the transpose is written out, which takes little,
    # behind a barrier and an axis of 1 lest it be folded into the product again.
    x, over = jax.lax.optimization_barrier(x.T[None]), (((2,), (1,)), ((0,), (0,)))
    return jax.lax.dot_general(x, g[None], over, preferred_element_type=jnp.float32)[0]


product.defvjp(_product_forward, _product_backward)


def look_up(
    table: Float[Array | np.ndarray, "rows width"],
    ids: Int[Array, "batch positions ..."],
    dtype: str,
    absent: float | None = None,
) -> Float[Array, "batch positions width"]:
    """Rows of a table, summed over the axes of `ids` after the first two.

    A table that lies in parts is never gathered, nor is its gradient: each device looks its part of the width up for
    the rows of all devices, and they exchange what they found.

    Args:
      dtype: of the result; sums are float32.
      absent: stands for the row of an id out of range, -1 among them; None: there is no such id.
    """
    parts = split_axis("shard")
    how: dict[str, Any] = {"mode": "promise_in_bounds"}
    if absent is not None:
        how = {"mode": "fill", "fill_value": absent, "wrap_negative_indices": False}

    def find(table: Array, ids: Array) -> Array:
        found = table.at[joined(ids, parts, 0)].get(**how)
        found = jnp.sum(found, axis=tuple(range(2, ids.ndim))) if ids.ndim > 2 else found
        return exchanged(found.astype(dtype), parts, 0, 2)

    axes = ("batch", "positions", *[None] * (ids.ndim - 2))
    # jnp.asarray: params read from a checkpoint are numpy arrays, which have no .at
    return per_device(find, [(None, "shard"), axes], ("batch", "positions", None))(jnp.asarray(table), ids)


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
    def __call__(self, ids: Int[Array, "batch positions"]) -> Float[Array, "batch positions width"]:
        table = self.param("table", truncated_normal(self.std), (self.rows, self.width), jnp.float32)
        # An id out of range gives NaN; wrapped, a -1 would be taken for the last byte.
        return look_up(table, ids, self.dtype, absent=jnp.nan)


@jax.checkpoint
def _gated_product(gate: Array, up: Array, kernel: Array | Blocked) -> Array:
    out: Any = product(nn.silu(gate) * up, kernel, ("hidden", "shard"))
    return out


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (Shazeer 2020)."""

    config: TransformerConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        width, hidden = self.config.width, self.config.hidden_width
        std = matrix_std(self.config, width)
        axes, down_axes = ("shard", "hidden"), ("hidden", "shard")
        gate = Projection((width,), (hidden,), axes, std, self.dtype, name="gate")(x)
        up = Projection((width,), (hidden,), axes, std, self.dtype, name="up")(x)
        down = Projection((hidden,), (width,), down_axes, matrix_std(self.config, hidden), name="down")
        return _gated_product(gate, up, down.kernel())


Rotation = tuple[Float[Array, "*batch positions half"], Float[Array, "*batch positions half"]]


def rotation(length: int, head_width: int, theta: float) -> Rotation:
    """Cosines and sines of rotary position embedding for positions 0 .. length - 1 of a row, alike in all rows."""
    return rotation_at(jnp.arange(length, dtype=jnp.int32), head_width, theta)


def rotation_at(positions: Int[Array, "*batch positions"], head_width: int, theta: float) -> Rotation:
    """Cosines and sines of rotary position embedding at any positions, which may differ from row to row.

    Frequency i is theta^(-2 i / head_width) (Su et al. 2021); angles are float32 radians.
    """
    frequencies = theta ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "batch positions heads head_width"], angles: Rotation
) -> Float[Array, "batch positions heads head_width"]:
    """Rotates the interleaved pairs (2 i, 2 i + 1) of every head; float32 inside, the dtype of x outside."""
    cosine, sine = (a[..., None, :] for a in angles)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack((even * cosine - odd * sine, even * sine + odd * cosine), axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
