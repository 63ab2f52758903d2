import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax import hashing
from bltjax.config import HashConfig
from bltjax.hashing import MULTIPLIERS, HashEmbedding
from tests.programs import quick_jit

ngram_hash = jax.jit(hashing.ngram_hash, static_argnums=(1, 2, 3))
ngram_hashes = jax.jit(hashing.ngram_hashes, static_argnums=1)
HELLO = [1, 76, 105, 112, 112, 115, 2]


def expected(ids, size, buckets, function=0, power_order="code"):
    """The definition, in Python's integers of any length."""
    found = np.zeros(np.shape(ids), np.int64)
    for row, values in enumerate(np.asarray(ids).tolist()):
        padded = [0] * (size - 1) + values
        for end in range(len(values)):
            window = padded[end : end + size]
            if power_order == "paper":
                window = window[::-1]
            total = sum(value * MULTIPLIERS[function] ** power for power, value in enumerate(window))
            signed = (total + 2**63) % 2**64 - 2**63
            found[row, end] = signed % buckets
    return found


@pytest.mark.parametrize(
    ("window", "bucket"),
    [
        ([5, 6, 7], 83944),
        ([5, 6, 7, 8], 388512),
        ([5, 6, 7, 8, 9], 190311),
        ([5, 6, 7, 8, 9, 10], 143327),
        ([5, 6, 7, 8, 9, 10, 11], 115110),
        ([5, 6, 7, 8, 9, 10, 11, 12], 262684),
    ],
)
def test_windows_of_the_released_code(window, bucket):
    assert ngram_hash(jnp.array([window]), len(window), 500_002)[0, -1] == bucket


@pytest.mark.parametrize(
    ("size", "buckets", "function", "row"),
    [
        (3, 500_002, 0, [443987, 124875, 393970, 386145, 358223, 190185, 428891]),
        (4, 500_002, 0, [437197, 433869, 117936, 254402, 246577, 30240, 64575]),
        (8, 500_002, 0, [172383, 205585, 456240, 129346, 299568, 322649, 281399]),
        (3, 50_002, 0, [26075, 38801, 19176, 42019, 12107, 40337, 3249]),
        (3, 50_002, 1, [13137, 4695, 25000, 49465, 4133, 43551, 2627]),
    ],
)
def test_rows_of_the_released_code(size, buckets, function, row):
    assert ngram_hash(jnp.array([HELLO]), size, buckets, function)[0].tolist() == row


@pytest.mark.parametrize("buckets", [1, 2, 20_002, 65_536, 500_002, 2**28 - 57, 2**30, 2**30 + 1, 2**31 - 1])
def test_every_number_of_buckets_is_exact(buckets):
    ids = np.random.default_rng(buckets).integers(0, 260, (2, 40))
    for size, function in ((1, 0), (3, 1), (8, 6)):
        got = ngram_hash(jnp.asarray(ids), size, buckets, function)
        np.testing.assert_array_equal(got, expected(ids, size, buckets, function))


@pytest.mark.parametrize("power_order", ["code", "paper"])
def test_all_functions_and_sizes_share_one_fused_table(power_order):
    config = HashConfig(sizes=tuple(range(1, 13)), buckets=1_000_003, functions=11, power_order=power_order)
    ids = np.random.default_rng(1).integers(0, 260, (2, 20))
    rows = np.asarray(ngram_hashes(jnp.asarray(ids), config))
    assert rows.shape == (2, 20, config.tables)
    for function in range(11):
        for place, size in enumerate(config.sizes):
            table = function * len(config.sizes) + place
            want = table * config.buckets + expected(ids, size, config.buckets, function, power_order)
            np.testing.assert_array_equal(rows[:, :, table], want)


def test_sizes_keep_the_order_they_are_given_in():
    ids = jnp.array([HELLO])
    rows = ngram_hashes(ids, HashConfig(sizes=(8, 3), buckets=500_002))
    assert (rows[..., 0] == ngram_hash(ids, 8, 500_002)).all()
    assert (rows[..., 1] == 500_002 + ngram_hash(ids, 3, 500_002)).all()


def test_short_ngrams_are_omitted_on_request_only():
    ids = jnp.array([HELLO])
    zeros = np.asarray(ngram_hashes(ids, HashConfig(sizes=(3, 5), buckets=1009)))
    omitted = np.asarray(ngram_hashes(ids, HashConfig(sizes=(3, 5), buckets=1009, short_ngrams="omit")))
    assert (zeros >= 0).all()
    whole = np.arange(7)[:, None] >= np.array([2, 4])
    np.testing.assert_array_equal(omitted[0], np.where(whole, zeros[0], -1))


def test_compiled_and_for_any_integer_type_of_ids():
    ids = np.random.default_rng(2).integers(0, 260, (3, 17))
    config = HashConfig(sizes=(2, 3), buckets=500_002)
    plain = hashing.ngram_hashes(jnp.asarray(ids, jnp.int32), config)
    compiled = ngram_hashes(jnp.asarray(ids, jnp.int16), config)
    np.testing.assert_array_equal(plain, compiled)
    assert compiled.dtype == jnp.int32


