"""Cross entropy against float64, and what counts as a byte."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.loss import Sums, bits_per_byte, cross_entropy, loss_sums, real_bytes, row_sums

BATCH, LENGTH, VOCABULARY = 3, 11, 37


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 8, (BATCH, LENGTH, VOCABULARY)).astype(np.float32)
    targets = rng.integers(4, VOCABULARY, (BATCH, LENGTH)).astype(np.int16)
    target_bytes = rng.integers(1, 7, (BATCH, LENGTH)).astype(np.uint16)
    special = rng.random((BATCH, LENGTH)) < 0.2
    targets[special], target_bytes[special] = 2, 0
    unscored = rng.random((BATCH, LENGTH)) < 0.3
    targets[unscored], target_bytes[unscored] = -1, 0
    assert (special & ~unscored).any()
    assert unscored.any()
    return jnp.asarray(logits), targets, target_bytes


def float64_nats(logits, targets):
    logits = np.asarray(logits, np.float64)
    norm = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    picked = np.take_along_axis(logits, np.maximum(targets, 0)[..., None].astype(int), -1)[..., 0]
    return np.where(targets >= 0, norm - picked, 0)


@pytest.mark.parametrize("compiled", [False, True])
def test_sums_agree_with_float64(example, compiled):
    logits, targets, target_bytes = example
    rows = (jax.jit(row_sums) if compiled else row_sums)(*example)
    nats = float64_nats(logits, targets)
    byte, special = (targets >= 0) & (target_bytes > 0), (targets >= 0) & (target_bytes == 0)
    np.testing.assert_allclose(rows.byte_nats, (nats * byte).sum(1), rtol=1e-6)
    np.testing.assert_allclose(rows.special_nats, (nats * special).sum(1), rtol=1e-6)
    np.testing.assert_array_equal(rows.bytes, (target_bytes * byte).sum(1))
    np.testing.assert_array_equal(rows.specials, special.sum(1))
    whole = loss_sums(*example)
    assert whole.bytes == target_bytes.sum() == real_bytes(targets, target_bytes)
    np.testing.assert_allclose(whole.byte_nats, (nats * byte).sum(), rtol=1e-6)


def test_what_a_delimiter_costs_is_paid_for_bytes():
    logits = jnp.asarray(np.random.default_rng(1).normal(0, 2, (1, 4, 260)), jnp.float32)
    targets, target_bytes = np.array([[70, 3, 2, 3]]), np.array([[1, 0, 0, 0]])
    nats, sums = float64_nats(logits, targets)[0], loss_sums(logits, targets, target_bytes)
    assert (sums.bytes, sums.specials) == (1, 1)
    np.testing.assert_allclose([sums.byte_nats, sums.special_nats], [nats[[0, 1, 3]].sum(), nats[2]], rtol=1e-6)


def test_mistake_6_bits_per_byte_count_raw_bytes_only(example):
    """BOS and EOS change neither the nats nor the bytes of the documents, however badly they are predicted."""
    logits, targets, target_bytes = example
    worse = np.array(logits)
    worse[..., 2] = np.where((targets == 2), -1000, worse[..., 2])
    a, b = loss_sums(logits, targets, target_bytes), loss_sums(jnp.asarray(worse), targets, target_bytes)
    assert a.byte_nats == b.byte_nats
    assert b.special_nats > 10 * a.special_nats


def test_a_token_and_its_bytes_cost_the_same_per_byte():
    """Uniform over 2^16 tokens of two bytes is uniform over bytes: 8 bits per byte either way."""
    tokens = loss_sums(jnp.zeros((1, 4, 2**16)), jnp.full((1, 4), 9), jnp.full((1, 4), 2, jnp.uint16))
    single = loss_sums(jnp.zeros((1, 8, 2**8)), jnp.full((1, 8), 9), jnp.full((1, 8), 1, jnp.uint16))
    for sums in (tokens, single):
        assert sums.bytes == 8
        assert bits_per_byte(float(sums.byte_nats), int(sums.bytes)) == pytest.approx(8, rel=1e-6)


def test_gradient_agrees_with_finite_differences_of_float64(example):
    logits, targets, _ = example
    weights = np.random.default_rng(1).normal(size=targets.shape)
    gradient = jax.grad(lambda x: jnp.sum(cross_entropy(x, jnp.asarray(targets, jnp.int32)) * weights))(logits)
    direction = np.random.default_rng(2).normal(size=logits.shape)
    step = 1e-5
    exact = np.asarray(logits, np.float64)
    up, down = (float64_nats(exact + sign * step * direction, targets) for sign in (1, -1))
    assert np.sum(gradient * direction) == pytest.approx(np.sum((up - down) * weights) / (2 * step), rel=1e-4)
    assert not np.any(np.asarray(gradient)[targets < 0])


def test_large_logits_neither_overflow_nor_round_away():
    logits = jnp.array([[[1e4, 1e4 - 1.0, -1e4]]])
    sums = loss_sums(logits, jnp.array([[1]]), jnp.array([[1]]))
    assert float(sums.byte_nats) == pytest.approx(1 + math.log1p(math.exp(-1)), abs=1e-3)


def test_bfloat16_logits_are_scored_in_float32():
    logits = jax.random.normal(jax.random.key(0), (1, 64, 260), jnp.bfloat16) * 4
    targets = jnp.full((1, 64), 7)
    exact = float64_nats(np.asarray(logits, np.float32), np.asarray(targets)).sum()
    sums = loss_sums(logits, targets, jnp.ones((1, 64), jnp.int32))
    assert sums.byte_nats.dtype == jnp.float32
    assert float(sums.byte_nats) == pytest.approx(exact, rel=1e-6)


def test_backward_pass_keeps_the_logits_and_no_second_array_of_their_size():
    logits = jax.ShapeDtypeStruct((4, 512, 1024), jnp.float32)
    targets = jax.ShapeDtypeStruct((4, 512), jnp.int32)

    def loss(logits, targets):
        return jnp.sum(cross_entropy(logits, targets))

    memory = jax.jit(jax.grad(loss)).lower(logits, targets).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.1 * 4 * 512 * 1024 * 4


def test_counts_beyond_float32_are_exact():
    rows = 2**15
    sums = row_sums(jnp.zeros((1, rows, 2)), jnp.ones((1, rows), jnp.int32), jnp.full((1, rows), 2**10 + 1, jnp.uint16))
    assert sums.bytes[0] == rows * (2**10 + 1)


def test_nothing_scored_is_an_error_on_the_host():
    empty = loss_sums(jnp.ones((1, 2, 5)), jnp.full((1, 2), -1), jnp.zeros((1, 2), jnp.int32))
    assert isinstance(empty, Sums)
    assert float(empty.byte_nats) == 0
    with pytest.raises(ValueError, match="nothing was scored"):
        bits_per_byte(float(empty.byte_nats), int(empty.bytes))
