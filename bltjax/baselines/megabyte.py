"""MEGABYTE (Yu et al. 2023, arXiv 2305.07185): a global Transformer over patches, a local one within each of them.

A row's first id is what its patches follow: patch k has the bytes k P + 1 .. (k + 1) P of the row, so that the logits
at a row's position t = k P + p are those of byte p of patch k. As in the paper's equations these see the patches
before k through the global model, and the bytes of patch k before p through the local one; the first byte of a patch is
predicted from the global model alone.

Every patch moves one patch on before the global model reads it, and every byte one byte on before the local model does;
what thereby comes to stand before the first patch, and before the first byte of each, is learned (the pads). The row's
first id, BOS as a rule, is added to the last byte of the global pad.

Where rows hold several documents (`document_mask`), a document that begins inside a patch finds the pads of a row's
beginning where bytes of the one before would stand, and nothing of the global model until its first whole patch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from bltjax import vocabulary
from bltjax.config import VOCABULARY_SIZE, MegabyteConfig
from bltjax.layers import Embedding, Projection, RMSNorm, Rotation, layer_factors, product, rotation
from bltjax.parallel import from_the_left, per_device
from bltjax.patching.patches import byte_documents
from bltjax.sharding import constrain, split_axis
from bltjax.transformer import TransformerLayer, stacked, tower

_NOBODY, _PREFIX = -1, 0  # documents of what is before a row, and of what strided inference puts before it

_WHOLE, _SPLIT = ("batch", None), ("batch", "positions")


def _left(x: Array, amount: int, parts: str | None) -> Array:
    """The `amount` positions before this device's own; zeros before the row; inside `per_device`.

    Args:
      parts: the mesh axis that splits positions.
    """
    if parts is not None:
        return from_the_left(x, amount, parts, 1)
    return jnp.zeros((x.shape[0], amount, *x.shape[2:]), x.dtype)


def _folded(x: Array, size: int) -> Array:
    """[batch, bytes, width] as [batch, patches, size x width]."""

    def fold(x: Array) -> Array:
        if x.shape[1] % size:
            raise ValueError(f"{x.shape[1]} bytes on each device are no whole patches of {size}: split rows less.")
        return x.reshape(x.shape[0], x.shape[1] // size, -1)

    return per_device(fold, [(*_SPLIT, None)], (*_SPLIT, None))(x)


def _unfolded(x: Array, size: int) -> Array:
    """[batch, patches, size x width] as [batch, bytes, width]."""
    axes = (*_SPLIT, None)
    return per_device(lambda x: x.reshape(x.shape[0], x.shape[1] * size, -1), [axes], axes)(x)


def attend_in_patches(
    size: int,
    cross: int,
    q: Float[Array, "batch bytes heads head_width"],
    k: Float[Array, "batch bytes key_heads head_width"],
    v: Float[Array, "batch bytes key_heads head_width"],
    documents: Int[Array, "batch bytes"],
) -> Float[Array, "batch bytes heads head_width"]:
    """Causal attention within each patch of `size` bytes, and to the last `cross` bytes of the patch before.

    Args:
      documents: number of the document of each byte; keys of another one are hidden.
    """

    parts = split_axis("positions")

    def mix(q: Array, k: Array, v: Array, documents: Array) -> Array:
        batch, length, heads, width = q.shape
        patches, groups = length // size, k.shape[2]

        def reach(x: Array) -> Array:
            """Of each patch: the last bytes of the one before, then its own."""
            x = x.reshape(batch, patches, size, *x.shape[2:])
            if not cross:
                return x
            tail = x[:, :, size - cross :]
            before = jnp.concatenate([_left(tail, 1, parts), tail[:, :-1]], axis=1)
            return jnp.concatenate([before, x], axis=2)

        # What lies before the row comes as zeros: one less is the document of nobody.
        own, theirs = documents.reshape(batch, patches, size), reach(documents + 1) - 1
        later = jnp.arange(size)[:, None] < jnp.arange(-cross, size)
        visible = (own[..., :, None] == theirs[..., None, :]) & ~later
        q = q.reshape(batch, patches, size, groups, heads // groups, width)
        scores = jnp.einsum("bnpghw,bnmgw->bnghpm", q, reach(k), preferred_element_type=jnp.float32) * width**-0.5
        weights = jax.nn.softmax(jnp.where(visible[:, :, None, None], scores, -1e30), axis=-1)
        mixed = jnp.einsum("bnghpm,bnmgw->bnpghw", weights.astype(v.dtype), reach(v))
        return checkpoint_name(mixed.reshape(batch, length, heads, width), "attention")

    axes = ("batch", "positions", "heads", None)
    return per_device(mix, [axes, axes, axes, _SPLIT], axes)(q, k, v, documents)


class GlobalModel(nn.Module):
    """Layers over patches, and a norm."""

    config: MegabyteConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch patches width"], documents: Int[Array, "batch patches"]
    ) -> Float[Array, "batch patches width"]:
        config, compute = self.config.global_model, self.config.compute
        x = tower(config, compute, x, documents)
        return RMSNorm(config.width, config.norm_epsilon, compute.dtype, name="norm")(x)


class LocalModel(nn.Module):
    """Layers over the bytes of each patch, and a norm."""

    config: MegabyteConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch bytes width"], documents: Int[Array, "batch bytes"]
    ) -> Float[Array, "batch bytes width"]:
        config, compute = self.config.local_model, self.config.compute
        mix = functools.partial(attend_in_patches, self.config.patch_bytes, self.config.cross_patch_bytes)

        def one_layer(modules: Sequence[nn.Module], x: Array, angles: Rotation, documents: Array) -> Array:
            return modules[0](x, angles, None, lambda q, k, v: mix(q, k, v, documents))

        if config.layers:
            # Rotary positions count for their differences alone, so those of the row will do for every patch.
            angles = rotation(x.shape[1], config.head_width, config.rope_theta)
            modules, factors = [TransformerLayer(config, compute, name="layers")], layer_factors(config)
            x = stacked(modules, one_layer, config.layers, compute, x, angles, documents, init_factors=factors)
        return RMSNorm(config.width, config.norm_epsilon, compute.dtype, name="norm")(x)


class PatchEncoder(nn.Module):
    """Causal convolutions over bytes, each added to what it reads (paper section 2.3.1).

    The paper names the lengths of the filters and no more. Here one follows the other, each with a SiLU.
    """

    config: MegabyteConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch bytes width"], documents: Int[Array, "batch bytes"]
    ) -> Float[Array, "batch bytes width"]:
        """
        Args:
          x: zeros before the first byte of the row.
          documents: number of the document of each byte, not below -1; a filter sees nothing of another one.
        """
        width, dtype = self.config.embedding_width, self.config.compute.dtype
        parts = split_axis("positions")
        for length in self.config.filters:

            def seen(x: Array, documents: Array, length: int = length) -> Array:
                whole = jnp.concatenate([_left(x, length - 1, parts), x], axis=1)
                of_whole = jnp.concatenate([_left(documents + 1, length - 1, parts) - 1, documents], axis=1)
                places = [slice(tap, tap + x.shape[1]) for tap in range(length)]
                taps = [jnp.where((of_whole[:, p] == documents)[..., None], whole[:, p], 0) for p in places]
                return jnp.stack(taps, axis=2)

            taps = per_device(seen, [(*_SPLIT, None), _SPLIT], (*_SPLIT, None, None))(x, documents)
            inputs, axes = (length, width), ("taps", "shard", "width")
            std, name = (length * width) ** -0.5, f"convolution_{length}"
            x = x + nn.silu(Projection(inputs, (width,), axes, std, dtype, name=name)(taps))
        return x


class Megabyte(nn.Module):
    """Bytes -> patches -> global model -> local model of each patch -> logits of the next byte."""

    config: MegabyteConfig

    @nn.compact
    def __call__(
        self, ids: Int[Array | np.ndarray, "batch bytes"], patches: None = None
    ) -> Float[Array, "batch bytes 260"]:
        """Logits, float32; those at byte t predict byte t + 1 and depend on bytes 0 .. t alone.

        Args:
          ids: byte ids of the row, special ids included.
          patches: always None: patches are of `config.patch_bytes` bytes, from the row's second byte on.

        Raises:
          ValueError: for patches, or a row that is longer than the table of positions.
        """
        config, length = self.config, ids.shape[1]
        if patches is not None:
            raise ValueError("patches: MEGABYTE cuts its own; pass None.")
        half = config.patch_bytes // 2 if config.inference == "strided" else 0
        size = config.patch_bytes
        total = -(-(length + half) // size) * size
        if length + half > config.longest_row:
            raise ValueError(f"context_bytes={config.context_bytes}: too few positions for rows of {length} bytes.")
        rows = per_device(functools.partial(_rows_of_passes, total=total, half=half), [_WHOLE], _WHOLE)
        logits = self._logits(rows(jnp.asarray(ids, jnp.int32)))
        if not half and length == total:
            return logits
        whole = ("batch", None, None)
        join = functools.partial(_joined_passes, length=length, size=size, half=half)
        return per_device(join, [whole], whole)(logits)

    def _logits(self, ids: Int[Array, "batch bytes"]) -> Float[Array, "batch bytes 260"]:
        """Of whole patches; ids below 0 stand for no byte."""
        config, size = self.config, self.config.patch_bytes
        prepare = per_device(functools.partial(_slots, config), [_WHOLE], [_WHOLE] * 7)
        slots, of_slots, own, places, of_patches, documents, informed = (constrain(x, _SPLIT) for x in prepare(ids))
        in_patch = constrain(jnp.broadcast_to(jnp.arange(ids.shape[1]) % size, ids.shape), _SPLIT)
        x = with_pads(config, slot_rows(config, slots, of_slots, places), own, places, in_patch)
        x = _unfolded(GlobalModel(config, name="global_model")(_folded(x, size), of_patches), size)
        x = jnp.where(informed[..., None], for_bytes(config, x), 0)
        embedding = local_embedding(config)
        x = x + bytes_before(config, embedding, ids, in_patch)
        return tied_logits(embedding, LocalModel(config, name="local_model")(x, documents))


def _table(config: MegabyteConfig, rows: int, width: int, name: str) -> Embedding:
    return Embedding(rows, width, width**-0.5, config.compute.dtype, name=name)


def slot_rows(
    config: MegabyteConfig, ids: Int[Array, "batch bytes"], documents: Int[Array, "batch bytes"],
    places: Int[Array, "batch bytes"],
) -> Float[Array, "batch bytes width"]:  # fmt: skip
    """Bytes as the global model reads them: equation 1, and the patch encoder where there is one.

    With params "global_embedding", "position_embedding" and "patch_encoder" of the module that calls this.

    Args:
      ids: where there is no byte, any.
      documents: number of the document of each, -1 where there is no byte, whose row comes out as zeros.
      places: row of each in the table of positions, -1 for none.
    """
    width = config.embedding_width
    x = _table(config, VOCABULARY_SIZE, width, "global_embedding")(ids)
    positions = _table(config, config.context_bytes, width, "position_embedding")(jnp.maximum(places, 0))
    x = jnp.where((documents >= 0)[..., None], x + jnp.where(places[..., None] >= 0, positions, 0), 0)
    return PatchEncoder(config, name="patch_encoder")(x, documents) if config.filters else x


def with_pads(
    config: MegabyteConfig, x: Float[Array, "batch bytes width"], own: Bool[Array, "batch bytes"],
    places: Int[Array, "batch bytes"], in_patch: Int[Array, "batch bytes"],
) -> Float[Array, "batch bytes width"]:  # fmt: skip
    """The slots of patches: bytes, and pads where none is to be read; the first byte of a row is added to its pad.

    With params "global_pad" of the module that calls this.

    Args:
      own: whether the byte of a slot is there, and of the document that the patch is predicted for.
      places: as for `slot_rows`.
      in_patch: number of the slot in its patch.
    """
    pad = _table(config, config.patch_bytes, config.embedding_width, "global_pad")(in_patch)
    placed = own & (places >= 0)
    return jnp.where(own[..., None], x, 0) + jnp.where(placed[..., None], 0, pad)


def for_bytes(config: MegabyteConfig, x: Float[Array, "batch bytes width"]) -> Float[Array, "batch bytes local_width"]:
    """What the local model is told at each byte of a patch; with params "global_projection" of what calls this."""
    inputs, outputs, axes = config.embedding_width, config.local_model.width, ("shard", "width")
    std, dtype = inputs**-0.5, config.compute.dtype
    return Projection((inputs,), (outputs,), axes, std, dtype, name="global_projection")(x)


def local_embedding(config: MegabyteConfig) -> Embedding:
    """Of bytes before and, transposed, of the output; with params "local_embedding" of the module that calls this."""
    return _table(config, VOCABULARY_SIZE, config.local_model.width, "local_embedding")


def bytes_before(
    config: MegabyteConfig, embedding: Embedding, ids: Int[Array, "batch bytes"], in_patch: Int[Array, "batch bytes"]
) -> Float[Array, "batch bytes width"]:
    """The byte before each that the local model predicts, a pad for the first of a patch; with params "local_pad"."""
    pad = _table(config, 1, config.local_model.width, "local_pad")(jnp.zeros_like(in_patch))
    return jnp.where((in_patch == 0)[..., None], pad, embedding(jnp.maximum(ids, 0)))


def tied_logits(embedding: Embedding, x: Float[Array, "batch bytes width"]) -> Float[Array, "batch bytes 260"]:
    """Logits, float32: the output is the local embedding once more (equation 6), which has been called before."""
    table = embedding.variables["params"]["table"]
    logits: Any = product(x, jnp.transpose(table), ("shard", "vocabulary"), 1, "float32")
    return constrain(logits, (*_SPLIT, None))


def _rows_of_passes(ids: Array, *, total: int, half: int) -> Array:
    """The rows of one pass, or of both passes of strided inference, completed to `total` bytes."""

    def completed(before: int) -> Array:
        after = total - ids.shape[1] - before
        return jnp.pad(
            jnp.pad(ids, ((0, 0), (0, after)), constant_values=vocabulary.BOE),
            ((0, 0), (before, 0)), constant_values=-1,
        )  # fmt: skip

    return jnp.concatenate([completed(before) for before in ((0, half) if half else (0,))])


def _joined_passes(logits: Array, *, length: int, size: int, half: int) -> Array:
    """Of two passes the first half of each patch: the second one's patches begin half a patch later."""
    if not half:
        return logits[:, :length]
    first, second = jnp.split(logits, 2)
    early = jnp.arange(length) % size < half
    return jnp.where(early[:, None], first[:, :length], second[:, half : half + length])


