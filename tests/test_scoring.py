import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax import families
from bltjax.config import EntropyModelConfig, TransformerConfig
from bltjax.data.corpus import Corpus, Documents
from bltjax.data.sources import Document
from bltjax.data.stream import ByteStream, read_entropies
from bltjax.data.write import prepare
from bltjax.patching import next_byte_entropy
from bltjax.scoring import context_of, params_hash, score_corpus, score_documents

MODEL = EntropyModelConfig(TransformerConfig(16, 2, 2, hidden=24, window=9, rope_theta=10_000.0))


@pytest.fixture(scope="module")
def params():
    shapes = families.abstract_params(MODEL)
    leaves, structure = jax.tree.flatten(shapes)
    generator = np.random.default_rng(0)
    values = [jnp.asarray(generator.normal(0, 0.5, leaf.shape), jnp.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, values)


def texts(*lengths: int) -> list[bytes]:
    generator = np.random.default_rng(1)
    return [generator.integers(0, 256, length).astype(np.uint8).tobytes() for length in lengths]


def test_each_position_has_the_entropy_of_the_byte_after_it_in_its_document_alone(params):
    documents = Documents.of(texts(5, 100, 1))
    found = score_documents(MODEL, params, documents, row_bytes=128)
    stream = ByteStream(documents)
    for begin, end in zip(stream.document_starts, stream.document_starts[1:], strict=False):
        ids = stream.ids(int(begin), int(end)).astype(np.int32)[None]
        logits = families.build(MODEL).apply({"params": params}, ids, None)
        expected = np.array(next_byte_entropy(logits))[0]
        expected[-1] = 0  # nothing follows an EOS
        np.testing.assert_allclose(found[begin:end], expected, rtol=2e-3, atol=2e-3)


def test_where_rows_are_cut_makes_no_difference(params):
    documents = Documents.of(texts(300, 47))
    assert context_of(MODEL) == 17
    whole = score_documents(MODEL, params, documents, row_bytes=512)
    for row_bytes, batch in ((40, 8), (33, 16)):
        cut = score_documents(MODEL, params, documents, row_bytes=row_bytes, batch=batch)
        np.testing.assert_allclose(cut.astype(np.float32), whole.astype(np.float32), atol=4e-3)
    with pytest.raises(ValueError, match="16 positions"):
        score_documents(MODEL, params, documents, row_bytes=16)


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    documents = [Document(str(i), text) for i, text in enumerate(texts(*range(20, 60)))]
    return prepare(documents, tmp_path / "corpus", heldout_percent=30)


def test_a_corpus_is_scored_once_for_each_model(corpus, params):
    told = []
    fingerprint = score_corpus(MODEL, params, corpus, show=lambda *progress: told.append(progress))
    for split in ("train", "heldout"):
        stored = read_entropies(corpus, split, fingerprint)
        np.testing.assert_array_equal(stored, score_documents(MODEL, params, corpus.documents(split)))
        total = ByteStream(corpus.documents(split)).length
        assert (split, total - 1, total) in told
    told.clear()
    assert score_corpus(MODEL, params, corpus, show=lambda *progress: told.append(progress)) == fingerprint
    assert told == []


def test_another_model_takes_the_place_of_the_scores(corpus, params):
    first = score_corpus(MODEL, params, corpus)
    other = jax.tree.map(lambda leaf: leaf * 1.1, params)
    second = score_corpus(MODEL, other, corpus)
    assert first["model"] == second["model"]
    read_entropies(corpus, "train", second)
    with pytest.raises(ValueError, match="another model"):
        read_entropies(corpus, "train", first)


def test_the_hash_of_parameters_sees_values_names_and_shapes(params):
    found = params_hash(params)
    assert params_hash(jax.tree.map(np.array, params)) == found
    changed = jax.tree.map(np.array, params)
    changed["norm"]["scale"][0] = np.nextafter(changed["norm"]["scale"][0], np.float32(9))
    assert params_hash(changed) != found
    assert params_hash({"other": params["norm"]}) != params_hash({"norm": params["norm"]})


def test_a_model_without_a_window_is_given_context():
    tower = dataclasses.replace(MODEL.tower, window=None)
    assert context_of(dataclasses.replace(MODEL, tower=tower)) == 8192
