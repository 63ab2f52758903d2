import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.config import ComputeConfig, LanguageModelConfig, TransformerConfig
from bltjax.transformer import LanguageModel
from tests import dense
from tests.programs import primitives, quick_jit

BATCH, LENGTH = 3, 21
TOWER = TransformerConfig(width=16, layers=3, heads=4, kv_heads=2, hidden=24, window=9, rope_theta=1e3)
CONFIG = LanguageModelConfig(TOWER, vocabulary_size=40)
IDS = np.random.default_rng(0).integers(4, 40, (BATCH, LENGTH))
IDS[0, 8] = IDS[1, [3, 4, 17]] = dense.EOS
COTANGENT = np.float32(np.random.default_rng(1).standard_normal((BATCH, LENGTH, 40)))
COMPUTES = {
    "scanned": ComputeConfig(),
    "unrolled": ComputeConfig(unroll=True),
    "recomputed": ComputeConfig(remat="full"),
    "dots kept": ComputeConfig(remat="dots"),
    "unrolled, recomputed": ComputeConfig(unroll=True, remat="full"),
}


def model(**changes):
    return LanguageModel(dataclasses.replace(CONFIG, **changes))


@functools.cache
def params():
    shapes = jax.eval_shape(model().init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    return dense.random_params(shapes, seed=2)


def weighed(compute, params):
    logits = model(compute=compute).apply({"params": params}, jnp.asarray(IDS))
    return jnp.sum(logits * COTANGENT), logits


@functools.cache
def logits_and_gradients(name):
    (_, logits), gradients = quick_jit(jax.value_and_grad(functools.partial(weighed, COMPUTES[name]), has_aux=True))(
        params()
    )
    return np.asarray(logits), gradients


def test_logits_are_those_of_dense_masks_in_float64():
    logits, _ = logits_and_gradients("scanned")
    want = dense.language_model(params(), CONFIG, IDS)
    np.testing.assert_allclose(logits, want, atol=1e-5 * np.abs(want).max())


def test_every_gradient_is_that_of_finite_differences():
    _, gradients = logits_and_gradients("scanned")

    def value(changed):
        return np.sum(dense.language_model(changed, CONFIG, IDS) * np.float64(COTANGENT))

    dense.check_gradients(value, params(), gradients)


@pytest.mark.parametrize("name", [name for name in COMPUTES if name != "scanned"])
def test_how_layers_are_run_changes_nothing(name):
    want, want_gradients = logits_and_gradients("scanned")
    logits, gradients = logits_and_gradients(name)
    np.testing.assert_allclose(logits, want, atol=1e-5 * np.abs(want).max())
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max()),
        gradients,
        want_gradients,
    )


@pytest.mark.parametrize("unroll", [False, True])
def test_recomputing_more_keeps_less(unroll):
    def kept(remat):
        loss = functools.partial(weighed, ComputeConfig(unroll=unroll, remat=remat))
        backward = jax.eval_shape(lambda p: jax.vjp(loss, p, has_aux=True)[1], params())
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept("full") < kept("dots") < kept("none")


def test_unrolled_layers_are_written_out():
    scanned, unrolled = (
        primitives(functools.partial(weighed, COMPUTES[name]), params()) for name in ("scanned", "unrolled")
    )
    assert unrolled.count("dot_general") > 2 * scanned.count("dot_general")


def test_a_tower_without_layers_passes_on_what_it_gets():
    config = dataclasses.replace(CONFIG, tower=dataclasses.replace(TOWER, layers=0))
    bare = {name: params()[name] for name in ("embedding", "norm", "output")}
    logits = quick_jit(LanguageModel(config).apply)({"params": bare}, IDS)
    want = dense.language_model(bare, config, IDS)
    np.testing.assert_allclose(logits, want, atol=1e-5 * np.abs(want).max())


def test_every_layer_draws_its_own_parameters():
    fresh = quick_jit(model().init)(jax.random.key(3), jnp.zeros((1, 8), jnp.int32))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh["layers"]):
        assert leaf.shape[0] == TOWER.layers
        if path[-1].key == "scale":
            assert (leaf == 1).all()
        else:
            assert not np.allclose(leaf[0], leaf[1]) and not np.allclose(leaf[1], leaf[2])


def test_bfloat16_is_for_products_not_for_parameters_or_logits():
    # Smaller weights: with large ones the rounding of the parameters alone moves a gradient by a fifth.
    small = jax.tree.map(lambda leaf: leaf if np.mean(leaf) > 0.5 else leaf / 2, params())
    runs = []
    for dtype in ("float32", "bfloat16"):
        loss = functools.partial(weighed, ComputeConfig(dtype))
        (_, logits), gradients = quick_jit(jax.value_and_grad(loss, has_aux=True))(small)
        assert {leaf.dtype for leaf in jax.tree.leaves((logits, gradients))} == {jnp.dtype("float32")}
        runs.append([logits, *jax.tree.leaves(gradients)])
    for exact, rounded in zip(*runs, strict=True):
        assert 1e-4 < np.linalg.norm(exact - rounded) / np.linalg.norm(exact) < 0.1


def test_fresh_parameters_are_float32_whatever_is_computed():
    init = model(compute=ComputeConfig("bfloat16", unroll=True)).init
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), params()
    )
