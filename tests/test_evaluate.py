"""Scores are exact sums, the same for every batch size and mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax import families
from bltjax.config import ByteTransformerConfig, MeshConfig, RowsConfig, TransformerConfig
from bltjax.data.corpus import Documents
from bltjax.data.pipeline import heldout_batches
from bltjax.data.views import ByteSource
from bltjax.evaluate import Score, evaluate
from bltjax.sharding import make_mesh

MODEL = ByteTransformerConfig(TransformerConfig(width=16, layers=1, heads=2, hidden=24))
TEXTS = [b"the quick brown fox %d jumps over the lazy dog " % i * (1 + i % 5) for i in range(40)]


def source():
    return ByteSource(Documents.of(list(TEXTS)), RowsConfig(bytes=32, batch=4))


@pytest.fixture(scope="module")
def params():
    """Random ones of a size at which every part matters."""
    rng = np.random.default_rng(0)
    shapes = families.abstract_params(MODEL)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(scale=0.5, size=s.shape), s.dtype), shapes)


def test_a_score_is_that_of_float64(params):
    batches = heldout_batches(source(), 32, 16, 4)
    score = evaluate(MODEL, params, batches)
    apply = jax.jit(lambda ids: families.build(MODEL).apply({"params": params}, ids, None))
    nats = np.zeros(2)
    for batch in batches:
        logits = np.asarray(apply(batch.ids), np.float64)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        each = -np.take_along_axis(logs, np.maximum(batch.targets, 0).astype(int)[..., None], -1)[..., 0]
        nats += [each[batch.target_bytes > 0].sum(), each[batch.targets == 2].sum()]
    assert score.bytes == sum(map(len, TEXTS))
    assert score.specials == len(TEXTS), "each document's EOS; its BOS is given"
    assert score.byte_nats == pytest.approx(nats[0], rel=1e-6)
    assert score.special_nats == pytest.approx(nats[1], rel=1e-6)
    assert score.bits_per_byte == pytest.approx(score.byte_nats / np.log(2) / score.bytes, rel=1e-12)


def test_a_score_does_not_depend_on_batches_or_devices(params):
    one = evaluate(MODEL, params, heldout_batches(source(), 32, 16, 4))
    mesh = make_mesh(MeshConfig(data=4, model=2))
    two = evaluate(MODEL, params, heldout_batches(source(), 32, 16, 8), mesh=mesh)
    assert (one.bytes, one.specials) == (two.bytes, two.specials)
    assert two.byte_nats == pytest.approx(one.byte_nats, rel=1e-6)


def test_nothing_scored_has_no_bits_per_byte():
    with pytest.raises(ValueError, match="nothing was scored"):
        _ = Score().bits_per_byte
