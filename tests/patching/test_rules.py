import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax import vocabulary
from bltjax.config import PatcherConfig
from bltjax.patching import (
    PREFIX_CONSISTENT,
    Patches,
    encode_delimited,
    next_starts,
    rules,
    starts_of,
    stream_starts,
)

RULES = {
    "global": PatcherConfig(threshold=1.5),
    "monotonic": PatcherConfig(variant="monotonic", threshold=0.4),
    "add": PatcherConfig(variant="add", threshold=1.2, threshold_add=0.1),
    "space": PatcherConfig(rule="space"),
    "strided": PatcherConfig(rule="strided", size=3),
    "byte": PatcherConfig(rule="byte"),
    "bpe": PatcherConfig(rule="bpe"),
}
every_rule = pytest.mark.parametrize("name", RULES)
with_and_without_limit = pytest.mark.parametrize("limit", [None, 4])


def text_of(rng, length):
    """Words, spaces, delimiters and any bytes at all."""
    raw = rng.choice([*b"abcxyz019   ,.\n", 0, 0xC3, 0xA9, 0xFF], length) + vocabulary.OFFSET
    return np.where(rng.random(length) < 0.1, vocabulary.DELIMITER, raw)


def documents_of(seed, lengths):
    rng = np.random.default_rng(seed)
    ids = [np.concatenate([[vocabulary.BOS], text_of(rng, n), [vocabulary.EOS]]) for n in lengths]
    entropies = [rng.uniform(0, 3, len(row)).astype(np.float16) for row in ids]
    return ids, entropies


@every_rule
@with_and_without_limit
def test_mistake_9_patches_of_a_prefix_are_the_first_part_of_the_patches(name, limit):
    config = dataclasses.replace(RULES[name], max_patch_length=limit)
    ids, entropies = documents_of(0, [0, 20, 1, 30])  # several documents in one row
    row, scores = np.concatenate(ids)[None], np.concatenate(entropies)[None].astype(np.float32)
    whole = starts_of(config, row, scores)
    assert whole.sum() > 2 and (name == "byte" or not whole.all())
    patches = Patches.from_starts(whole, row.shape[1])
    for n in range(1, row.shape[1] + 1):
        part = starts_of(config, row[:, :n], scores[:, :n])
        np.testing.assert_array_equal(part, whole[:, : n + 1], err_msg=f"prefix of {n} ids")
        if n % 10 == 1:
            prefix = Patches.from_starts(part, n)
            np.testing.assert_array_equal(prefix.encoder_ids, patches.encoder_ids[:, :n])
            np.testing.assert_array_equal(prefix.decoder_ids, patches.decoder_ids[:, :n])


@every_rule
@with_and_without_limit
def test_a_stream_is_its_documents_patched_alone(name, limit, monkeypatch):
    config = dataclasses.replace(RULES[name], max_patch_length=limit)
    ids, entropies = documents_of(1, [0, 0, 1, 2, 3, 40, 5, 0, 17])
    boundaries = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    want = [starts_of(config, row[None], scores[None])[0, :-1] for row, scores in zip(ids, entropies, strict=True)]
    stream, scores = np.concatenate(ids).astype(np.int16), np.concatenate(entropies)
    for chunk in (5, 1 << 20):  # the seams between chunks must not show
        monkeypatch.setattr(rules, "_CHUNK", chunk)
        got = stream_starts(config, boundaries, ids=stream, entropies=scores)
        np.testing.assert_array_equal(got, np.concatenate(want))
    together = starts_of(config, stream[None], scores[None])
    np.testing.assert_array_equal(together[0, :-1], got)


@every_rule
def test_compiled_starts_are_those_of_the_host(name):
    config = dataclasses.replace(RULES[name], max_patch_length=5)
    ids, entropies = documents_of(2, [30, 12])
    row, scores = np.concatenate(ids)[None], np.concatenate(entropies)[None].astype(np.float32)
    compiled = jax.jit(starts_of, static_argnums=0)(config, jnp.asarray(row), jnp.asarray(scores))
    np.testing.assert_array_equal(compiled, starts_of(config, row, scores))


