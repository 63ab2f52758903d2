"""The step form of a flat language model: of the entropy model, and of the byte and token baselines.

In go new ids of every row and the state after those before; out come the tower's rows for them, whose logits
`logits` gives, and the next state. `latent` calls this for the entropy model, `decode` for the baselines.
"""

import functools
from typing import Any

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bltjax import vocabulary
from bltjax.config import LanguageModelConfig, MegabyteConfig
from bltjax.generate.cache import Cache, empty_cache, first_of_documents, read_layers, run_part, split_layers
from bltjax.transformer import embed_ids, id_logits


@chex.dataclass
class FlatState:
    """What a flat model remembers of its rows."""

    cache: Cache
    document: Int[Array, "batch"]  # where the document of the next position begins


def prepare(params: Any) -> Any:
    """Params as `read` takes them: those of each layer apart."""
    return {**params, "layers": split_layers(params["layers"]) if "layers" in params else ()}


def empty(config: LanguageModelConfig, batch: int, positions: int, ahead: int = 0) -> FlatState:
    """The state before the first id, for rows of up to `positions` ids, `ahead` of which may be taken back."""
    cache = empty_cache(config.tower, config.compute, batch, positions, ahead)
    return FlatState(cache=cache, document=jnp.zeros(batch, jnp.int32))


def documents(
    config: LanguageModelConfig | MegabyteConfig, first: Int[Array, "batch"], ids: Int[Array, "batch new"],
    position: Int[Array, "batch"], count: Int[Array, "batch"],
) -> tuple[Int[Array, "batch new"], Int[Array, "batch"]]:  # fmt: skip
    """Where the documents of new ids begin, and that of the position after the first `count` of them."""
    ends = (ids == vocabulary.EOS) & (jnp.arange(ids.shape[1]) < count[:, None]) & config.document_mask
    return first_of_documents(ends, position, first)


def read(
    config: LanguageModelConfig,
    params: Any,
    state: FlatState,
    ids: Int[Array, "batch new"],
    position: Int[Array, "batch"],
    count: Int[Array, "batch"],
) -> tuple[Float[Array, "batch new width"], FlatState]:
    """Reads `count` new ids of each row; arguments as for `cache.read_layers`."""
    first, document = documents(config, state.document, ids, position, count)
    x = run_part(functools.partial(embed_ids, config), params, ids)
    outs, cache = read_layers(config.tower, config.compute, params["layers"], state.cache, x, position, count, first)
    return outs[-1], FlatState(cache=cache, document=document)


def logits(config: LanguageModelConfig, params: Any, x: Float[Array, "batch new width"]) -> Array:
    """Scores [batch, new, vocabulary] of the ids that come next, float32."""
    return run_part(functools.partial(id_logits, config), params, x)
