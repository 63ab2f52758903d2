import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.baselines.spacebyte import SpaceByte
from bltjax.config import SpaceByteConfig, TransformerConfig
from bltjax.families import abstract_params
from bltjax.patching import Patches, space_starts
from tests import dense
from tests.programs import quick_jit

BYTES, SLOTS = 26, 16
LOCAL = TransformerConfig(16, 2, 4, kv_heads=2, hidden=24, window=5)
CONFIG = SpaceByteConfig(
    encoder=LOCAL,
    global_model=TransformerConfig(24, 2, 2, hidden=32),
    decoder=dataclasses.replace(LOCAL, layers=1),
)
TEXT = b"It's 1, 2:  na\xc3\xafve (x_y)!"


@functools.cache
def forward(config):
    return quick_jit(
        lambda params, ids, starts: SpaceByte(config).apply({"params": params}, ids, Patches.from_starts(starts, SLOTS))
    )


@functools.cache
def params_of(config):
    return dense.random_params(abstract_params(config), seed=0)


def rows():
    ids = np.frombuffer(TEXT, np.uint8).astype(np.int32)[:BYTES][None] + 4
    ids = np.pad(ids, ((0, 0), (1, 0)), constant_values=1)[:, :BYTES].repeat(3, axis=0)
    ids[1, 11:13], ids[2, 14:16] = (dense.EOS, 1), (dense.EOS, 1)
    return ids


def spacebyte(params, config, ids, starts):
    """Logits, from the paper's figure: layers for all bytes, for the last of each patch, and for all again."""
    p = jax.tree.map(np.float64, params)
    documents = dense.documents_of(ids == dense.EOS) * config.document_mask
    h = p["byte_embedding"]["table"][ids]
    for index in range(config.encoder.layers):
        h = dense.layer(dense.layer_of(p["encoder"]["layers"], index), config.encoder, h, documents)
    width = h.shape[-1]
    for row, begins in enumerate(starts):
        last = np.flatnonzero(begins[1:])
        y = np.zeros((1, len(last), config.global_model.width))
        y[0, :, -width:] = h[row, last]
        for index in range(config.global_model.layers):
            of_layer = dense.layer_of(p["global_model"]["layers"], index)
            y = dense.layer(of_layer, config.global_model, y, documents[row, last][None])
        h[row, last] += y[0, :, -width:]
    for index in range(config.decoder.layers):
        h = dense.layer(dense.layer_of(p["decoder"]["layers"], index), config.decoder, h, documents)
    return dense.rms_norm(h, p["decoder"]["norm"]["scale"]) @ p["decoder"]["output"]["kernel"]


VARIANTS = {
    "masked": CONFIG,
    "not masked": dataclasses.replace(CONFIG, document_mask=False),
    "widths alike": dataclasses.replace(CONFIG, global_model=TransformerConfig(16, 1, 2, hidden=32)),
    "no layers before": dataclasses.replace(CONFIG, encoder=dataclasses.replace(LOCAL, layers=0)),
}


