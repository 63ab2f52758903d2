"""The one table of kinds: every family is in it once, and only what can guess does."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from bltjax.blocked import in_blocks
from bltjax.config import FAMILIES
from bltjax.families import abstract_params
from bltjax.generate import Source, Stop, generator
from bltjax.generate.kinds import KINDS, kind_of, prepared
from bltjax.presets import preset
from tests import dense
from tests.generate.models import Reversed
from tests.programs import kernels_in_blocks
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


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_the_same_text_with_kernels_in_blocks(family, monkeypatch):
    given = source(family)
    weights = dense.random_params(abstract_params(given.config), 1)
    entropy = given.entropy_config and dense.random_params(abstract_params(given.entropy_config), 2, std=0.7)
    given = dataclasses.replace(given, params=weights, entropy_params=entropy)
    found = []
    for smallest in (10**9, 1):
        monkeypatch.setattr(generator, "in_blocks", functools.partial(in_blocks, columns=8, smallest=smallest))
        made = generator.Generator(given, capacity=64, part=8)
        assert bool(kernels_in_blocks(made._params)) == (smallest == 1)
        found.append(made([b"abc def", b"x"], 24, stop=Stop(eos=False)))
    for one, other in zip(*found, strict=True):
        assert one.text == other.text
        np.testing.assert_allclose(one.nats, other.nats, atol=1e-3)
