import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax import families
from bltjax.config import EntropyModelConfig, TransformerConfig
from bltjax.data.corpus import Corpus, Documents
from bltjax.data.prepare import prepare_shards
from bltjax.data.slices import Given
from bltjax.data.sources import Document
from bltjax.data.stream import ByteStream, read_entropies
from bltjax.data.write import prepare
from bltjax.patching import next_byte_entropy
from bltjax.scoring import Scorer, context_of, cut_rows, params_hash, score_corpus, score_documents
from bltjax.sharding import make_mesh

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


def test_a_document_among_many_has_the_scores_that_it_has_alone(params):
    # Of every length up to beyond a row, cut in every way, and equal neighbours, which must not help each other.
    documents = Documents.of([*texts(*range(1, 60, 3), 200, 41), *[texts(30)[0]] * 3])
    scorer = Scorer(MODEL, params, row_bytes=256)
    alone = [scorer.score(Documents.of([document.tobytes()])) for document in documents]
    expected = np.concatenate(alone).astype(np.float32)
    for row_bytes, batch in ((256, 8), (64, 8), (40, 16)):
        found = score_documents(MODEL, params, documents, row_bytes=row_bytes, batch=batch).astype(np.float32)
        # A step of float16 at most: the sums of float32 are rounded otherwise at another place of a row.
        assert (np.abs(found - expected) <= np.spacing(expected.astype(np.float16)).astype(np.float32)).all()
    assert np.array_equal(found == 0, np.isin(np.arange(len(found)), ByteStream(documents).document_starts[1:] - 1))


def test_a_model_without_a_mask_scores_documents_alone_too(params):
    documents = Documents.of(texts(20, 30, 25))
    unmasked = dataclasses.replace(MODEL, document_mask=False)
    np.testing.assert_array_equal(
        score_documents(unmasked, params, documents, row_bytes=128),
        score_documents(MODEL, params, documents, row_bytes=128),
    )


@pytest.mark.parametrize(("length", "overlap"), [(10, 0), (10, 4), (33, 32), (1000, 16)])
def test_rows_score_every_position_once_with_its_context_and_waste_little(length: int, overlap: int):
    generator = np.random.default_rng(3)
    starts = np.concatenate([[0], np.cumsum(generator.integers(3, 90, 50))])
    rows = cut_rows(starts, length, overlap)
    assert rows.after[0] == 0 and rows.end[-1] == starts[-1]
    np.testing.assert_array_equal(rows.after[1:], rows.end[:-1])
    assert ((rows.end - rows.begin)[:-1] == length).all(), "every row but the last is full"
    own = starts[np.searchsorted(starts, rows.after, "right") - 1]
    np.testing.assert_array_equal(rows.begin, np.maximum(own, rows.after - overlap))


def test_a_limit_of_context_is_kept_and_is_part_of_the_fingerprint(corpus, params):
    documents = Documents.of(texts(100))
    found = score_documents(MODEL, params, documents, row_bytes=12, max_context=5).astype(np.float32)
    whole = score_documents(MODEL, params, documents, row_bytes=128).astype(np.float32)
    np.testing.assert_allclose(found[:12], whole[:12], atol=4e-3)
    assert np.abs(found - whole).max() > 0.01, "the limit is below what this model sees"
    assert score_corpus(MODEL, params, corpus, max_context=5)["max_context"] == 5
    with pytest.raises(ValueError, match="another model"):
        score_corpus(MODEL, params, corpus)


def test_scoring_goes_on_from_the_last_whole_shard(tmp_path, params, monkeypatch):
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n} " * (n % 30 + 1)}) + "\n" for n in range(120)))
    prepare_shards([Given(str(path), "lines")], tmp_path / "corpus", heldout_percent=20.0, shard_bytes=1500)
    corpus = Corpus.open(tmp_path / "corpus")
    shards = len(corpus.documents("train").pieces)
    assert shards > 3
    score, scored = Scorer.score, []

    def killed_at_the_third(self, documents, show=None):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(len(documents))
        return score(self, documents, show)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Scorer, "score", killed_at_the_third)
        score_corpus(MODEL, params, corpus)

    def counted(self, documents, show=None):
        scored.append(len(documents))
        return score(self, documents, show)

    with monkeypatch.context() as patched:
        patched.setattr(Scorer, "score", counted)
        fingerprint = score_corpus(MODEL, params, corpus)
    assert scored == [len(p.offsets) - 1 for s in ("train", "heldout") for p in corpus.documents(s).pieces]
    for split in ("train", "heldout"):
        stored = np.array(read_entropies(corpus, split, fingerprint), np.float32)
        whole = score_documents(MODEL, params, corpus.documents(split)).astype(np.float32)
        np.testing.assert_allclose(stored, whole, atol=4e-3)
    assert not list(corpus.folder.glob("*.parts"))


def test_the_scores_of_a_source_are_those_of_its_documents(two_sources, params):
    corpus = Corpus.open(two_sources)
    fingerprint = score_corpus(MODEL, params, corpus)
    parts = [read_entropies(corpus, "train", fingerprint, name) for name in ("code", "prose")]
    for part, name in zip(parts, ("code", "prose"), strict=True):
        assert len(part) == ByteStream(corpus.documents("train", name)).length
    np.testing.assert_array_equal(np.concatenate(parts), read_entropies(corpus, "train", fingerprint))


def test_every_mesh_gives_the_same_scores(params):
    documents = Documents.of(texts(*range(5, 60, 5)))
    expected = score_documents(MODEL, params, documents, row_bytes=64).astype(np.float32)
    for devices in (1, 2):
        mesh = make_mesh(devices=jax.devices()[:devices])
        found = Scorer(MODEL, params, row_bytes=64, batch=4, mesh=mesh).score(documents).astype(np.float32)
        np.testing.assert_allclose(found, expected, atol=4e-3)


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
        assert (split, total, total) in told
    told.clear()
    assert score_corpus(MODEL, params, corpus, show=lambda *progress: told.append(progress)) == fingerprint
    assert told == []


def test_another_models_scores_are_replaced_only_when_told(corpus, params):
    first = score_corpus(MODEL, params, corpus)
    other = jax.tree.map(lambda leaf: leaf * 1.1, params)
    with pytest.raises(ValueError, match=r"entropies of another model .*overwrite=True"):
        score_corpus(MODEL, other, corpus)
    read_entropies(corpus, "train", first)
    second = score_corpus(MODEL, other, corpus, overwrite=True)
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