@pytest.mark.parametrize(
    "variant", ["masked", *(pytest.param(name, marks=pytest.mark.slow) for name in list(VARIANTS)[1:])]
)
def test_logits_are_those_of_dense_masks_in_float64(variant):
    config = VARIANTS[variant]
    ids, params = rows(), params_of(config)
    starts = space_starts(ids)
    want = spacebyte(params, config, ids, starts)
    np.testing.assert_allclose(forward(config)(params, ids, starts), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow
def test_gradients_are_those_of_dense_masks_and_reach_every_parameter():
    ids, params = rows()[1:], params_of(CONFIG)
    starts, weights = space_starts(ids), np.random.default_rng(2).normal(size=(2, BYTES, 260))
    patches = Patches.from_starts(starts, SLOTS)
    gradients = quick_jit(
        jax.grad(lambda params: jnp.sum(SpaceByte(CONFIG).apply({"params": params}, ids, patches) * weights))
    )(params)  # fmt: skip
    dense.check_gradients(lambda params: np.sum(spacebyte(params, CONFIG, ids, starts) * weights), params, gradients)


def test_patches_end_with_the_first_space_like_byte_over_all_pairs_of_bytes():
    """Space-like: neither an ASCII letter or digit nor a UTF-8 continuation byte; the one before it is not."""
    space_like = np.array([not (chr(b).isascii() and chr(b).isalnum()) and not 0x80 <= b <= 0xBF for b in range(256)])
    one, other = (x.reshape(-1) for x in np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))
    row = np.stack([np.full(65536, 1), np.full(65536, ord("m") + 4), one + 4, other + 4, one + 4], axis=1)
    patches = Patches.from_starts(space_starts(row.astype(np.int32)), 5)
    ends = np.asarray(patches.decoder_ids == patches.encoder_ids)
    np.testing.assert_array_equal(ends[:, 0], True)  # BOS
    np.testing.assert_array_equal(ends[:, 1], False)
    np.testing.assert_array_equal(ends[:, 2], space_like[one])
    np.testing.assert_array_equal(ends[:, 3], space_like[other] & ~space_like[one])


def test_the_global_layers_read_and_write_the_last_byte_of_each_patch_alone():
    """With local layers that see one byte, all that a byte knows of others came through the global ones."""
    one_byte = dataclasses.replace(LOCAL, window=1)
    config = dataclasses.replace(CONFIG, encoder=one_byte, decoder=one_byte)
    draw = np.random.default_rng(4)
    starts = draw.random(BYTES + 1) < 0.4
    starts[:2] = True
    assert 4 < starts[:-1].sum() <= SLOTS
    ids = draw.integers(4, 260, (1, BYTES), dtype=np.int32)
    changed = ids.repeat(BYTES, axis=0)
    np.fill_diagonal(changed, (changed.diagonal() + 95) % 256 + 4)
    ids = np.concatenate([ids, changed])
    logits = np.asarray(forward(config)(params_of(config), ids, np.broadcast_to(starts, (BYTES + 1, BYTES + 1))))
    moved = np.abs(logits[1:] - logits[0]).max(axis=-1)
    j, t = np.arange(BYTES)[:, None], np.arange(BYTES)
    ends = starts[1:]
    np.testing.assert_array_equal(moved > 1e-4, (j == t) | (ends[:, None] & ends & (j < t)))
    assert (moved[~((j == t) | (ends[:, None] & ends & (j < t)))] < 1e-6).all()


def test_a_row_with_more_patches_than_slots_is_nan_and_the_others_are_not():
    starts = np.ones((3, BYTES + 1), bool)
    starts[[0, 2], 12:] = False
    logits = np.asarray(forward(CONFIG)(params_of(CONFIG), rows(), starts))
    assert np.isfinite(logits[[0, 2]]).all() and np.isnan(logits[1]).all()


def test_what_an_eos_ended_is_not_read():
    ids = rows()
    changed = ids.copy()
    changed[:, 3] = 99 + 4
    starts = space_starts(ids)
    before, after = (np.asarray(forward(CONFIG)(params_of(CONFIG), each, starts)) for each in (ids, changed))
    moved, end = np.abs(after - before).max(axis=-1), np.array([[BYTES], [11], [14]])
    assert (
        (moved[np.arange(BYTES) > end] < 1e-5).all() and (moved[:, 3:6] > 1e-4).all() and (moved[0, 20:] > 1e-5).all()
    )


def test_patches_of_other_rows_are_refused():
    patches = Patches.from_starts(np.ones((3, BYTES), bool), BYTES - 1)
    with pytest.raises(ValueError, match="make them from the same bytes"):
        jax.eval_shape(lambda: SpaceByte(CONFIG).apply({"params": abstract_params(CONFIG)}, rows(), patches))
