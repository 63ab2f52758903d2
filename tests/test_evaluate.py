"""Scores are exact sums, the same for every batch size and mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax import families, vocabulary
from bltjax.config import ByteTransformerConfig, MeshConfig, RowsConfig, TransformerConfig
from bltjax.data.corpus import Documents
from bltjax.data.pipeline import heldout_batches
from bltjax.data.views import ByteSource
from bltjax.evaluate import Reader, Score, evaluate, evaluate_documents
from bltjax.patching import Patches, next_byte_entropy, space_starts, starts_of
from bltjax.sharding import make_mesh
from tests.programs import compilations, quick_jit
from tests.studies import WORDS, random_source

MODEL = ByteTransformerConfig(TransformerConfig(width=16, layers=1, heads=2, hidden=24))
TEXTS = [b"the quick brown fox %d jumps over the lazy dog " % i * (1 + i % 5) for i in range(40)]
ONE = make_mesh(devices=jax.devices()[:1])


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


LONG = WORDS * 2 + b"and \xff\x00 " + WORDS  # several windows of every context below
SHORT = b"they think"


@pytest.fixture(scope="module", params=["byte", "space", pytest.param("entropy", marks=pytest.mark.slow), "token"])
def trained(request, tmp_path_factory):
    return random_source(request.param, tmp_path_factory.mktemp("source"))


def batches_of(trained, texts, context, stride):
    batches = heldout_batches(Reader(trained, mesh=ONE)(Documents.of(texts), context), context, stride, batch=4)
    batches.slots = context  # room for any patches, so that one program serves all tests of a family
    return batches


def scores(trained, texts, context, stride):
    batches = batches_of(trained, texts, context, stride)
    return evaluate_documents(trained.config, trained.params, batches, mesh=ONE)


def test_documents_are_scored_apart_and_together_alike(trained):
    texts = [LONG, SHORT, LONG[7:100], b"\x80"]
    found = scores(trained, texts, 32, 12)
    assert [one.bytes for one in found] == [len(text) for text in texts]
    assert [one.specials for one in found] == [1] * len(texts)
    total = evaluate(trained.config, trained.params, batches_of(trained, texts, 32, 12), mesh=ONE)
    assert (Score.total(found).bytes, Score.total(found).specials) == (total.bytes, total.specials)
    assert Score.total(found).byte_nats == pytest.approx(total.byte_nats, rel=1e-12)
    assert Score.total(found).special_nats == pytest.approx(total.special_nats, rel=1e-12)
    again = scores(trained, texts[:0:-1], 32, 12)
    for one, other in zip(found[1:], again[::-1], strict=True):
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), rel=1e-6), "as if each were alone"


def test_a_document_shorter_than_the_context_depends_on_neither_context_nor_stride(trained):
    contexts = (32,) if trained.patcher is not None else (32, 20)  # another length of row is another program
    windows = [(context, stride) for context in contexts for stride in (20, 12)]
    found = [scores(trained, [SHORT], *each)[0] for each in windows]
    for one in found:
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(found[0]), rel=1e-6)


@pytest.mark.parametrize(("context", "stride"), [(32, 32), (32, 12), (48, 7)])
def test_every_byte_sees_what_its_window_promises(trained, context, stride):
    texts = [LONG, SHORT, LONG[7:100]]
    sizes = trained.id_bytes()
    slack = sizes.max() - 1  # of a token that is not whole in a window, nothing is seen
    before = np.zeros(len(texts), int)
    batches = batches_of(trained, texts, context, stride)
    for documents, batch in zip(batches.row_documents, batches, strict=True):
        for document, ids, targets in zip(documents, batch.ids, batch.targets, strict=True):
            for place in np.flatnonzero(targets >= 0):
                seen = sizes[ids[: place + 1]].sum()
                assert min(before[document], context - stride - slack) <= seen <= min(before[document], context)
                before[document] += sizes[targets[place]]
    assert before.tolist() == [len(text) for text in texts], "each byte once, and in order"


@pytest.mark.parametrize("family", ["byte", "space"])
def test_windows_end_at_the_context_and_then_every_stride(family):
    # Written out with one forward pass a window; of stride 32 each byte of 32 sees those of its own window alone.
    trained = random_source(family, None)
    context, text = 32, LONG[: 32 * 4 - 1]
    ids = vocabulary.encode(text, eos=True)
    starts = np.asarray(space_starts(ids[None]))[0]

    @quick_jit
    def logits(params, ids, starts):
        patches = Patches.from_starts(starts, context) if family == "space" else None
        return families.build(trained.config).apply({"params": params}, ids, patches)

    for stride in (32, 7, 1):
        nats, end, reach = 0.0, 0, context
        while end < len(ids) - 1:
            after, end = end, min(reach, len(ids) - 1)
            begin = max(0, end - context)
            window = np.r_[True, True, starts[begin + 2 : end + 1]]
            found = np.asarray(logits(trained.params, ids[None, begin:end], window[None])[0], np.float64)
            for target in range(after + 1, end + 1):
                row = found[target - 1 - begin]
                if ids[target] != vocabulary.EOS:
                    nats += np.log(np.exp(row).sum()) - row[ids[target]]
            reach += stride
        (one,) = scores(trained, [text], context, stride)
        assert one.byte_nats == pytest.approx(nats, rel=1e-5)


def test_patches_are_those_that_the_model_would_cut_live(tmp_path):
    trained = random_source("entropy", tmp_path)
    stream = Reader(trained, mesh=ONE)(Documents.of([WORDS * 4, SHORT]), 32)
    ids = vocabulary.encode(WORDS * 4, eos=True)[None]
    assert trained.entropy_config is not None and trained.patcher is not None
    apply = quick_jit(families.build(trained.entropy_config).apply)
    entropies = next_byte_entropy(apply({"params": trained.entropy_params}, ids))
    np.testing.assert_array_equal(stream.stream_starts[: ids.size], starts_of(trained.patcher, ids, entropies)[0, :-1])
    assert 0.1 < stream.stream_starts[: ids.size].mean() < 0.5


def test_one_shape_is_compiled_once():
    trained = random_source("byte", None)
    read = Reader(trained, mesh=ONE)

    def once(texts):
        batches = heldout_batches(read(Documents.of(texts), 32), 32, 16, 4)
        assert len(batches) > 2
        return evaluate_documents(trained.config, trained.params, batches, mesh=ONE)

    once([LONG] * 2)
    with compilations() as seen:
        once([LONG[3:]] * 3)
    assert not seen