@every_rule
@with_and_without_limit
def test_starts_found_a_part_at_a_time_are_those_of_the_row(name, limit):
    config = dataclasses.replace(RULES[name], max_patch_length=limit)
    ids, entropies = documents_of(4, [0, 20, 1, 30])
    row, scores = np.concatenate(ids)[None], np.concatenate(entropies)[None].astype(np.float32)
    whole = starts_of(config, row, scores)
    before = np.full((1, rules.LOOK_BACK), vocabulary.EOS)
    padded, known = np.concatenate([before, row], axis=1), np.concatenate([np.zeros(before.shape), scores], axis=1)
    for part in (1, 2, 7):
        since, found = jnp.zeros(1, jnp.int32), []
        for begin in range(0, row.shape[1], part):
            new = slice(begin, begin + part + rules.LOOK_BACK)
            arrays = [jnp.asarray(x[:, new], kind) for x, kind in ((padded, jnp.int32), (known, jnp.float32))]
            threshold = None if config.threshold is None else jnp.float32(config.threshold)
            starts, distance = next_starts(dataclasses.replace(config, threshold=0.0), *arrays, since, threshold)
            found.append(starts)
            since = distance[:, -1]
        np.testing.assert_array_equal(np.concatenate(found, axis=1), whole[:, 1:], err_msg=f"parts of {part}")


def test_a_boundary_does_not_depend_on_the_byte_it_precedes():
    ids, entropies = documents_of(3, [40])
    row, scores = ids[0][None], entropies[0][None].astype(np.float32)
    for name, config in RULES.items():
        before = starts_of(config, row, scores)
        for t in (2, 7, 20, 41):
            changed, moved = row.copy(), scores.copy()
            changed[0, t] = 36 if row[0, t] != 36 else 101
            moved[0, t] = 2.9 - scores[0, t]
            after = starts_of(config, changed, moved)
            np.testing.assert_array_equal(after[:, : t + 1], before[:, : t + 1], err_msg=f"{name}, byte {t}")


def test_every_rule_but_bpe_is_incremental():
    assert {rule for rule, holds in PREFIX_CONSISTENT.items() if not holds} == {"bpe"}


@pytest.mark.parametrize("text", [b"", b"\x00", b"\xff" * 7, b"\x00\xff\xc3(\x80" * 5])
@every_rule
def test_any_bytes_are_patched_whole(name, text):
    ids = encode_delimited([text])[None]
    entropies = np.full(ids.shape, 1.0, np.float32)
    starts = starts_of(RULES[name], ids, entropies)
    patches = Patches.from_starts(starts, ids.shape[1])
    held = [ids[0, np.asarray(patches.encoder_ids[0]) == p] for p in range(int(patches.valid.sum()))]
    assert b"".join(vocabulary.decode(part) for part in held) == text


def test_an_empty_corpus_has_no_starts():
    assert stream_starts(RULES["strided"], np.array([0])).shape == (0,)
    assert stream_starts(RULES["bpe"], np.array([0]), ids=np.zeros(0, np.int16)).shape == (0,)


def test_what_a_rule_needs_is_asked_for():
    ids = vocabulary.encode("abc", eos=True)
    boundaries = np.array([0, 5])
    with pytest.raises(ValueError, match="entropies=None"):
        starts_of(RULES["global"], ids[None])
    with pytest.raises(ValueError, match=r"patcher.threshold=None.*calibrate"):
        starts_of(PatcherConfig(), ids[None], np.zeros((1, 5), np.float32))
    with pytest.raises(ValueError, match="threshold=nan"):
        stream_starts(PatcherConfig(threshold=float("nan")), boundaries, entropies=np.zeros(5, np.float16))
    with pytest.raises(ValueError, match="entropies: None given"):
        stream_starts(RULES["global"], boundaries)
    with pytest.raises(ValueError, match=r"entropies: 4 values given.*5 positions"):
        stream_starts(RULES["global"], boundaries, entropies=np.zeros(4, np.float16))
    with pytest.raises(ValueError, match="ids: None given"):
        stream_starts(RULES["space"], boundaries)


def test_a_stream_that_cannot_be_patched_is_refused():
    ids = vocabulary.encode("abc", eos=True)
    with pytest.raises(ValueError, match="no BPE delimiter"):
        stream_starts(RULES["bpe"], np.array([0, 5]), ids=ids)
    broken = np.array([0, 1, np.nan, 1, 0], np.float16)
    with pytest.raises(ValueError, match=r"entropies\[2\]=nan"):
        stream_starts(RULES["global"], np.array([0, 5]), entropies=broken)
    for boundaries in ([], [1, 5], [0, 3, 3, 5]):
        with pytest.raises(ValueError, match="document_starts"):
            stream_starts(RULES["byte"], np.array(boundaries, np.int64))
