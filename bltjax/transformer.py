"""The Llama-style layer, the stack of layers that every tower uses, and the flat language model made of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bltjax.attention import attention
from bltjax.config import ComputeConfig, LanguageModelConfig, TransformerConfig
from bltjax.layers import Embedding, Projection, RMSNorm, Rotation, SwiGLU, layer_factors, matrix_std, rotate, rotation
from bltjax.parallel import per_device
from bltjax.patching.patches import byte_documents

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attention"),
    ),
}


Heads = Float[Array, "batch positions heads head_width"]
Mix = Callable[[Heads, Heads, Heads], Heads]  # from queries, keys and values of positions to what each position read


class SelfAttention(nn.Module):
    """Rotary self-attention with grouped queries."""

    config: TransformerConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch positions width"],
        angles: Rotation,
        documents: Int[Array, "batch positions"] | None,
        mix: Mix | None = None,
    ) -> Float[Array, "batch positions width"]:
        """What each position reads of the row; or, with a `mix`, of what that remembers (`bltjax.generate.cache`)."""
        config, dtype = self.config, self.compute.dtype
        width, heads, head = config.width, config.heads, config.head_width
        std = matrix_std(config, width)
        axes = ("shard", "heads", "head_width")
        q = Projection((width,), (heads, head), axes, std, dtype, name="query")(x)
        k = Projection((width,), (config.key_heads, head), axes, std, dtype, name="key")(x)
        v = Projection((width,), (config.key_heads, head), axes, std, dtype, name="value")(x)
        q, k = rotate(q, angles), rotate(k, angles)
        if mix is None:
            mixed = attention(q, k, v, documents, config.window, self.compute.attention)
        else:
            mixed = mix(q, k, v)
        axes = ("heads", "head_width", "shard")
        return Projection((heads, head), (width,), axes, std, dtype, name="out")(mixed)


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    config: TransformerConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch positions width"],
        angles: Rotation,
        documents: Int[Array, "batch positions"] | None,
        mix: Mix | None = None,
    ) -> Float[Array, "batch positions width"]:
        """Arguments as for `SelfAttention`."""
        config, dtype = self.config, self.compute.dtype
        normed = RMSNorm(config.width, config.norm_epsilon, dtype, name="attention_norm")(x)
        x = x + SelfAttention(config, self.compute, name="attention")(normed, angles, documents, mix)
        normed = RMSNorm(config.width, config.norm_epsilon, dtype, name="feed_forward_norm")(x)
        return x + SwiGLU(config, dtype, name="feed_forward")(normed)


class _Bundle(nn.Module):
    modules: Sequence[nn.Module]


def stacked(
    modules: Sequence[nn.Module],
    body: Callable[..., Any],
    length: int,
    compute: ComputeConfig,
    carry: Any,
    *shared: Any,
    init_factors: Sequence[float] = (),
) -> Any:
    """Applies `body(modules, carry, *shared) -> carry` `length` times, each time with the next slice of the params.

    The params of every module have a leading axis of `length`, whether the layers are scanned (one compiled body) or
    written out (`compute.unroll`: no residuals copied into and out of stacked arrays, which costs most on a CPU).
    `compute.remat` names what a layer recomputes in the backward pass.

    Args:
      modules: unbound inside a parent's compact method, each with a name; their params lie under that name.
      carry: a pytree handed from layer to layer; shared: pytrees that every layer sees.
      init_factors: the fresh matrices of layer i are divided by the i-th; () divides nothing.
    """
    if compute.unroll and not modules[0].is_initializing():
        return _written_out(modules, body, length, compute, carry, *shared)

    def step(bundle: _Bundle, carry: Any, *shared: Any) -> Any:
        return body(bundle.modules, carry, *shared)

    if compute.remat != "none":
        step = nn.remat(step, policy=REMAT_POLICIES[compute.remat], prevent_cse=False)
    scanned = nn.scan(
        lambda bundle, carry, *shared: (step(bundle, carry, *shared), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=length,
    )
    carry = scanned(_Bundle(modules, parent=None), carry, *shared)[0]
    if init_factors and modules[0].is_initializing():
        for module in modules:
            _divide_kernels(module, init_factors)
    return carry


def _divide_kernels(module: nn.Module, factors: Sequence[float]) -> None:
    """Here and not where a kernel is drawn, since a scan draws all layers' kernels alike."""

    def divided(path: tuple[Any, ...], leaf: Array) -> Array:
        by = jnp.array(factors[: len(leaf)], leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
        return leaf / by if path[-1].key == "kernel" else leaf

    for name, tree in jax.tree_util.tree_map_with_path(divided, dict(module.variables["params"])).items():
        module.put_variable("params", name, tree)


def _written_out(
    modules: Sequence[nn.Module],
    body: Callable[..., Any],
    length: int,
    compute: ComputeConfig,
    carry: Any,
    *shared: Any,
) -> Any:
    layers = list(zip(*(_split_layers(module.variables["params"], length) for module in modules), strict=True))
    free = [module.clone(parent=None, name=None) for module in modules]

    def step(params: Sequence[Any], carry: Any, *shared: Any) -> Any:
        bound = [module.bind({"params": p}) for module, p in zip(free, params, strict=True)]
        return body(bound, carry, *shared)

    if compute.remat != "none":
        # Unlike in a scan, nothing but prevent_cse keeps XLA from merging the second computation with the first.
        step = jax.checkpoint(step, policy=REMAT_POLICIES[compute.remat], prevent_cse=True)
    for params in layers:
        carry = step(params, carry, *shared)
    return carry


def _split_layers(params: Any, length: int) -> list[Any]:
    """The params of each layer. Unlike indexing, lax.split has one concatenation as its transpose, so that the
    stacked gradient is written once and not `length` times."""
    leaves, structure = jax.tree.flatten(params)
    pieces = [jax.lax.split(leaf, [1] * length, axis=0) for leaf in leaves]
    return [jax.tree.unflatten(structure, [piece[i][0] for piece in pieces]) for i in range(length)]


def tower(
    config: TransformerConfig,
    compute: ComputeConfig,
    x: Float[Array, "batch positions width"],
    documents: Int[Array, "batch positions"] | None,
) -> Float[Array, "batch positions width"]:
    """The layers of one tower, as params "layers" of the module whose compact method calls this.

    There is neither embedding nor final norm; positions are those of the row.
    """
    if not config.layers:
        return x
    angles = rotation(x.shape[1], config.head_width, config.rope_theta)
    layer = TransformerLayer(config, compute, name="layers")
    return stacked(
        [layer], _one_layer, config.layers, compute, x, angles, documents, init_factors=layer_factors(config)
    )


def _one_layer(modules: Sequence[nn.Module], x: Array, angles: Rotation, documents: Array | None) -> Array:
    return modules[0](x, angles, documents)


def embed_ids(config: LanguageModelConfig, ids: Int[Array, "batch positions"]) -> Float[Array, "batch positions width"]:
    """What a flat model's tower begins with; with params "embedding" of the module that calls this."""
    width = config.tower.width
    return Embedding(config.vocabulary_size, width, width**-0.5, config.compute.dtype, name="embedding")(ids)


def id_logits(
    config: LanguageModelConfig, x: Float[Array, "batch positions width"]
) -> Float[Array, "batch positions vocabulary"]:
    """Logits, float32, of what a tower ends with; with params "norm" and "output" of the module that calls this."""
    width, dtype = config.tower.width, config.compute.dtype
    x = RMSNorm(width, config.tower.norm_epsilon, dtype, name="norm")(x)
    axes, rows = ("shard", "vocabulary"), config.vocabulary_size
    return Projection((width,), (rows,), axes, width**-0.5, dtype, "float32", name="output")(x)


class LanguageModel(nn.Module):
    """Embedding, tower, norm, output: the flat model over bytes or over the tokens of a BPE."""

    config: LanguageModelConfig

    @nn.compact
    def __call__(
        self, ids: Int[Array | np.ndarray, "batch positions"], patches: None = None
    ) -> Float[Array, "batch positions vocabulary"]:
        """Logits, float32; those at position t predict the id at t + 1.

        Args:
          ids: of the row, special ids included.
          patches: always None; here so that every family is called alike.

        Raises:
          ValueError: for patches, which a flat model does not read.
        """
        if patches is not None:
            raise ValueError("patches: a flat model reads none; pass None.")
        config = self.config
        ids = jnp.asarray(ids, jnp.int32)
        documents = None
        if config.document_mask:
            documents = per_device(byte_documents, [("batch", None)], ("batch", None))(ids)
        return id_logits(config, tower(config.tower, config.compute, embed_ids(config, ids), documents))
