"""Bytes read one at a time, or in parts, are bytes read all at once: logits, patches and entropies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.generate import cache, latent, pieces, state
from bltjax.generate.state import Latent
from tests.generate.models import CASES, parallel, random_rows, random_weights
from tests.programs import quick_jit

BATCH, BYTES, PART = 8, 44, 7
PROMPTS = np.int32([1, 2, PART, PART + 1, 2 * PART, 20, 33, BYTES])  # bytes of a row that are read in parts
BLOCK, GROUP = 8, 3  # so that long caches have several blocks, and parts of prompts several groups of patches
TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "BLOCK", BLOCK)
        patch.setattr(cache, "LONGEST", 2 * BLOCK)
        patch.setattr(pieces, "GROUP", GROUP)
        yield


@functools.cache
def incremental(name):
    """From params, a threshold, ids and bytes of prompts to logits, starts and entropies after every byte."""
    case = CASES[name]
    patcher = dataclasses.replace(case.patcher, threshold=0.0)
    model = Latent(case.config, patcher, case.entropy, BYTES, BYTES)

    def run(params, entropy_params, threshold, ids, prompts):
        prepared = state.prepare(params, entropy_params)
        rows = jnp.arange(BATCH)[:, None]
        padded = jnp.pad(ids, ((0, 0), (0, PART)))

        def advance(carry, width, count):
            kept, read, out = carry
            places = read[:, None] + jnp.arange(width)
            new = jnp.take_along_axis(padded, places, axis=1)
            x, decision, kept = latent.read(model, prepared, kept, new, read, count, threshold)
            found = {"logits": latent.logits(model, prepared, x), "starts": decision.starts}
            if decision.entropies is not None:
                found["entropies"] = decision.entropies
            places = jnp.where(jnp.arange(width) < count[:, None], places, BYTES)
            out = {key: out[key].at[rows, places].set(value, mode="drop") for key, value in found.items()}
            return kept, read + count, out

        def part(carry, _):
            return advance(carry, PART, jnp.clip(prompts - carry[1], 0, PART)), None

        def step(carry, _):
            return advance(carry, 1, jnp.int32(carry[1] < BYTES)), None

        out = {"logits": jnp.zeros((BATCH, BYTES, 260)), "starts": jnp.zeros((BATCH, BYTES), bool)}
        if case.entropy is not None:
            out["entropies"] = jnp.zeros((BATCH, BYTES))
        carry = state.empty(model, BATCH), jnp.zeros(BATCH, jnp.int32), out
        carry, _ = jax.lax.scan(part, carry, length=-(-BYTES // PART))
        (kept, _, out), _ = jax.lax.scan(step, carry, length=BYTES)
        return out, kept.patches

    return quick_jit(run)


def check(name, seed):
    """Compares `BATCH` rows, each with a prompt of another length."""
    case = CASES[name]
    ids = random_rows(seed, BATCH, BYTES)
    weights = random_weights(case, seed, ids)
    starts, logits = parallel(case, weights, ids)
    threshold = jnp.float32(weights.patcher.threshold or 0)
    got, patches = incremental(name)(weights.params, weights.entropy_params, threshold, ids, PROMPTS)
    np.testing.assert_array_equal(got["starts"], starts[:, 1:])
    np.testing.assert_array_equal(patches, starts[:, 1:].sum(axis=1))
    worst = np.abs(np.asarray(got["logits"]) - logits).max(axis=-1) / np.abs(logits).max()
    assert worst.max() < TOLERANCE, np.unravel_index(worst.argmax(), worst.shape)
    return [bool(starts[row, end]) for row, end in enumerate(PROMPTS)], worst.max()


QUICK = ("released, global",)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_logits_are_those_of_the_parallel_pass(name):
    at_boundary, _ = check(name, seed=0)
    if CASES[name].patcher.rule != "byte":
        assert any(at_boundary) and not all(at_boundary)  # prompts end within patches and with them


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_logits_of_many_more_random_cases(name):
    """Eight models by five random weights by eight prompts: 320 cases."""
    assert len(CASES) * 5 * BATCH >= 200
    for seed in range(1, 6):
        check(name, seed)
