"""One run from the command line, for every family; whatever is wrong is said before anything is computed."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from bltjax.data.sources import Document
from bltjax.data.write import prepare
from bltjax.metrics import read_journal
from bltjax.provenance import Provenance
from bltjax.trained import load_source

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "train.py"
COMMON = ("--rows.bytes", "64", "--rows.batch", "8", "--steps", "4", "--log-every", "2")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    texts = [f"def f{i}(x):\n    return x + {i * 7919}  # {'abc' * (i % 5)}\n" * (2 + i % 3) for i in range(40)]
    documents = [Document(str(i), text.encode()) for i, text in enumerate(texts)]
    return prepare(documents, tmp_path_factory.mktemp("train") / "corpus", heldout_percent=20).folder


def train(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        # The compile cache of the run must not stay on for the tests that follow.
        patch.setattr("bltjax.runtime.keep_compiled", lambda folder: None)
        patch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")


def result(folder):
    return json.loads((folder / "result.json").read_bytes())


@pytest.fixture(scope="module")
def entropy(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("entropy") / "run"
    train("--preset", "entropy-tiny", "--corpus", corpus, "--out", folder, *COMMON)
    return folder


def test_from_a_corpus_to_a_blt_and_its_score(corpus, entropy, tmp_path, capsys):
    blt = ("--preset", "blt-tiny", "--corpus", corpus, "--out", tmp_path / "run", *COMMON)
    with pytest.raises(SystemExit, match=r"has no entropies yet.*--preset entropy-cpu"):
        train(*blt)
    train(*blt, "--entropy-run", entropy, "--patcher.mean-patch-bytes", "3")
    printed = capsys.readouterr().out
    assert "scoring the corpus" in printed
    made = Provenance.of(tmp_path / "run")
    assert (made.corpus_folder, made.entropy_run) == (corpus, entropy)
    assert load_source(tmp_path / "run").entropy_config is not None, "which nobody had to name"
    scored = result(tmp_path / "run")
    assert scored["sums"]["bytes"] == scored["heldout"]["all_bytes"] > 0
    assert f"{scored['bits_per_byte']:.4f} bits per byte on held-out documents" in printed
    assert 0 < scored["fill"]["patches"] <= 1
    assert re.search(r"where the wall time went\nstart .*\n(.*\n)*evaluation .*\nall .* 100.0%", printed)
    assert [row["step"] for row in read_journal(tmp_path / "run" / "metrics.jsonl")] == [2, 4]

    # The same command again finds all of it done; the scores are now beside the corpus.
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    train(*blt, "--patcher.mean-patch-bytes", "3")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert Provenance.of(tmp_path / "run") == made
    assert result(tmp_path / "run") == scored

    # Scores of another entropy model do not take their place unasked.
    other, stored = tmp_path / "other", (corpus / "train.entropies.f16").read_bytes()
    train("--preset", "entropy-tiny", "--corpus", corpus, "--out", other, *COMMON, "--seed", "1")
    refused = ("--preset", "blt-tiny", "--corpus", corpus, "--out", tmp_path / "x", *COMMON, "--entropy-run")
    with pytest.raises(SystemExit, match="has the entropies of another model"):
        train(*refused, other)
    with pytest.raises(SystemExit, match="is step 4 of 4 of a BLTConfig; name a finished run of an entropy model"):
        train(*refused, tmp_path / "run")
    with pytest.raises(SystemExit, match=r"only a BLT with patcher\.rule='entropy' reads entropies"):
        train(*refused, entropy, "--patcher.rule", "space")
    assert (corpus / "train.entropies.f16").read_bytes() == stored
    assert not (tmp_path / "x").exists()


def test_sources_are_drawn_by_their_weights(two_sources, tmp_path, capsys):
    common = ("--preset", "blt-tiny", "--corpus", two_sources, *COMMON, "--patcher.rule", "space")
    with pytest.raises(SystemExit, match=r"source='web'.*'code', 'prose'"):
        train(*common, "--out", tmp_path / "refused", "--weights", "web", "1")
    train(*common, "--out", tmp_path / "run", "--weights", "code", "3", "prose", "1")
    assert result(tmp_path / "run")["sums"]["bytes"] > 0
    with pytest.raises(SystemExit, match=r"data.*weights"):
        train(*common, "--out", tmp_path / "run", "--weights", "code", "1", "prose", "1")


def test_a_token_model_from_the_configuration_of_another_run(corpus, entropy, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    overrides = ("--model.tower.layers", "2", "--optim.schedule", "wsd")
    train("--preset", "token-tiny", "--corpus", corpus, "--out", first, *COMMON, *overrides)
    train("--config", first / "config.json", "--corpus", corpus, "--out", again)
    configs = [json.loads((folder / "config.json").read_bytes()) for folder in (first, again)]
    assert configs[0] == configs[1]
    assert (configs[0]["model"]["tower"]["layers"], configs[0]["optim"]["schedule"]) == (2, "wsd")
    assert result(first)["bits_per_byte"] == result(again)["bits_per_byte"]
    assert Provenance.of(first).tokenizer_file == corpus / "tokenizer-296.json"
    assert load_source(first).tokenizer is not None, "which nobody had to name"
    assert result(first)["sums"]["bytes"] == result(entropy)["sums"]["bytes"], "all families are scored on one text"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "blt-tny"), r"preset='blt-tny': no such preset; the nearest are: blt-tiny"),
        ((), "give one of --preset .* and --config"),
        (("--preset", "byte-tiny", "--config", "x.json"), "give one of --preset .* and --config"),
        (("--config", "absent.json"), r"No such file.*absent\.json"),
        (("--preset", "byte-tiny", "--steps", "0"), "steps=0: must be at least 1"),
        (("--preset", "byte-tiny", "--optim.warmup-steps", "9"), "optim.warmup_steps"),
        (("--preset", "byte-tiny", "--rows.bytes", "100000"), "less than one row of rows.bytes=100000"),
        (("--preset", "byte-tiny", "--rows.batch", "6"), r"rows.batch=6: must be a multiple of .* = 8"),
        (("--preset", "byte-tiny", "--track", "tensorbored"), "choose from tensorboard, wandb"),
    ],
)
def test_misuse_is_one_clear_error(corpus, tmp_path, arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        train(*COMMON, *arguments, "--corpus", corpus, "--out", tmp_path / "run")
    assert re.search(message, f"{caught.value}{capsys.readouterr().err}")
    assert not list((tmp_path / "run").glob("**/checkpoints/*"))


def test_an_unknown_flag_lists_the_nearest(corpus, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train("--preset", "byte-tiny", "--corpus", corpus, "--out", tmp_path / "run", "--stepz", "3")
    assert "--steps INT" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train("--preset", "byte-tiny", "--corpus", corpus, "--out", tmp_path / "run", "--model.tower.layrs", "3")
    assert "--model.tower.layers INT" in capsys.readouterr().err


def test_an_unknown_key_of_a_file_lists_the_nearest(corpus, tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model": {"family": "byte", "tower": {"width": 8, "layers": 1, "heds": 1}}, "steps": 1}')
    with pytest.raises(SystemExit, match=r"heds is not a known key of TransformerConfig; the nearest are: heads"):
        train("--config", path, "--corpus", corpus, "--out", tmp_path / "run")
    path.write_text("{")
    with pytest.raises(SystemExit, match=r"config.json: is not JSON"):
        train("--config", path, "--corpus", corpus, "--out", tmp_path / "run")


def test_a_corpus_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="holds no corpus"):
        train("--preset", "byte-tiny", "--corpus", tmp_path, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_help_needs_no_preset(capsys):
    with pytest.raises(SystemExit) as caught:
        train("--help")
    assert caught.value.code == 0
    assert "--optim.peak-rate" in capsys.readouterr().out


def test_a_change_is_refused_unless_it_is_allowed_by_name(corpus, tmp_path):
    run = ("--preset", "byte-tiny", "--corpus", corpus, "--out", tmp_path / "run", *COMMON)
    train(*run)
    with pytest.raises(SystemExit, match=r"(?s)optim/beta1: 0.9 before, 0.5 now.*--allow-change"):
        train(*run, "--optim.beta1", "0.5")
    with pytest.raises(SystemExit, match=r"is not a key of this configuration"):
        train(*run, "--allow-change", "betta")
    train(*run, "--optim.beta1", "0.5", "--allow-change", "optim.beta1")
    train("--config", tmp_path / "run" / "config.json", "--corpus", corpus, "--out", tmp_path / "run")


def test_a_corpus_that_has_changed_since_the_start_is_named(corpus, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    run = ("--preset", "byte-tiny", "--corpus", copy, "--out", tmp_path / "run", *COMMON)
    train(*run)
    before = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    data = bytearray((copy / "train.bytes").read_bytes())
    data[100] ^= 1
    (copy / "train.bytes").write_bytes(data)
    with pytest.raises(SystemExit, match=r"train\.bytes has SHA-256 .*, the manifest says"):
        train(*run)
    (copy / "train.bytes").unlink()
    with pytest.raises(SystemExit, match=r"train\.bytes is missing"):
        train(*run)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == before