def test_large_ids_are_exact_too():
    ids = np.random.default_rng(3).integers(0, 2**31, (1, 30))
    np.testing.assert_array_equal(ngram_hash(jnp.asarray(ids, jnp.int32), 5, 2**31 - 1), expected(ids, 5, 2**31 - 1))


def test_a_bucket_depends_on_its_window_alone():
    ids = np.random.default_rng(4).integers(4, 260, (1, 30))
    changed = ids.copy()
    changed[0, 10] = (changed[0, 10] - 3) % 256 + 4
    differs = np.asarray(ngram_hash(jnp.asarray(ids), 4, 2**31 - 1) != ngram_hash(jnp.asarray(changed), 4, 2**31 - 1))
    assert np.flatnonzero(differs[0]).tolist() == [10, 11, 12, 13]


def test_impossible_requests_are_named():
    ids = jnp.array([HELLO])
    with pytest.raises(ValueError, match="function=11"):
        ngram_hash(ids, 3, 1009, 11)
    with pytest.raises(ValueError, match="buckets"):
        ngram_hash(ids, 3, 2**31)
    with pytest.raises(ValueError, match="sizes"):
        ngram_hash(ids, 0, 1009)
    with pytest.raises(ValueError, match="switched off"):
        ngram_hashes(ids, HashConfig(sizes=()))
    with pytest.raises(ValueError, match=r"2\^31 rows"):
        ngram_hashes(ids, dataclasses.replace(HashConfig(), buckets=2**29))


TABLES = HashConfig(sizes=(3, 5), buckets=11, functions=2)


def embed(table, ids, config):
    return HashEmbedding(config, table.shape[1]).apply({"params": {"table": table}}, jnp.asarray(ids))


@pytest.mark.parametrize("short_ngrams", ["zeros", "omit"])
def test_an_embedding_is_the_sum_of_its_ngrams(short_ngrams):
    config = dataclasses.replace(TABLES, short_ngrams=short_ngrams)
    draw = np.random.default_rng(5)
    table, ids = np.float32(draw.standard_normal((44, 3))), draw.integers(0, 260, (2, 9))
    want = np.zeros((2, 9, 3))
    for place, (function, size) in enumerate([(0, 3), (0, 5), (1, 3), (1, 5)]):
        found = table[11 * place + expected(ids, size, 11, function)]
        if short_ngrams == "omit":
            found[:, : size - 1] = 0
        want += found
    np.testing.assert_allclose(quick_jit(embed, static_argnums=2)(table, ids, config), want, atol=1e-6)


@pytest.mark.parametrize("short_ngrams", ["zeros", "omit"])
def test_a_part_of_a_row_is_embedded_as_in_the_row(short_ngrams):
    config = dataclasses.replace(TABLES, short_ngrams=short_ngrams)
    table = np.float32(np.random.default_rng(7).standard_normal((config.tables * config.buckets, 3)))
    ids = np.random.default_rng(8).integers(4, 260, (1, 12))
    whole = embed(table, ids, config)
    tail = max(config.sizes) - 1
    padded = np.concatenate([np.zeros((1, tail), int), ids], axis=1)
    for begin in (0, 2, 3, 9):
        part = jnp.asarray(padded[:, begin : begin + tail + 3])
        module = HashEmbedding(config, 3)
        got = module.apply({"params": {"table": table}}, part, jnp.array([tail - begin]), tail)
        np.testing.assert_allclose(got, whole[:, begin : begin + 3], atol=1e-6)


def test_a_table_read_from_a_file_is_numpy():
    config, table, ids = HashConfig(sizes=(1,), buckets=300), np.float32(np.arange(300)[:, None]), np.array([[7, 259]])
    assert embed(table, ids, config).tolist() == [[[7], [259]]]


def test_a_row_of_the_table_gathers_the_gradient_of_all_its_uses():
    ids = np.full((1, 7), 9)  # from byte 4 on all windows are the same
    rows = np.asarray(ngram_hashes(jnp.asarray(ids), TABLES))
    weights = np.arange(1.0, 8.0)
    want = np.zeros(44)
    np.add.at(want, rows[0], weights[:, None])

    def loss(table):
        return jnp.sum(embed(table, ids, TABLES)[0, :, 0] * weights)

    gradient = quick_jit(jax.grad(loss))(np.zeros((44, 1), np.float32))
    np.testing.assert_allclose(gradient[:, 0], want, rtol=1e-6)


def test_an_embedding_is_given_in_the_type_it_is_asked_in():
    module = HashEmbedding(TABLES, 4, dtype="bfloat16")
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((1, 6), jnp.int32))
    assert out.dtype == jnp.bfloat16
    assert variables["params"]["table"] == jax.ShapeDtypeStruct((44, 4), jnp.float32)
