"""Sources from folders: a study's parts are found and known by their fingerprints, others are named."""

import dataclasses

import jax
import numpy as np
import pytest

from bltjax.config import PatcherConfig
from bltjax.interop.huggingface import save_pretrained
from bltjax.interop.huggingface_config import Pretrained
from bltjax.presets import preset
from bltjax.trained import load_source
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
