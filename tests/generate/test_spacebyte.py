"""Bytes that SpaceByte reads one at a time, or in parts, are bytes read all at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.config import PatcherConfig, SpaceByteConfig, TransformerConfig
from bltjax.generate import Generator, Source, Stop, cache, latent, spacebyte
from bltjax.generate.spacebyte import Spaced
from tests.generate.models import ENTROPY, EOS, Case, parallel, random_rows, random_weights
from tests.programs import quick_jit

BATCH, BYTES, PART = 8, 44, 7
PROMPTS = np.int32([1, 2, PART, PART + 1, 2 * PART, 20, 33, BYTES])  # bytes of a row that are read in parts
BLOCK, GROUP = 8, 3  # so that long caches have several blocks, and parts of prompts several groups of patches
TOLERANCE = 1e-4  # of the largest logit

LOCAL = TransformerConfig(16, 1, 2, hidden=24, window=6)
CONFIG = SpaceByteConfig(LOCAL, TransformerConfig(24, 1, 4, kv_heads=2, hidden=32), LOCAL)
VARIANTS = {
    "by stride": Case(CONFIG, PatcherConfig(rule="strided", size=2), None),
    "by space": Case(CONFIG, PatcherConfig(rule="space"), None),
    "by entropy, no longer than 5, as wide as the local models, windows": Case(
        dataclasses.replace(
            CONFIG,
            encoder=dataclasses.replace(LOCAL, window=None),
            global_model=TransformerConfig(16, 2, 2, hidden=24, window=4),
            decoder=dataclasses.replace(LOCAL, layers=2),
        ),
        PatcherConfig(threshold=0.0, max_patch_length=5),
        ENTROPY,
    ),
}
QUICK = "by stride"


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "BLOCK", BLOCK)
        patch.setattr(cache, "LONGEST", 2 * BLOCK)
        patch.setattr(spacebyte, "GROUP", GROUP)
        yield


@functools.cache
def incremental(name):
    """From params, a threshold and ids to logits after every byte and where patches start after it."""
    case = VARIANTS[name]
    model = Spaced(case.config, dataclasses.replace(case.patcher, threshold=0.0), case.entropy, BYTES, BYTES)

    def run(params, entropy_params, threshold, ids):
        prepared = spacebyte.prepare(params, entropy_params)
        row, padded = jnp.arange(BATCH)[:, None], jnp.pad(ids, ((0, 0), (0, PART)), constant_values=EOS)

        def advance(carry, width, count):
            state, read, logits, starts = carry
            places = read[:, None] + jnp.arange(width)
            new = jnp.take_along_axis(padded, places, axis=1)
            decision = latent.decide(model, prepared, state, new, read, count, threshold)
            state = latent.decided(model, state, decision, new, read, count)
            x, state = spacebyte.read(model, prepared, state, new, decision.starts, read, count)
            places = jnp.where(jnp.arange(width) < count[:, None], places, BYTES)
            logits = logits.at[row, places].set(spacebyte.logits(model, prepared, x), mode="drop")
            return state, read + count, logits, starts.at[row, places].set(decision.starts, mode="drop")

        def part(carry, _):
            return advance(carry, PART, jnp.clip(PROMPTS - carry[1], 0, PART)), None

        def step(carry, number):
            # Every third time a row waits, as rows do for each other.
            waits = (number + jnp.arange(BATCH)) % 3 == 0
            return advance(carry, 1, ((carry[1] < BYTES) & ~waits).astype(jnp.int32)), None

        out = jnp.zeros((BATCH, BYTES, 260)), jnp.zeros((BATCH, BYTES), bool)
        carry = spacebyte.empty(model, BATCH), jnp.zeros(BATCH, jnp.int32), *out
        carry, _ = jax.lax.scan(part, carry, length=-(-BYTES // PART))
        return jax.lax.scan(step, carry, jnp.arange(2 * BYTES))[0][2:]

    return quick_jit(run)


@pytest.mark.parametrize(
    "variant", [QUICK, *(pytest.param(name, marks=pytest.mark.thorough) for name in VARIANTS if name != QUICK)]
)
def test_logits_are_those_of_the_parallel_pass(variant):
    case = VARIANTS[variant]
    for seed in range(3):
        ids = random_rows(seed, BATCH, BYTES)
        assert (ids == EOS).any()
        weights = random_weights(case, seed, ids)
        starts, want = parallel(case, weights, ids)
        threshold = jnp.float32(weights.patcher.threshold or 0)
        got, found = incremental(variant)(weights.params, weights.entropy_params, threshold, ids)
        np.testing.assert_array_equal(found, starts[:, 1:])
        at_boundary = starts[np.arange(BATCH), PROMPTS]
        assert at_boundary.any() and not at_boundary.all()
        worst = np.abs(np.asarray(got) - want).max(axis=-1) / np.abs(want).max()
        assert worst.max() < TOLERANCE, np.unravel_index(worst.argmax(), worst.shape)


@pytest.mark.thorough
def test_every_byte_is_the_likeliest_of_the_parallel_pass_whatever_the_neighbours():
    case = VARIANTS["by entropy, no longer than 5, as wide as the local models, windows"]
    weights = random_weights(case, 0, random_rows(0, BATCH, BYTES))
    source = Source(case.config, weights.params, weights.patcher, case.entropy, weights.entropy_params)
    texts = (b"", b"the quick brown fox, ", "größer\n".encode() + b"\xff\x00")
    generator = Generator(source, capacity=64, part=8)
    found = generator(texts, 16, stop=Stop(eos=False))
    again = generator((b"another text of its own", texts[2], b"x"), 16, stop=Stop(eos=False))
    assert again[1].text == found[2].text
    ids = np.full((BATCH, BYTES), 4, np.int32)
    for row, each in enumerate(found):
        whole = np.concatenate([each.prompt_ids, each.ids])
        ids[row, : len(whole)] = whole
    starts, logits = parallel(case, weights, ids)
    for row, each in enumerate(found):
        first = len(each.prompt_ids)
        np.testing.assert_array_equal(each.starts, starts[row, : first + 16])
        for t, drawn in enumerate(each.ids, first):
            assert logits[row, t - 1, 4:].max() - logits[row, t - 1, drawn] < TOLERANCE * np.abs(logits).max()
