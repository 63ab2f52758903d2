import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.config import BLTConfig, CrossAttentionConfig, HashConfig, TransformerConfig
from bltjax.families import abstract_params
from bltjax.local import LocalDecoder, LocalEncoder
from bltjax.patching import Patches
from tests import dense
from tests.programs import quick_jit

BATCH, BYTES, PATCHES = 3, 19, 12
LOCAL = TransformerConfig(width=16, layers=2, heads=4, kv_heads=2, hidden=24, window=6)
CONFIG = BLTConfig(
    encoder=LOCAL,
    global_model=TransformerConfig(width=24, layers=1, heads=2, hidden=24),
    decoder=dataclasses.replace(LOCAL, rope_theta=1e3),
    cross_attention=CrossAttentionConfig(k=3, heads=2),
    hash=HashConfig(sizes=()),
)


def with_cross(**changes):
    return dataclasses.replace(CONFIG, cross_attention=dataclasses.replace(CONFIG.cross_attention, **changes))


def draw_starts():
    starts = np.random.default_rng(0).random((BATCH, BYTES + 1)) < 0.4
    starts[:, :2] = True
    return starts


STARTS = draw_starts()
OWN, READ = dense.lies_in(STARTS), dense.may_read(STARTS)
DOCUMENTS = np.int32(np.arange(BYTES) > 7)[None].repeat(BATCH, axis=0)
X, LATENTS = (
    np.float32(np.random.default_rng(seed).standard_normal((BATCH, places, width)))
    for seed, places, width in ((1, BYTES, 16), (2, PATCHES, 24))
)


@functools.cache
def params(config):
    return dense.random_params(abstract_params(config), seed=3)


@functools.cache
def encoder(config):
    def encode(params, x, documents):
        patches = Patches.from_starts(STARTS, PATCHES)
        return LocalEncoder(config).apply({"params": params}, x, patches, documents)

    return functools.partial(quick_jit(encode), params(config)["encoder"])


@functools.cache
def decoder(config):
    def decode(params, x, latents, documents):
        patches = Patches.from_starts(STARTS, PATCHES)
        return LocalDecoder(config).apply({"params": params}, x, latents, patches, documents)

    return functools.partial(quick_jit(decode), params(config)["decoder"])


def name(config):
    cross = config.cross_attention
    return f"{cross.encoder}, pooling {cross.pooling}"


def close(got, want):
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


ENCODERS = [
    with_cross(encoder="last"),
    with_cross(encoder="all", pooling="mean", residual="single"),
    with_cross(encoder="all_repool", pooling="min", kv_heads=1),
    with_cross(encoder="none"),
    with_cross(encoder="last", pooling="none"),
    with_cross(encoder="all", pooling="none"),
]


@pytest.mark.parametrize("config", ENCODERS, ids=name)
def test_bytes_and_patches_are_those_of_dense_masks_in_float64(config):
    h, rows = encoder(config)(X, DOCUMENTS)
    weights = jax.tree.map(np.float64, params(config)["encoder"])
    want_h, want_rows = dense.local_encoder(weights, config, np.float64(X), OWN, PATCHES, DOCUMENTS)
    close(h, want_h)
    close(rows, want_rows)


@pytest.mark.parametrize("config", ENCODERS, ids=name)
def test_a_patch_depends_on_no_byte_after_it(config):
    h, rows = encoder(config)(X, DOCUMENTS)
    for t in (3, 11):
        changed = X.copy()
        changed[:, t] += 1
        moved_h, moved_rows = (
            np.abs(a - b).max(axis=-1) for a, b in zip(encoder(config)(changed, DOCUMENTS), (h, rows), strict=True)
        )
        for row in range(BATCH):
            own = OWN[row, t]
            assert (moved_h[row, :t] < 1e-5).all() and moved_h[row, t] > 1e-3
            assert (moved_rows[row, :own] < 1e-5).all() and moved_rows[row, own] > 1e-3


def test_pooling_anew_at_every_layer_is_another_model():
    # What "all" carries from layer to layer, "all_repool" throws away: with one layer they would be the same.
    carried, anew = (encoder(with_cross(encoder=kind)) for kind in ("all", "all_repool"))
    (h, rows), (same_h, other_rows) = carried(X, DOCUMENTS), anew(X, DOCUMENTS)
    np.testing.assert_allclose(h, same_h, atol=1e-5)
    assert not np.allclose(rows, other_rows, rtol=0.1)


DECODERS = [with_cross(decoder="first", residual="single"), with_cross(decoder="all", k=1), with_cross(decoder="none")]


@pytest.mark.parametrize("config", DECODERS, ids=lambda config: config.cross_attention.decoder)
def test_logits_are_those_of_dense_masks_in_float64(config):
    logits = decoder(config)(X, LATENTS, DOCUMENTS)
    weights = jax.tree.map(np.float64, params(config)["decoder"])
    close(logits, dense.local_decoder(weights, config, np.float64(X), np.float64(LATENTS), READ, DOCUMENTS))


@pytest.mark.parametrize("config", DECODERS, ids=lambda config: config.cross_attention.decoder)
def test_a_byte_reads_the_newest_complete_patch_and_none_after_it(config):
    logits = decoder(config)(X, LATENTS, DOCUMENTS)
    for patch in (0, 3):
        changed = LATENTS.copy()
        changed[:, patch] += 1
        moved = np.abs(decoder(config)(X, changed, DOCUMENTS) - logits).max(axis=-1)
        assert (moved[patch > READ] < 1e-5).all()
        assert (moved[patch == READ] > 1e-3).all()


def test_the_encoder_hands_on_what_it_computes_in():
    config = dataclasses.replace(CONFIG, compute=dataclasses.replace(CONFIG.compute, dtype="bfloat16"))
    patches = jax.eval_shape(lambda: Patches.from_starts(STARTS, PATCHES))
    for kind, pooling in (("last", "max"), ("all", "max"), ("all_repool", "max"), ("none", "max"), ("all", "none")):
        cross = dataclasses.replace(config.cross_attention, encoder=kind, pooling=pooling)
        module = LocalEncoder(dataclasses.replace(config, cross_attention=cross))
        x = jax.ShapeDtypeStruct(X.shape, jnp.bfloat16)
        (h, rows), variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x, patches, None)
        assert h.dtype == rows.dtype == jnp.bfloat16
        assert rows.shape == (BATCH, PATCHES, config.patch_width)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
