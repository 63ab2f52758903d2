"""Bytes that MEGABYTE reads one at a time, or in parts, are bytes read all at once; and text comes of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.baselines.megabyte import Megabyte
from bltjax.config import MegabyteConfig, TransformerConfig
from bltjax.families import abstract_params
from bltjax.generate import Generator, Sampling, Source, Stop, cache, megabyte
from tests import dense
from tests.generate.models import EOS, random_rows
from tests.programs import compilations, quick_jit

BATCH, BYTES, PART, SIZE = 8, 30, 7, 4
PROMPTS = np.int32([1, 2, SIZE, SIZE + 1, PART, 2 * PART, 21, BYTES])  # bytes of a row that are read in parts
BLOCK = 6  # so that long caches have several blocks
TOLERANCE = 1e-4  # of the largest logit
SEEDS = 5

LATENT = TransformerConfig(24, 1, 2, kv_heads=1, hidden=32)
LOCAL = TransformerConfig(16, 2, 4, kv_heads=2, hidden=24)
BASIC = MegabyteConfig(LATENT, LOCAL, patch_bytes=SIZE, context_bytes=32)
EXTENDED = dataclasses.replace(BASIC, patch_encoder="convolution", cross_patch_bytes=3)
VARIANTS = {
    "both extensions, the global model sees two patches": dataclasses.replace(
        EXTENDED, global_model=dataclasses.replace(LATENT, layers=2, window=2)
    ),
    "basic": BASIC,
    "convolution, hardly more than a patch": dataclasses.replace(BASIC, patch_bytes=24, patch_encoder="convolution"),
    "attention to whole patches before, without a mask": dataclasses.replace(
        BASIC, patch_bytes=3, cross_patch_bytes=3, document_mask=False
    ),
    "patches of one byte, both extensions": dataclasses.replace(EXTENDED, patch_bytes=1, cross_patch_bytes=1),
    "no layers": dataclasses.replace(
        EXTENDED,
        global_model=dataclasses.replace(LATENT, layers=0),
        local_model=dataclasses.replace(LOCAL, layers=0),
    ),
}
QUICK = "both extensions, the global model sees two patches"
SLOW = [pytest.param(name, marks=pytest.mark.thorough) for name in VARIANTS if name != QUICK]
# For tests that are not about the models.
SHALLOW = dataclasses.replace(EXTENDED, local_model=dataclasses.replace(LOCAL, layers=1))


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "BLOCK", BLOCK)
        patch.setattr(cache, "LONGEST", 2 * BLOCK)
        yield


@functools.cache
def forward(config):
    return quick_jit(lambda params, ids: Megabyte(config).apply({"params": params}, ids))


@functools.cache
def params_of(config, seed=0):
    return dense.random_params(abstract_params(config), seed)


def rows(seed):
    """Documents end within patches, with their last byte, and twice in one of them."""
    ids = random_rows(seed, BATCH, BYTES)
    for row in range(BATCH - 1):
        ids[row, 5 + row] = EOS
    ids[0, [6, 17]] = EOS
    return ids


@functools.cache
def incremental(config):
    """From params, ids and bytes of prompts to logits after every byte."""

    def run(params, ids, prompts):
        prepared = megabyte.prepare(params)
        row, padded = jnp.arange(BATCH)[:, None], jnp.pad(ids, ((0, 0), (0, PART)), constant_values=EOS)

        def advance(carry, width, count):
            state, read, out = carry
            places = read[:, None] + jnp.arange(width)
            new = jnp.take_along_axis(padded, places, axis=1)
            x, state = megabyte.read(config, prepared, state, new, read, count)
            places = jnp.where(jnp.arange(width) < count[:, None], places, BYTES)
            out = out.at[row, places].set(megabyte.logits(config, prepared, x), mode="drop")
            return state, read + count, out

        def part(carry, _):
            return advance(carry, PART, jnp.clip(prompts - carry[1], 0, PART)), None

        def step(carry, number):
            # Every third time a row waits, as rows do for each other.
            waits = (number + jnp.arange(BATCH)) % 3 == 0
            return advance(carry, 1, ((carry[1] < BYTES) & ~waits).astype(jnp.int32)), None

        out = jnp.zeros((BATCH, BYTES, 260))
        carry = megabyte.empty(config, BATCH, BYTES), jnp.zeros(BATCH, jnp.int32), out
        carry, _ = jax.lax.scan(part, carry, length=-(-BYTES // PART))
        return jax.lax.scan(step, carry, jnp.arange(2 * BYTES))[0][2]

    return quick_jit(run)


def check(config, seed):
    ids, params = rows(seed), params_of(config, seed)
    want = np.asarray(forward(config)(params, ids))
    got = np.asarray(incremental(config)(params, ids, PROMPTS))
    worst = np.abs(got - want).max(axis=-1) / np.abs(want).max()
    assert worst.max() < TOLERANCE, np.unravel_index(worst.argmax(), worst.shape)


@pytest.mark.parametrize("variant", [QUICK, *SLOW])
def test_logits_are_those_of_the_parallel_pass(variant):
    config = VARIANTS[variant]
    assert {p % SIZE for p in PROMPTS.tolist()} == set(range(SIZE))  # prompts end anywhere in a patch
    ends = np.argwhere(rows(0) == EOS)[:, 1] % SIZE
    assert set(ends.tolist()) == set(range(SIZE))
    assert len(VARIANTS) * SEEDS * BATCH >= 200
    for seed in range(SEEDS):
        check(config, seed)


@pytest.mark.slow
def test_the_global_model_runs_only_where_a_patch_ends():
    params = params_of(SHALLOW)
    deaf = {**params, "global_model": jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params["global_model"])}
    ids = jnp.asarray(rows(0)[:2])

    @quick_jit
    def read(params, state, ids, position):
        prepared = megabyte.prepare(params)
        x, state = megabyte.read(SHALLOW, prepared, state, ids, position, jnp.ones(2, jnp.int32))
        return megabyte.logits(SHALLOW, prepared, x), state

    state, needed = megabyte.empty(SHALLOW, 2, BYTES), []
    for t in range(2 * SIZE + 2):
        position = jnp.full(2, t)
        found, _ = read(deaf, state, ids[:, t : t + 1], position)
        needed.append(bool(np.isnan(found).all()))
        assert needed[-1] == bool(np.isnan(found).any())
        _, state = read(params, state, ids[:, t : t + 1], position)
    assert needed == [t % SIZE == 0 for t in range(len(needed))]


def room(positions, config=EXTENDED):
    """Numbers kept for a row: by the global model, and for all else."""
    kept = jax.eval_shape(lambda: megabyte.empty(config, 1, positions))
    latents = sum(leaf.size for leaf in jax.tree.leaves(kept.latents))
    return latents, sum(leaf.size for leaf in jax.tree.leaves(kept)) - latents


def test_room_grows_with_patches_for_the_global_model_alone():
    long = dataclasses.replace(EXTENDED, context_bytes=8000)
    once, twice, thrice = (room(positions, long)[0] for positions in (1200, 2400, 3600))
    assert twice - once == thrice - twice > 0
    assert room(4000, long)[1] == room(1000, long)[1]
    # More positions than the model has are room for nothing.
    assert room(4000) == room(1000)


# Text in, text out.

CAPACITY = 64
TEXT = dataclasses.replace(SHALLOW, context_bytes=48)  # rows of up to 52 bytes
TEXTS = (b"", b"the quick brown fox, ", "größer\n".encode() + b"\xff\x00")
NEW = 14
ANY = Stop(eos=False)


@functools.cache
def generator():
    return Generator(Source(TEXT, params_of(TEXT)), capacity=CAPACITY, part=8)


@functools.cache
def greedy():
    return generator()(TEXTS, NEW, stop=ANY)


@pytest.mark.slow
def test_every_byte_is_the_likeliest_of_the_parallel_pass():
    ids = np.full((3, 40), 4, np.int32)
    for row, found in enumerate(greedy()):
        whole = np.concatenate([found.prompt_ids, found.ids])
        assert len(found.text) == NEW and found.ended_by == "bytes" and found.entropies is None
        assert np.flatnonzero(found.starts).tolist() == [0, *range(1, len(whole), SIZE)]
        ids[row, : len(whole)] = whole
    logits = np.asarray(forward(TEXT)(params_of(TEXT), ids))
    for row, found in enumerate(greedy()):
        for number, drawn in enumerate(found.ids):
            before = logits[row, len(found.prompt_ids) + number - 1]
            assert before[4:].max() - before[drawn] < TOLERANCE * np.abs(before).max()
            nats = float(jax.nn.logsumexp(before) - before[drawn])
            assert found.nats[number] == pytest.approx(nats, rel=1e-3, abs=1e-3)


def test_a_row_does_not_depend_on_its_neighbours_and_nothing_is_compiled_for_a_longer_prompt():
    greedy()
    with compilations() as seen:
        found = generator()((b"another text, and longer than any so far", TEXTS[2], b"x"), 11, stop=ANY)
        drawn = [
            generator()(texts, NEW, Sampling(temperature=1.0, seed=seed), ANY)
            for texts, seed in ((TEXTS, 7), ((TEXTS[1], b"and", b"some more"), 8))
        ]
        by_patch = generator()(TEXTS, NEW, stop=Stop(eos=False, patches=2))
    assert not seen
    assert found[1].text == greedy()[2].text[:11]
    np.testing.assert_allclose(found[1].nats, greedy()[2].nats[:11], atol=1e-4)
    # Row 1 of a batch draws with the seed + 1, so it is row 0 of a batch with that seed.
    assert drawn[1][0].text == drawn[0][1].text != greedy()[1].text
    for each in by_patch:
        assert each.ended_by == "patches"
        assert len(each.text) == SIZE + 1 + (-len(each.prompt_ids)) % SIZE  # up to bytes that P divides


def test_rows_as_long_as_the_positions_reach_and_no_longer():
    longest = TEXT.longest_row
    assert 48 < longest <= 48 + SIZE < CAPACITY
    found = generator()([b"x" * (longest - NEW - 1), *TEXTS[1:]], NEW, stop=ANY)
    assert len(found[0].ids) + len(found[0].prompt_ids) == longest and np.isfinite(found[0].nats).all()
    assert found[1].text == greedy()[1].text
    ids = np.zeros((1, longest), np.int32)
    jax.eval_shape(lambda params: Megabyte(TEXT).apply({"params": params}, ids), abstract_params(TEXT))
    with pytest.raises(ValueError, match=f"prompts.0. has {longest - NEW + 1} ids, .* exceed the {longest} that the"):
        generator()([b"x" * (longest - NEW), *TEXTS[1:]], NEW)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (BASIC, {"ahead": 2}, "ahead=2: a MEGABYTE's local model is told nothing of what lies past its patch"),
        (dataclasses.replace(BASIC, inference="strided"), {}, r"config\.inference='strided': two passes over every"),
    ],
)
def test_what_cannot_be_generated_is_refused_with_a_reason(config, options, message):
    with pytest.raises(ValueError, match=message):
        Generator(Source(config, {}), **options)
