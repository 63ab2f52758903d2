"""The kinds of models that text is generated with: what `decode` runs of each, and the one place that lists them.

In goes a `Source`; out come what is static about its model, which programs are compiled for, and its params as they
take them. `decode` and `Generator` ask `kind_of` for all else, and know no kind by name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from bltjax.config import BLTConfig, LanguageModelConfig, MegabyteConfig, SpaceByteConfig
from bltjax.generate import flat, latent, megabyte, spacebyte, state
from bltjax.generate.cache import last_new
from bltjax.generate.source import Source
from bltjax.generate.spacebyte import Spaced
from bltjax.generate.state import Latent

Model = Latent | Spaced | LanguageModelConfig | MegabyteConfig  # what is static about a model; hashable

Starts = tuple[Array, Array | None, Any]  # [batch, new], entropies [batch, new] where there are any, the next state


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is run of a model of one kind; arguments are named as those of `latent.read`.

    Attributes:
      prepare: (params, entropy_params) -> params as the others take them.
      empty: (model, batch, positions) -> the state before the first id.
      patch: (model, params, state, ids, position, count, threshold) -> whether a patch starts after each new id.
      read: (model, params, state, ids, starts, position, count) -> logits [batch, ids] after the last new id, and the
        next state.
      patched: whether patches start anywhere.
      blind: why nothing can be guessed ahead; None: it can.
      longest: model -> ids of the longest row that it has positions for; None where rows may have any length.
    """

    prepare: Callable[[Any, Any], Any]
    empty: Callable[[Any, int, int], Any]
    patch: Callable[[Any, Any, Any, Array, Array, Array, Array], Starts]
    read: Callable[[Any, Any, Any, Array, Array, Array, Array], tuple[Array, Any]]
    patched: bool
    blind: str | None = None
    longest: Callable[[Any], int | None] = lambda model: None


def _no_patch(model: Any, params: Any, state: Any, ids: Array, *_: Array) -> Starts:
    return jnp.zeros(ids.shape, bool), None, state


def _patch_by_rule(
    model: Latent | Spaced, params: Any, state: Any, ids: Array, position: Array, count: Array, threshold: Array
) -> Starts:
    decision = latent.decide(model, params, state, ids, position, count, threshold)
    return decision.starts, decision.entropies, latent.decided(model, state, decision, ids, position, count)


def _read_latent(
    model: Latent, params: Any, state: Any, ids: Array, starts: Array, position: Array, count: Array
) -> tuple[Array, Any]:
    taken = latent.take(model, params, state, ids, starts, position, count)
    state = latent.settle(model, state, taken, position, count)
    return latent.logits(model, params, last_new(taken.x, count))[:, 0], state


def _read_spaced(
    model: Spaced, params: Any, state: Any, ids: Array, starts: Array, position: Array, count: Array
) -> tuple[Array, Any]:
    x, state = spacebyte.read(model, params, state, ids, starts, position, count)
    return spacebyte.logits(model, params, last_new(x, count))[:, 0], state


def _patch_megabyte(
    model: MegabyteConfig, params: Any, state: Any, ids: Array, position: Array, count: Array, threshold: Array
) -> Starts:
    return megabyte.starts(model, ids, position, count), None, state


def _reading(room: Any) -> Callable[..., tuple[Array, Any]]:
    """`Kind.read` of a room whose step form needs not be told where patches start."""

    def read(
        model: Any, params: Any, state: Any, ids: Array, starts: Array, position: Array, count: Array
    ) -> tuple[Array, Any]:
        x, state = room.read(model, params, state, ids, position, count)
        return room.logits(model, params, last_new(x, count))[:, 0], state

    return read


KINDS: Mapping[type, Kind] = {
    Latent: Kind(
        state.prepare,
        lambda model, batch, positions: state.empty(model, batch),
        _patch_by_rule,
        _read_latent,
        patched=True,
    ),
    Spaced: Kind(
        spacebyte.prepare,
        lambda model, batch, positions: spacebyte.empty(model, batch),
        _patch_by_rule,
        _read_spaced,
        patched=True,
        blind="only the local models of a BLT guess",
    ),
    MegabyteConfig: Kind(
        lambda params, entropy_params: megabyte.prepare(params),
        megabyte.empty,
        _patch_megabyte,
        _reading(megabyte),
        patched=True,
        blind="a MEGABYTE's local model is told nothing of what lies past its patch until the global model has run",
        longest=lambda model: model.longest_row,
    ),
    LanguageModelConfig: Kind(
        lambda params, entropy_params: flat.prepare(params),
        flat.empty,
        _no_patch,
        _reading(flat),
        patched=False,
        blind="a flat model has no local models that could guess",
    ),
}


def kind_of(model: Model) -> Kind:
    """The kind that a model is of."""
    return next(kind for cls, kind in KINDS.items() if isinstance(model, cls))


def prepared(source: Source, positions: int, patches: int, ahead: int) -> tuple[Model, Any]:
    """What is static about a model, and its params, as programs take them.

    Args:
      positions: room for the ids of a row; patches: for its patches, where a rule cuts them.
      ahead: ids that are guessed before they are read.

    Raises:
      ValueError: for a model that is for scoring alone, or one that is to guess and can't.
    """
    config, patcher = source.config, source.patcher
    model: Model
    if isinstance(config, BLTConfig | SpaceByteConfig):
        assert patcher is not None
        # A number that the compiled program is given, so it is no part of what the program is made for.
        patcher = dataclasses.replace(patcher, threshold=0.0)
        entropy = source.entropy_config if patcher.rule == "entropy" else None
        if isinstance(config, BLTConfig):
            model = Latent(config, patcher, entropy, positions, patches, ahead)
        else:
            model = Spaced(config, patcher, entropy, positions, patches)
    else:
        model = config
    if isinstance(config, MegabyteConfig) and config.inference != "basic":
        raise ValueError(
            f"config.inference={config.inference!r}: two passes over every byte, which is for scoring; generate with "
            'dataclasses.replace(config, inference="basic"), whose parameters are the same.'
        )
    kind = kind_of(model)
    if ahead and kind.blind is not None:
        raise ValueError(f"ahead={ahead}: {kind.blind}.")
    by_entropy = patcher is not None and patcher.rule == "entropy"
    return model, kind.prepare(source.params, source.entropy_params if by_entropy else None)
