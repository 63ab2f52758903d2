"""The one table of kinds: every family is in it once, and only what can guess does."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from bltjax.config import FAMILIES
from bltjax.families import abstract_params
from bltjax.generate import Source
from bltjax.generate.kinds import KINDS, kind_of, prepared
from bltjax.presets import preset
from tests.generate.models import Reversed
from tests.studies import PATCHER


@functools.cache
def zeros(config):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(config))


def source(family):
    config, entropy = preset(f"{family}-tiny"), preset("entropy-tiny")
    if family == "token":
        config = dataclasses.replace(config, vocabulary_size=260)
        return Source(config, zeros(config), tokenizer=Reversed())
    return Source(config, zeros(config), *((PATCHER, entropy, zeros(entropy)) if config.reads_patches else ()))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_of_one_kind_and_only_a_blt_guesses_ahead(family):
    model, _ = prepared(source(family), 8, 8, 0)
    [kind] = [kind for cls, kind in KINDS.items() if isinstance(model, cls)]
    assert kind is kind_of(model) and hash(model)
    assert kind.patched == (family in ("blt", "spacebyte", "megabyte"))
    assert kind.longest(model) == (516 if family == "megabyte" else None)
    if family == "blt":
        assert prepared(source(family), 8, 8, 2)[0].ahead == 2
    else:
        with pytest.raises(ValueError, match=r"ahead=2: .*local model"):
            prepared(source(family), 8, 8, 2)
