import functools

import jax
import numpy as np
import pytest

from bltjax.config import BLTConfig, CrossAttentionConfig, HashConfig, TransformerConfig
from bltjax.families import abstract_params
from bltjax.global_model import GlobalModel
from tests import dense
from tests.programs import quick_jit

BATCH, PATCHES = 2, 15
LOCAL = TransformerConfig(width=8, layers=1, heads=2, hidden=16)


def config_of(width):
    """k rows of 8 make a patch of 16 features: projected into a global model of any other width."""
    latent = TransformerConfig(width=width, layers=2, heads=4, kv_heads=2, hidden=24, rope_theta=1e3)
    return BLTConfig(LOCAL, latent, LOCAL, CrossAttentionConfig(k=2), HashConfig(sizes=()))


ROWS = np.float32(np.random.default_rng(0).standard_normal((BATCH, PATCHES, 16)))
DOCUMENTS = np.int32([[0] * 6 + [1] * 9, [0] * 15])


@functools.cache
def params(config):
    return dense.random_params(abstract_params(config)["global_model"], seed=1)


@functools.cache
def run(config):
    forward = quick_jit(lambda params, rows, documents: GlobalModel(config).apply({"params": params}, rows, documents))
    return functools.partial(forward, params(config))


@pytest.mark.parametrize("width", [16, 24])
def test_latents_are_those_of_dense_masks_in_float64(width):
    config = config_of(width)
    assert ("input_projection" in params(config)) == (width != 16)
    weights = jax.tree.map(np.float64, params(config))
    want = dense.global_model(weights, config, np.float64(ROWS), DOCUMENTS)
    np.testing.assert_allclose(run(config)(ROWS, DOCUMENTS), want, atol=1e-5 * np.abs(want).max())


def test_a_patch_sees_the_patches_before_it_in_its_document():
    latents = run(config_of(24))(ROWS, DOCUMENTS)
    for patch in (0, 4, 9):
        changed = ROWS.copy()
        changed[:, patch] += 1
        moved = np.abs(run(config_of(24))(changed, DOCUMENTS) - latents).max(axis=-1)
        sees = dense.causal_mask(DOCUMENTS)[:, :, patch]
        assert (moved[~sees] < 1e-5).all() and (moved[sees] > 1e-4).all()
