import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.config import CrossAttentionConfig
from bltjax.generate import state
from bltjax.generate.pieces import by_patch, patch_documents
from bltjax.generate.state import Latent
from tests.generate.models import CASES, EOS

CASE = CASES["released, global"]
BYTES = 12
STARTS = np.array([[1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 1, 0], [0] * BYTES, [1] * BYTES], bool)  # after each byte


def model(pooling):
    config = dataclasses.replace(CASE.config, cross_attention=CrossAttentionConfig(pooling=pooling))
    return Latent(config, CASE.patcher, CASE.entropy, 64, 64)


def rows():
    draw = np.random.default_rng(0)
    ids = draw.integers(4, 260, (len(STARTS), BYTES)).astype(np.int32)
    ids[0, 4] = ids[2, 2] = EOS
    return jnp.asarray(draw.normal(size=(*STARTS.shape, CASE.config.encoder.width)), jnp.float32), jnp.asarray(ids)


def windowed(of, ids):
    return jnp.concatenate([jnp.full((len(ids), of.tail), 4), ids], axis=1)


@pytest.mark.parametrize("pooling", ["max", "mean", "min"])
@pytest.mark.parametrize("cut", [1, 5, 11])
def test_bytes_in_two_parts_are_bytes_in_one(pooling, cut):
    of, (h, ids) = model(pooling), rows()
    before = state.empty(of, len(ids))

    def pieces(kept, begin, end):
        return by_patch(
            of, kept, h[:, begin:end], windowed(of, ids[:, begin:end]), jnp.asarray(STARTS[:, begin:end]),
            jnp.full(len(ids), end - begin),
        )  # fmt: skip

    whole, first = pieces(before, 0, BYTES), pieces(before, 0, cut)
    row = jnp.arange(len(ids))
    between = dataclasses.replace(
        before,
        open_bytes=first.open_bytes,
        open_pool=first.pooled[row, first.ended],
        open_ends=first.has_eos[row, first.ended],
        patches=first.ended,
        patch_document=patch_documents(of, before, first)[1],
    )
    second = pieces(between, cut, BYTES)
    np.testing.assert_array_equal(first.ended + second.ended, whole.ended)
    np.testing.assert_array_equal(second.open_bytes, whole.open_bytes)
    np.testing.assert_array_equal(patch_documents(of, between, second)[1], patch_documents(of, before, whole)[1])
    for number in range(len(ids)):
        done = int(first.ended[number])
        count = int(second.ended[number]) + 1
        np.testing.assert_allclose(
            second.pooled[number, :count], whole.pooled[number, done : done + count], atol=1e-6
        )  # fmt: skip
        np.testing.assert_array_equal(second.has_eos[number, :count], whole.has_eos[number, done : done + count])


def test_only_the_bytes_that_count_are_there():
    of, (h, ids) = model("max"), rows()
    count = jnp.array([5, 0, 12])
    found = by_patch(of, state.empty(of, 3), h, windowed(of, ids), jnp.asarray(STARTS), count)
    assert found.ended.tolist() == [2, 0, 12] and found.open_bytes.tolist() == [1, 0, 0]
    # Of the first row one byte stays in an open patch: the fifth, to be stored at the beginning.
    assert np.flatnonzero(np.asarray(found.places[0]) < of.open_places).tolist() == [4]
    np.testing.assert_array_equal(found.pooled[0, 1], jnp.max(h[0, 1:4], axis=0))
    assert found.has_eos[0].tolist() == [False, False, True] + [False] * (BYTES - 2)
