"""Sources from folders: a study's parts are found and known by their fingerprints, others are named."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from bltjax.config import PatcherConfig, config_hash
from bltjax.data.corpus import Documents
from bltjax.data.sources import Document
from bltjax.data.tokenizer import train
from bltjax.data.write import prepare
from bltjax.interop.huggingface import save_pretrained
from bltjax.interop.huggingface_config import Pretrained
from bltjax.presets import preset
from bltjax.provenance import Provenance
from bltjax.scoring import params_hash
from bltjax.trained import load_source, own_corpus, row_bytes
from tests.studies import PATCHER, write_run, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, *write_study(folder)


def test_a_study_has_the_entropy_model_of_its_runs(study):
    folder, params, _ = study
    source = load_source(folder / "runs" / "blt")
    jax.tree.map(np.testing.assert_array_equal, source.entropy_params, params)
    assert source.patcher == PATCHER
    with pytest.raises(ValueError, match=r"entropies of the model .*0000'}, which .*entropy-a, .*entropy-b is not"):
        load_source(folder / "runs" / "other")
    with pytest.raises(ValueError, match=r"which .*entropy-a is not: name the run"):
        load_source(folder / "runs" / "blt", entropy_run=folder / "entropy-a")


def test_a_run_of_its_own_is_told_its_entropy_model(study, tmp_path):
    folder, params, _ = study
    write_run(tmp_path / "run", "blt-tiny")
    with pytest.raises(FileNotFoundError, match="does not name: give that model's run"):
        load_source(tmp_path / "run")
    with pytest.raises(ValueError, match=r"entropy_run=.*holds a BLTConfig, not an entropy model"):
        load_source(tmp_path / "run", entropy_run=tmp_path / "run")
    source = load_source(tmp_path / "run", entropy_run=folder / "entropy-b")
    jax.tree.map(np.testing.assert_array_equal, source.entropy_params, params)
    spaced = load_source(tmp_path / "run", patcher=PatcherConfig(rule="space"))
    assert spaced.patcher is not None and spaced.patcher.rule == "space" and spaced.entropy_params is None


def test_flat_runs_need_nothing_and_refuse_what_is_not_theirs(study):
    folder = study[0]
    assert load_source(folder / "entropy-a").patcher is None
    with pytest.raises(ValueError, match="holds no model that is patched by entropy"):
        load_source(folder / "entropy-a", entropy_run=folder / "entropy-b")
    with pytest.raises(ValueError, match="which reads bytes"):
        load_source(folder / "entropy-a", tokenizer=folder / "corpus-c" / "tokenizer-260.json")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_source(folder / "corpus-c")


def test_a_token_model_has_its_tokenizer(study):
    folder, _, tokenizer = study
    model = dataclasses.replace(preset("token-tiny"), vocabulary_size=264)
    write_run(folder / "runs" / "token", model, inputs={"tokenizer": tokenizer.fingerprint})
    source = load_source(folder / "runs" / "token")
    assert source.text_of(source.ids_of(b"the theory \xff")) == b"the theory \xff"
    (folder / "runs" / "token" / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"does not name its tokenizer: give the tokenizer-260\.json"):
        load_source(folder / "runs" / "token")
    named = load_source(folder / "runs" / "token", tokenizer=folder / "corpus-c" / "tokenizer-260.json")
    assert named.tokenizer is not None


def test_a_checkpoint_of_transformers(study, tmp_path):
    folder, params, _ = study
    run = load_source(folder / "runs" / "blt")
    config, entropy = (dataclasses.replace(c, document_mask=False) for c in (run.config, run.entropy_config))
    pretrained = Pretrained(config, run.params, entropy, params, 1.25)
    save_pretrained(tmp_path / "checkpoint", pretrained)
    source = load_source(tmp_path / "checkpoint")
    assert source.patcher == PatcherConfig(threshold=1.25)
    with pytest.raises(ValueError, match="is a Hugging Face checkpoint, which has its own"):
        load_source(tmp_path / "checkpoint", entropy_run=folder / "entropy-b")


def test_a_run_of_its_own_names_its_entropy_model(study, tmp_path):
    folder, params, _ = study
    shutil.copytree(folder / "entropy-b", tmp_path / "runs" / "entropy")
    shutil.copytree(folder / "runs" / "blt" / "checkpoints", tmp_path / "runs" / "blt" / "checkpoints")
    run = tmp_path / "runs" / "blt"
    shutil.copy(folder / "runs" / "blt" / "config.json", run)
    entropies = {"model": config_hash(preset("entropy-tiny")), "params": params_hash(params)}
    Provenance(entropies=entropies, entropy_run=tmp_path / "runs" / "entropy").write(run)
    jax.tree.map(np.testing.assert_array_equal, load_source(run).entropy_params, params)
    with pytest.raises(ValueError, match=r"which .*entropy-a is not: name the run of that model \(entropy_run\)"):
        load_source(run, entropy_run=folder / "entropy-a")
    shutil.move(tmp_path / "runs" / "entropy", tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"entropy.config\.json, which is no longer there: say .*entropy_run"):
        load_source(run)
    assert load_source(run, entropy_run=tmp_path / "moved").entropy_params is not None
    shutil.copytree(folder / "entropy-a", tmp_path / "runs" / "entropy")
    with pytest.raises(ValueError, match=r"which .*runs.entropy is not: name the run of that model"):
        load_source(run)


def test_a_run_of_its_own_names_its_tokenizer(study, tmp_path):
    folder, _, tokenizer = study
    model = dataclasses.replace(preset("token-tiny"), vocabulary_size=264)
    write_run(tmp_path / "run", model)
    file = tmp_path / "tokenizer.json"
    shutil.copy(folder / "corpus-c" / "tokenizer-260.json", file)
    Provenance(tokenizer=tokenizer.fingerprint, tokenizer_file=file).write(tmp_path / "run")
    assert load_source(tmp_path / "run").tokenizer is not None
    train(Documents.of([b"quite another text of other words " * 30]), 260, file)
    with pytest.raises(ValueError, match=rf"trained with the tokenizer {tokenizer.fingerprint}, which .* is not"):
        load_source(tmp_path / "run")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no longer there: say where it is now \(tokenizer\)"):
        load_source(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"absent\.json is not there"):
        load_source(tmp_path / "run", tokenizer=tmp_path / "absent.json")


def test_a_run_is_scored_on_its_own_corpus(tmp_path):
    texts = [Document(str(i), b"text number %d " % i * 9) for i in range(30)]
    corpus = prepare(texts, tmp_path / "study" / "corpus-a", heldout_percent=20)
    prepare(texts[:20], tmp_path / "study" / "corpus-b", heldout_percent=20)
    for run in (tmp_path / "study" / "runs" / "one", tmp_path / "study" / "entropy-a"):
        run.mkdir(parents=True)
        (run / "manifest.json").write_text(json.dumps({"inputs": {"corpus": corpus.fingerprint}}))
        assert own_corpus(run).folder == corpus.folder
    own = tmp_path / "study" / "own"
    own.mkdir()
    with pytest.raises(FileNotFoundError, match=r"does not name its corpus: name the one .* or files"):
        own_corpus(own)
    Provenance(corpus.fingerprint, tmp_path / "study" / "corpus-b").write(own)
    with pytest.raises(ValueError, match=rf"was trained on the corpus {corpus.fingerprint}, which .*corpus-b.* is not"):
        own_corpus(own)
    Provenance(corpus.fingerprint, tmp_path / "absent").write(own)
    with pytest.raises(FileNotFoundError, match=r"absent.manifest\.json, which is no longer there"):
        own_corpus(own)


def test_the_length_of_rows_is_that_of_training(study, tmp_path):
    assert row_bytes(study[0] / "runs" / "blt") == 64
    for encoder, expected in (({}, None), ({"max_position_embeddings": 24576}, 24576)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "blt", "encoder_config": encoder}))
        assert row_bytes(tmp_path) == expected
    with pytest.raises(FileNotFoundError, match="holds no run"):
        row_bytes(tmp_path / "absent")
