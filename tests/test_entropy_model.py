import functools

import jax
import numpy as np

from bltjax.config import EntropyModelConfig, TransformerConfig
from bltjax.entropy_model import EntropyModel
from bltjax.families import abstract_params
from tests import dense
from tests.programs import quick_jit

LAYERS, WINDOW, BYTES = 2, 4, 20
CONFIG = EntropyModelConfig(TransformerConfig(16, LAYERS, 2, hidden=24, window=WINDOW, rope_theta=10_000.0))
forward = quick_jit(lambda params, ids: EntropyModel(CONFIG).apply({"params": params}, ids))
params = functools.cache(lambda: dense.random_params(abstract_params(CONFIG), seed=0))


def rows():
    ids = np.random.default_rng(1).integers(4, 260, (3, BYTES), dtype=np.int32)
    ids[1, 9] = dense.EOS
    return ids


def test_logits_are_those_of_dense_masks_in_float64():
    want = dense.language_model(params(), CONFIG, rows())
    np.testing.assert_allclose(forward(params(), rows()), want, atol=1e-5 * np.abs(want).max())


def test_a_byte_reaches_as_far_as_the_windows_of_all_layers():
    ids = rows()
    ids[1] = ids[2] = ids[0]
    ids[1, 3], ids[2, 3] = 77, 78
    logits = np.asarray(forward(params(), ids))
    moved = np.abs(logits[1] - logits[2]).max(axis=-1)
    last = 3 + LAYERS * (WINDOW - 1)
    assert (moved[:3] == 0).all() and (moved[3 : last + 1] > 1e-4).all() and (moved[last + 1 :] < 1e-5).all()


def test_a_document_does_not_see_the_one_before():
    ids = rows()
    changed = ids.copy()
    changed[:, 8] = 77
    moved = np.abs(np.asarray(forward(params(), changed) - forward(params(), ids))).max(axis=-1)
    assert (moved[0, 10:12] > 1e-4).all()
    assert moved[1, 9] > 1e-4 and (moved[1, 10:] < 1e-5).all()  # byte 9 is the EOS of row 1


def test_the_defaults_are_the_released_model():
    tower = EntropyModelConfig().tower
    assert (tower.width, tower.layers, tower.heads, tower.hidden_width) == (768, 14, 12, 2048)
    assert (tower.window, tower.rope_theta, tower.norm_epsilon) == (512, 10_000.0, 1e-5)
    assert abstract_params(EntropyModelConfig())["output"]["kernel"] == jax.ShapeDtypeStruct((768, 260), "float32")
