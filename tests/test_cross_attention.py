import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.cross_attention import (
    CrossAttention,
    attend_to_bytes,
    attend_to_patches,
    patch_max,
    pool,
    pool_on,
)
from bltjax.patching import Patches
from tests import dense
from tests.programs import largest_array, quick_jit

BATCH, BYTES, PATCHES = 3, 33, 20
to_bytes, to_patches = quick_jit(attend_to_bytes), quick_jit(attend_to_patches)


def random_patches(seed=0, num_bytes=BYTES, num_patches=PATCHES):
    """Patches of 1 to many bytes, with slots left over, as rows with fewer patches have them."""
    starts = np.random.default_rng(seed).random((BATCH, num_bytes + 1)) < 0.4
    starts[:, :2] = True
    starts[0, 2:-1] = False  # a row of two patches
    patches = Patches.from_starts(starts, num_patches)
    assert not patches.valid[:, -1].any()
    return patches


PATCH_IDS = random_patches()


def draws(seed, *shapes):
    draw = np.random.default_rng(seed)
    return [jnp.asarray(1.5 * draw.standard_normal(shape), jnp.float32) for shape in shapes]


def rows_of(x):
    """[batch, patches, k, ...] as one list of rows."""
    return np.float64(x).reshape(x.shape[0], -1, *x.shape[3:])


def sees(ids, k):
    """[batch, bytes, patches * k]: the rows of a byte's patch."""
    return np.repeat(np.asarray(ids)[:, :, None] == np.arange(PATCHES), k, axis=2)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_patches_read_their_bytes_as_under_a_dense_mask(k):
    ids = PATCH_IDS.encoder_ids
    q, keys, values = draws(k, (BATCH, PATCHES, k, 2, 4), (BATCH, BYTES, 2, 4), (BATCH, BYTES, 2, 4))
    got = to_bytes(q, keys, values, ids)
    want = dense.attend(rows_of(q), np.float64(keys), np.float64(values), sees(ids, k).swapaxes(1, 2))
    np.testing.assert_allclose(got, want.reshape(got.shape), atol=1e-5, rtol=1e-5)
    empty = ~np.asarray(PATCH_IDS.valid)
    assert empty.any() and (np.asarray(got)[empty] == 0).all()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_bytes_read_their_patch_as_under_a_dense_mask(k):
    ids = PATCH_IDS.decoder_ids
    q, keys, values = draws(k, (BATCH, BYTES, 2, 4), (BATCH, PATCHES, k, 2, 4), (BATCH, PATCHES, k, 2, 4))
    got = to_patches(q, keys, values, ids)
    want = dense.attend(np.float64(q), rows_of(keys), rows_of(values), sees(ids, k))
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_scores_of_thousands_neither_overflow_nor_blur():
    k, ids = 2, PATCH_IDS.encoder_ids
    q, keys, values = draws(7, (BATCH, PATCHES, k, 2, 4), (BATCH, BYTES, 2, 4), (BATCH, BYTES, 2, 4))
    q, keys = 100 * q, 10 * keys
    got = to_bytes(q, keys, values, ids)
    want = dense.attend(rows_of(q), np.float64(keys), np.float64(values), sees(ids, k).swapaxes(1, 2))
    np.testing.assert_allclose(got, want.reshape(got.shape), atol=2e-3)
    got = to_patches(keys, q, q, ids)
    want = dense.attend(np.float64(keys), rows_of(q), rows_of(q), sees(ids, k))
    np.testing.assert_allclose(got, want, atol=2e-3, rtol=1e-4)


def masked(q, keys, values, visible):
    scores = jnp.einsum("bqhd,bmhd->bhqm", q, keys) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -1e30)) * visible[:, None]
    return jnp.einsum("bhqm,bmhd->bqhd", weights, values)


