import functools

import numpy as np

from bltjax.baselines.token_transformer import TokenTransformer
from bltjax.config import TokenTransformerConfig, TransformerConfig
from bltjax.families import abstract_params
from tests import dense
from tests.programs import quick_jit

TOKENS, VOCABULARY = 24, 333
CONFIG = TokenTransformerConfig(TransformerConfig(16, 2, 2, hidden=24), vocabulary_size=VOCABULARY)
forward = quick_jit(lambda params, ids: TokenTransformer(CONFIG).apply({"params": params}, ids))
params = functools.cache(lambda: dense.random_params(abstract_params(CONFIG), seed=0))


def rows():
    ids = np.random.default_rng(1).integers(4, VOCABULARY, (2, TOKENS), dtype=np.int32)
    ids[:, 0], ids[0, 10] = 1, dense.EOS
    return ids


def test_logits_are_those_of_dense_masks_in_float64():
    logits = forward(params(), rows())
    want = dense.language_model(params(), CONFIG, rows())
    assert logits.shape == (2, TOKENS, VOCABULARY)
    np.testing.assert_allclose(logits, want, atol=1e-5 * np.abs(want).max())


def test_tokens_are_causal_within_their_document():
    changed = rows()
    changed[:, 6] = 200
    moved = np.abs(np.asarray(forward(params(), changed) - forward(params(), rows()))).max(axis=-1)
    assert (moved[:, :6] < 1e-5).all() and (moved[:, 6:11] > 1e-4).all()
    assert (moved[0, 11:] < 1e-5).all() and (moved[1, 11:] > 1e-4).all()


def test_a_token_beyond_the_vocabulary_is_never_taken_for_another():
    ids = rows()
    ids[1, 9] = VOCABULARY
    logits = np.asarray(forward(params(), ids))
    assert np.isfinite(logits[0]).all() and np.isnan(logits[1, 9:]).all()
