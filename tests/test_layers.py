import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.config import TransformerConfig
from bltjax.layers import (
    Embedding,
    Projection,
    RMSNorm,
    SwiGLU,
    layer_factors,
    matrix_std,
    rotate,
    rotation,
    rotation_at,
    truncated_normal,
)
from tests import dense
from tests.programs import quick_jit

THETA = 10_000.0
turn = quick_jit(lambda x: rotate(x, rotation(x.shape[1], x.shape[3], THETA)))


def normal(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_rotation_turns_interleaved_pairs():
    x = normal(0, 2, 40, 3, 8)
    np.testing.assert_allclose(turn(x), dense.rotate(np.float64(x), THETA), atol=3e-6)


def test_positions_may_differ_from_row_to_row():
    x = normal(10, 1, 40, 3, 8)
    whole = turn(x)
    parts = jnp.stack([x[0, 3:13], x[0, 25:35]])
    angles = rotation_at(jnp.array([3, 25])[:, None] + jnp.arange(10), 8, THETA)
    np.testing.assert_allclose(rotate(parts, angles), jnp.stack([whole[0, 3:13], whole[0, 25:35]]), atol=1e-6)


def test_the_first_position_is_not_turned_and_lengths_are_kept():
    x = normal(1, 2, 40, 3, 8)
    turned = np.asarray(turn(x))
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    pairs, turned_pairs = (np.asarray(y).reshape(2, 40, 3, 4, 2) for y in (x, turned))
    np.testing.assert_allclose(np.linalg.norm(turned_pairs, axis=-1), np.linalg.norm(pairs, axis=-1), rtol=1e-5)


def test_scores_depend_on_the_distance_alone():
    q, k = (jnp.broadcast_to(normal(seed, 1, 1, 1, 8), (1, 60, 1, 8)) for seed in (2, 3))
    scores = np.einsum("bqhd,bkhd->qk", turn(q), turn(k))
    by_distance = [np.diagonal(scores, offset) for offset in range(-59, 60)]
    for diagonal in by_distance:
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
    assert np.std([diagonal[0] for diagonal in by_distance]) > 0.1  # but on the distance they do depend


def test_far_positions_of_a_bfloat16_row_are_turned_by_float32_angles():
    x = normal(4, 1, 24_576, 1, 4).astype(jnp.bfloat16)
    turned = turn(x)
    assert turned.dtype == jnp.bfloat16
    exact = dense.rotate(np.float64(x), THETA)
    np.testing.assert_allclose(np.float64(turned), exact, atol=0.04)  # bfloat16 angles would be off by whole turns


def test_the_norm_divides_by_the_root_mean_square():
    x, scale = normal(5, 2, 3, 16, scale=1e-2), normal(6, 16)
    got = RMSNorm(16, epsilon=1e-4).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(got, dense.rms_norm(np.float64(x), np.float64(scale), 1e-4), rtol=1e-5)


def test_the_norm_of_bfloat16_is_taken_in_float32():
    x = normal(7, 4, 1024, scale=300.0).astype(jnp.bfloat16)
    got = RMSNorm(1024, dtype="bfloat16").apply({"params": {"scale": jnp.ones(1024)}}, x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(got), dense.rms_norm(np.float64(x), 1.0), rtol=2**-8)


def test_a_projection_contracts_all_its_input_axes():
    x, kernel = normal(8, 2, 5, 3, 4), normal(9, 3, 4, 6, 2)
    projection = Projection((3, 4), (6, 2), ("heads", "head_width", "shard", None), std=1.0)
    got = projection.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(got, np.einsum("blij,ijxy->blxy", x, kernel), atol=1e-5)


def test_the_feed_forward_is_gated_by_silu():
    config = TransformerConfig(width=8, layers=1, heads=2, hidden=12)
    gate, up, down = normal(10, 8, 12), normal(11, 8, 12), normal(12, 12, 8)
    x = normal(13, 2, 3, 8)
    params = {name: {"kernel": kernel} for name, kernel in (("gate", gate), ("up", up), ("down", down))}
    gated = np.float64(x) @ np.float64(gate)
    want = (gated / (1 + np.exp(-gated)) * (np.float64(x) @ np.float64(up))) @ np.float64(down)
    np.testing.assert_allclose(SwiGLU(config).apply({"params": params}, x), want, atol=2e-5, rtol=1e-5)


def test_a_row_of_a_table_gathers_the_gradient_of_all_its_uses():
    table, ids = normal(14, 7, 3), jnp.array([[2, 5, 2], [2, 0, 5]])
    weights = normal(15, 2, 3, 3)

    def loss(table):
        return jnp.sum(Embedding(7, 3, 1.0).apply({"params": {"table": table}}, ids) * weights)

    want = np.zeros((7, 3))
    np.add.at(want, np.asarray(ids), np.asarray(weights))
    np.testing.assert_allclose(jax.grad(loss)(table), want, rtol=1e-6)


def test_an_id_out_of_range_is_never_taken_for_another():
    table = normal(16, 7, 3)
    rows = np.asarray(Embedding(7, 3, 1.0).apply({"params": {"table": table}}, jnp.array([[6, 7, -1]])))
    np.testing.assert_array_equal(rows[0, 0], table[6])
    assert np.isnan(rows[0, 1:]).all()


def test_draws_are_cut_at_three_deviations():
    drawn = np.asarray(truncated_normal(0.02)(jax.random.key(0), (600, 700), jnp.float32)) / 0.02
    assert 2.99 < np.abs(drawn).max() <= 3.0
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.std() == pytest.approx(0.98658, rel=0.005)  # of a normal distribution cut at 3
    assert np.mean(np.abs(drawn) < 1) == pytest.approx(0.6827 / 0.9973, abs=0.003)


def test_the_deviation_of_a_matrix_follows_its_input_and_the_factor():
    plain = {"width": 1024, "layers": 7, "heads": 8}
    assert matrix_std(TransformerConfig(**plain), 1024) == 1 / 32
    assert matrix_std(TransformerConfig(**plain), 4096) == 1 / 64
    assert matrix_std(TransformerConfig(**plain, init_factor="depth"), 1024) == 1 / 32 / 4  # sqrt(2 (7 + 1))
    assert matrix_std(TransformerConfig(**plain, init_factor="width"), 1024) == 1 / 32 * 4  # 4096 / 1024
    assert matrix_std(TransformerConfig(**plain, init_factor="current_depth"), 1024) == 1 / 32
    assert layer_factors(TransformerConfig(**plain, init_factor="current_depth"))[::6] == (2**0.5, 14**0.5)
    assert layer_factors(TransformerConfig(**plain, init_factor="current_depth", init_std=0.01)) == ()
    # As in the released code, an explicit deviation is not divided by the factor.
    assert matrix_std(TransformerConfig(**plain, init_std=0.01, init_factor="depth"), 4096) == 0.01