@pytest.mark.parametrize("to", ["bytes", "patches"])
def test_gradients_are_those_of_a_dense_mask(to):
    k = 2
    ids = PATCH_IDS.encoder_ids if to == "bytes" else PATCH_IDS.decoder_ids
    of_bytes, of_patches = (BATCH, BYTES, 2, 4), (BATCH, PATCHES, k, 2, 4)
    shapes = (of_patches, of_bytes, of_bytes) if to == "bytes" else (of_bytes, of_patches, of_patches)
    *arguments, cotangent = draws(3, *shapes, shapes[0])
    visible = sees(ids, k).swapaxes(1, 2) if to == "bytes" else sees(ids, k)

    def by_mask(*arguments):
        rows = [x.reshape(BATCH, -1, 2, 4) for x in arguments]
        return jnp.sum(masked(*rows, visible).reshape(cotangent.shape) * cotangent)

    def by_ids(*arguments):
        attend = attend_to_bytes if to == "bytes" else attend_to_patches
        return jnp.sum(attend(*arguments, ids) * cotangent)

    got = quick_jit(jax.grad(by_ids, argnums=(0, 1, 2)))(*arguments)
    want = quick_jit(jax.grad(by_mask, argnums=(0, 1, 2)))(*arguments)
    for name, one, other in zip(("queries", "keys", "values"), got, want, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("how", ["max", "mean", "min"])
def test_a_patch_is_pooled_from_its_own_bytes(how):
    [x] = draws(4, (BATCH, BYTES, 5))
    ids = PATCH_IDS.encoder_ids
    got = np.asarray(quick_jit(pool, static_argnums=(2, 3))(x, ids, PATCHES, how))
    np.testing.assert_allclose(got, dense.pool(np.float64(x), np.asarray(ids), PATCHES, how), rtol=1e-6)
    assert (got[~np.asarray(PATCH_IDS.valid)] == 0).all()


@pytest.mark.parametrize("how", ["max", "mean", "min"])
def test_a_patch_pooled_in_two_parts_is_pooled_as_one(how):
    [x] = draws(11, (4, 9, 5))
    x -= 3  # below 0, which stands for no bytes
    counts = jnp.array([0, 3, 8, 9])  # bytes in the first part
    one = jnp.stack([_reduced(x[i, : int(n)], how) for i, n in enumerate(counts)])
    other = jnp.stack([_reduced(x[i, int(n) :], how) for i, n in enumerate(counts)])
    whole = jnp.stack([_reduced(x[i], how) for i in range(4)])
    np.testing.assert_allclose(pool_on(other, 9 - counts, one, counts, how), whole, rtol=1e-5)


def _reduced(rows, how):
    """What `pool` makes of a patch: 0 where it has no bytes."""
    return getattr(jnp, how)(rows, axis=0) if len(rows) else jnp.zeros(rows.shape[1:])


def test_the_gradient_of_a_maximum_is_shared_by_all_that_attain_it():
    patches = Patches.from_lengths(np.array([[1, 4, 3, 1, 0]]), 8)
    x = np.array([[5, 2, 7, 7, 7, -3, -1, -1]], np.float32)[..., None]

    @quick_jit
    def largest_and_gradient(x, cotangent):
        largest, back = jax.vjp(lambda x: patch_max(x, patches.encoder_ids, 5), x)
        return largest, back(cotangent)[0]

    largest, gradient = largest_and_gradient(x, np.array([[1, 6, 8, 100, 100]], np.float32)[..., None])
    assert largest[0, :, 0].tolist() == [5, 7, -1, 0, 0]
    assert gradient[0, :, 0].tolist() == [1, 0, 2, 2, 2, 0, 4, 4]


@pytest.mark.parametrize("how", ["max", "mean", "min"])
def test_pooling_has_the_gradient_of_its_finite_differences(how):
    x, cotangent = draws(5, (BATCH, BYTES, 2), (BATCH, PATCHES, 2))
    ids = np.asarray(PATCH_IDS.encoder_ids)
    gradient = quick_jit(jax.grad(lambda x: jnp.sum(pool(x, PATCH_IDS.encoder_ids, PATCHES, how) * cotangent)))(x)
    for place in [(0, 0, 0), (0, 7, 1), (1, 12, 0), (2, BYTES - 1, 1)]:
        bump = np.zeros(x.shape)
        bump[place] = 1e-4
        up, down = (dense.pool(np.float64(x) + side * bump, ids, PATCHES, how) for side in (1, -1))
        assert gradient[place] == pytest.approx(np.sum((up - down) * np.float64(cotangent)) / 2e-4, abs=1e-5)


@pytest.mark.parametrize(("residual", "side"), [("double", "encoder"), ("single", "decoder")])
def test_the_module_norms_projects_groups_and_adds_its_input(residual, side):
    k, width = 2, 8
    module = CrossAttention(width, heads=4, kv_heads=2, residual=residual, epsilon=1e-2)
    of_bytes, of_patches = draws(6, (BATCH, BYTES, width), (BATCH, PATCHES, k, width))
    ids = PATCH_IDS.encoder_ids if side == "encoder" else PATCH_IDS.decoder_ids
    x, memory = (of_patches, of_bytes) if side == "encoder" else (of_bytes, of_patches)
    shapes = jax.eval_shape(functools.partial(module.init, jax.random.key(0)), x, memory, ids)["params"]
    assert shapes["key"]["kernel"].shape == (8, 2, 2) and shapes["query"]["kernel"].shape == (8, 4, 2)
    params = dense.random_params(shapes, seed=8)
    got = quick_jit(module.apply)({"params": params}, x, memory, ids)
    visible = sees(ids, k).swapaxes(1, 2) if side == "encoder" else sees(ids, k)
    rows = [np.float64(x).reshape(BATCH, -1, width), np.float64(memory).reshape(BATCH, -1, width)]
    want = dense.cross_attention(jax.tree.map(np.float64, params), residual, 1e-2, *rows, visible)
    np.testing.assert_allclose(got, want.reshape(got.shape), atol=2e-5, rtol=1e-5)


def test_bfloat16_in_and_out_with_sums_in_float32():
    patches = Patches.from_lengths(np.array([[1, 299, 1]]), 300)
    q, keys, values = draws(9, (1, 3, 2, 1, 4), (1, 300, 1, 4), (1, 300, 1, 4))
    q, keys, values = (x.astype(jnp.bfloat16) for x in (0.1 * q, keys, 1 + 0.01 * values))
    got = to_bytes(q, keys, values, patches.encoder_ids)
    assert got.dtype == jnp.bfloat16
    want = to_bytes(*(x.astype(jnp.float32) for x in (q, keys, values)), patches.encoder_ids)
    np.testing.assert_allclose(np.float32(got), want, rtol=2**-8)


def test_neither_direction_makes_bytes_times_patches():
    num_bytes, num_patches, k = 8192, 2048, 2

    def abstract(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((1, *shape), dtype)

    ids = abstract(num_bytes, dtype=jnp.int32)
    of_bytes, of_patches = abstract(num_bytes, 1, 4), abstract(num_patches, k, 1, 4)

    def encoder(q, keys, values, ids):
        return jnp.sum(attend_to_bytes(q, keys, values, ids) ** 2)

    def decoder(q, keys, values, ids):
        return jnp.sum(attend_to_patches(q, keys, values, ids) ** 2)

    def pooled(x, ids):
        return jnp.sum(pool(x, ids, num_patches, "max") ** 2)

    programs = [
        (jax.value_and_grad(encoder, argnums=(0, 1, 2)), (of_patches, of_bytes, of_bytes, ids)),
        (jax.value_and_grad(decoder, argnums=(0, 1, 2)), (of_bytes, of_patches, of_patches, ids)),
        (jax.value_and_grad(pooled), (abstract(num_bytes, 4), ids)),
    ]
    for program, arguments in programs:
        elements, shape, primitive = largest_array(program, *arguments)
        assert elements <= 4 * k * num_bytes * 4, (shape, primitive)
