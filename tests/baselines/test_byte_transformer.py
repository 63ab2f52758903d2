import functools

import numpy as np
import pytest

from bltjax.baselines.byte_transformer import ByteTransformer
from bltjax.config import ByteTransformerConfig, TransformerConfig
from bltjax.families import abstract_params
from tests import dense
from tests.programs import quick_jit

BYTES = 70  # more than one block of attention
TOWER = TransformerConfig(16, 1, 4, kv_heads=2, hidden=24)


@functools.cache
def forward(document_mask):
    config = ByteTransformerConfig(TOWER, document_mask=document_mask)
    params = dense.random_params(abstract_params(config), seed=0)
    compiled = quick_jit(lambda params, ids: ByteTransformer(config).apply({"params": params}, ids))
    return functools.partial(compiled, params), functools.partial(dense.language_model, params, config)


def rows():
    ids = np.random.default_rng(1).integers(4, 260, (3, BYTES), dtype=np.int32)
    ids[1, 30] = dense.EOS
    ids[2] = ids[0]
    ids[2, 5] = 77
    return ids


@pytest.mark.parametrize("document_mask", [True, False])
def test_logits_are_those_of_dense_masks_in_float64(document_mask):
    model, oracle = forward(document_mask)
    want = oracle(rows())
    np.testing.assert_allclose(model(rows()), want, atol=1e-5 * np.abs(want).max())


def test_a_byte_is_seen_by_all_later_ones_and_by_no_earlier_one():
    logits = np.asarray(forward(True)[0](rows()))
    moved = np.abs(logits[2] - logits[0]).max(axis=-1)
    assert (moved[:5] < 1e-5).all() and (moved[5:] > 1e-4).all()


@pytest.mark.parametrize("document_mask", [True, False])
def test_only_the_mask_ends_a_document(document_mask):
    model, _ = forward(document_mask)
    changed = rows()
    changed[:, 20] = 78
    moved = np.abs(np.asarray(model(changed) - model(rows()))).max(axis=-1)
    assert (moved[1, 31:] < 1e-5).all() == document_mask
    assert moved[1, 30] > 1e-4 and (moved[0, 20:] > 1e-5).all()
