import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.attention import attention
from tests import dense
from tests.programs import largest_array, quick_jit

run = quick_jit(attention, static_argnames=("window", "backend"))


def inputs(length, heads=2, key_heads=1, batch=2, scale=1.5):
    draw = np.random.default_rng(length)
    q = scale * draw.standard_normal((batch, length, heads, 4))
    k, v = scale * draw.standard_normal((2, batch, length, key_heads, 4))
    ends = draw.random((batch, length)) < max(0.02, 1 / length)
    documents = np.cumsum(ends, axis=1).astype(np.int32)
    return *(jnp.asarray(x, jnp.float32) for x in (q, k, v)), jnp.asarray(documents)


def oracle(q, k, v, documents, window):
    q, k, v = (np.float64(x) for x in (q, k, v))
    return dense.attend(q, k, v, dense.causal_mask(np.asarray(documents), window))


@pytest.mark.parametrize(
    ("length", "window", "heads", "key_heads"),
    [
        (1, None, 2, 2),
        (1, 1, 2, 1),
        (7, None, 4, 2),
        (7, 3, 2, 1),
        (7, 7, 2, 1),
        (130, None, 2, 1),
        (130, 1, 2, 1),
        (130, 129, 2, 2),  # all but one key of the last query
        (130, 500, 2, 1),  # wider than the row
        (300, 5, 4, 2),
        (300, 128, 2, 1),
        (300, 200, 2, 1),
        (520, None, 1, 1),
    ],
)
def test_blocks_give_what_a_dense_mask_gives(length, window, heads, key_heads):
    q, k, v, documents = inputs(length, heads, key_heads)
    got = run(q, k, v, documents, window=window)
    np.testing.assert_allclose(got, oracle(q, k, v, documents, window), atol=2e-5, rtol=2e-5)


def test_without_documents_the_row_is_one():
    q, k, v, documents = inputs(7)
    got = run(q, k, v, None, window=3)
    np.testing.assert_array_equal(got, run(q, k, v, jnp.zeros_like(documents), window=3))
    assert not np.allclose(got, run(q, k, v, documents, window=3))


@pytest.mark.parametrize(("length", "window"), [(7, 3), (130, None), (300, 150)])
def test_gradients_are_those_of_a_dense_mask(length, window):
    q, k, v, documents = inputs(length, heads=4, key_heads=2)
    cotangent = np.random.default_rng(1).standard_normal(q.shape).astype(np.float32)
    visible = dense.causal_mask(np.asarray(documents), window)

    def masked(q, k, v):
        k, v = jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2
        weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf))
        return jnp.sum(jnp.einsum("bhqk,bkhd->bqhd", weights, v) * cotangent)

    def blocked(q, k, v):
        return jnp.sum(attention(q, k, v, documents, window) * cotangent)

    got = quick_jit(jax.grad(blocked, argnums=(0, 1, 2)))(q, k, v)
    want = quick_jit(jax.grad(masked, argnums=(0, 1, 2)))(q, k, v)
    for name, one, other in zip("qkv", got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5, rtol=3e-4, err_msg=name)


@pytest.mark.parametrize("window", [None, 5])
def test_scores_of_thousands_neither_overflow_nor_blur(window):
    q, k, v, documents = inputs(130)
    q, k = 100 * q, 10 * k
    got = np.asarray(run(q, k, v, documents, window=window))
    np.testing.assert_allclose(got, oracle(q, k, v, documents, window), atol=2e-3)


def test_bfloat16_sums_in_float32():
    q, k, v, documents = inputs(300, scale=0.5)
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    got = run(q, k, v, documents, window=200)
    assert got.dtype == jnp.bfloat16
    # One rounding of the weights and one of the result; a sum over 200 keys in bfloat16 would be off by far more.
    np.testing.assert_allclose(np.float64(got), oracle(q, k, v, documents, 200), atol=4e-3, rtol=8e-3)


def test_a_windowed_row_never_makes_positions_times_positions():
    length, shape = 4096, (1, 4096, 1, 4)
    abstract = jax.ShapeDtypeStruct(shape, jnp.float32)

    def loss(q, k, v):
        return jnp.sum(attention(q, k, v, window=100) ** 2)

    @jax.checkpoint
    def scores(q, k, v):
        return jnp.sum(jnp.einsum("bqhd,bkhd->bhqk", q, k)) + jnp.sum(v)

    elements, found, primitive = largest_array(jax.value_and_grad(loss, argnums=(0, 1, 2)), *[abstract] * 3)
    assert elements < length * length / 8, (found, primitive)
    assert largest_array(scores, *[abstract] * 3)[0] >= length * length  # the instrument sees inner programs


def test_unknown_back_ends_and_empty_windows_are_named():
    q, k, v, documents = inputs(7)
    with pytest.raises(ValueError, match="backend='cudn'"):
        attention(q, k, v, documents, backend="cudn")
    with pytest.raises(ValueError, match="window=0"):
        attention(q, k, v, documents, window=0)