def _slots(config: MegabyteConfig, ids: Array) -> list[Array]:
    """What the global and the local model read at each position t = k P + p of whole rows.

    Returns:
      The byte that stands in slot p of the global model's patch k, and the document that it is of (_NOBODY before the
      row); whether it is of the document that patch k is predicted for; its place in the table of positions, -1 for
      none; that document, for each patch; the document of byte t; whether it is the one that patch k is predicted for.
    """
    size = config.patch_bytes
    documents = 1 + (byte_documents(ids) if config.document_mask else jnp.zeros_like(ids))
    documents = jnp.where(ids < 0, _PREFIX, documents)
    of_patches = documents[:, ::size]
    of_own_patch = jnp.repeat(of_patches, size, axis=1)

    def moved(x: Array, fill: int) -> Array:
        return jnp.pad(x, ((0, 0), (size - 1, 0)), constant_values=fill)[:, : x.shape[1]]

    slots, of_slots = moved(ids, 0), moved(documents, _NOBODY)
    of_slots = jnp.where(of_slots == _PREFIX, _NOBODY, of_slots)
    own = of_slots == of_own_patch
    places = jnp.broadcast_to(jnp.arange(ids.shape[1]) - size, ids.shape)
    return [jnp.maximum(slots, 0), of_slots, own, places, of_patches, documents, documents == of_own_patch]
