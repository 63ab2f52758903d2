"""One command scores every family: exactly as training does, by document and by source."""

import csv
import dataclasses
import json
import math
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from bltjax.config import PatcherConfig, TrainConfig, config_hash
from bltjax.data.corpus import Corpus
from bltjax.data.pipeline import heldout_batches
from bltjax.data.tokenizer import train
from bltjax.evaluate import Score, evaluate
from bltjax.interop.huggingface import save_pretrained
from bltjax.interop.huggingface_config import Pretrained
from bltjax.presets import preset
from bltjax.provenance import Provenance
from bltjax.scoring import score_corpus
from bltjax.sharding import make_mesh
from bltjax.trained import load_source
from scripts import evaluate as script
from scripts.train import Inputs
from tests.studies import PATCHER, write_run

SCRIPT = Path(script.__file__)
TOKENS = 296  # of the preset token-tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of every family on a corpus of two sources, each with its provenance."""
    top = tmp_path_factory.mktemp("evaluate")
    corpus = two_sources_in(top)
    entropy = top / "runs" / "entropy"
    params = write_run(entropy, "entropy-tiny")
    fingerprint = score_corpus(preset("entropy-tiny"), params, corpus, mesh=make_mesh())
    tokenizer = train(corpus.documents("train"), TOKENS, corpus.folder / f"tokenizer-{TOKENS}.json")
    file = corpus.folder / f"tokenizer-{TOKENS}.json"
    made = {
        "entropy": Provenance(),
        "blt": Provenance(entropies=fingerprint, entropy_run=entropy),
        "byte": Provenance(),
        "token": Provenance(tokenizer=tokenizer.fingerprint, tokenizer_file=file),
    }
    for name, own in made.items():
        if name != "entropy":
            write_run(top / "runs" / name, f"{name}-tiny")
        dataclasses.replace(own, corpus=corpus.fingerprint, corpus_folder=corpus.folder).write(top / "runs" / name)
    return top / "runs"


def two_sources_in(top):
    from bltjax.data.prepare import prepare_shards
    from bltjax.data.slices import Given

    for name in ("code", "prose"):
        texts = (f"{name} number {n} of the theory that they think of; " * (n % 9 + 1) for n in range(60))
        (top / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = [Given(str(top / f"{name}.jsonl"), name) for name in ("code", "prose")]
    prepare_shards(given, top / "corpus", heldout_percent=20.0, shard_bytes=4000)
    return Corpus.open(top / "corpus")


def run(capsys, monkeypatch, *arguments):
    """What the script prints."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return capsys.readouterr().out


def scored(capsys, monkeypatch, folder, *arguments):
    """What the script writes about all that it scores."""
    run(capsys, monkeypatch, *arguments, "--json", folder / "scores.json", "--csv", folder / "scores.csv")
    return json.loads((folder / "scores.json").read_bytes())


SLOW = [pytest.param(family, marks=pytest.mark.thorough) for family in ("megabyte", "spacebyte")]


@pytest.mark.parametrize("family", ["blt", "byte", "token", "entropy", *SLOW])
def test_a_run_is_scored_as_training_scores_it(runs, family, tmp_path, capsys, monkeypatch):
    if not (runs / family).exists():
        write_run(runs / family, f"{family}-tiny")
        reads = preset(f"{family}-tiny").reads_patches
        Provenance.of(runs / ("blt" if reads else "byte")).write(runs / family)
    found = scored(capsys, monkeypatch, tmp_path, runs / family)
    # As scripts/train.py does at the end of a run.
    source, made = load_source(runs / family), Provenance.of(runs / family)
    assert made.corpus_folder is not None
    config = TrainConfig(source.config, steps=3, patcher=PATCHER if source.config.reads_patches else None)
    inputs = Inputs(Corpus.open(made.corpus_folder), config, made.entropy_run)
    expected = evaluate(source.config, source.params, heldout_batches(inputs.heldout(), 64, 32, 8), mesh=make_mesh())
    total = Score(**found["sums"])
    assert (total.bytes, total.specials) == (expected.bytes, expected.specials)
    assert total.byte_nats == pytest.approx(expected.byte_nats, rel=1e-12)
    assert total.special_nats == pytest.approx(expected.special_nats, rel=1e-12)
    assert found["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-12)
    assert found["model"]["config"] == config_hash(source.config)


def test_documents_and_sources_add_up_to_the_whole(runs, tmp_path, capsys, monkeypatch):
    found = scored(capsys, monkeypatch, tmp_path, runs / "byte", "--stride-bytes", 16)
    corpus = Corpus.open(runs.parent / "corpus")
    held_out = corpus.documents("heldout")
    assert [one["name"] for one in found["documents"]] == held_out.names
    assert [one["bytes"] for one in found["documents"]] == held_out.lengths.tolist()
    for source in ("code", "prose"):
        own = [one for one in found["documents"] if one["source"] == source]
        assert sum(one["bytes"] for one in own) == corpus.documents("heldout", source).total_bytes
        assert found["sources"][source]["byte_nats"] == pytest.approx(sum(one["byte_nats"] for one in own), rel=1e-12)
    total = sum(one["byte_nats"] for one in found["sources"].values())
    assert found["sums"]["byte_nats"] == pytest.approx(total, rel=1e-12)
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in one.items()} for one in found["documents"]] == rows
    assert found["windows"]["stride_bytes"] == 16 and found["text"]["fingerprint"] == corpus.fingerprint


def test_documents_are_summed_up_by_their_script(runs, tmp_path, capsys, monkeypatch):
    texts = {"a.txt": "plain words", "b.txt": "ещё несколько слов", "c.txt": "more plain words", "d.txt": "1 + 1"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    found = scored(capsys, monkeypatch, tmp_path, runs / "byte", "--files", f"all={tmp_path}/?.txt")
    assert [one["script"] for one in found["documents"]] == ["Latin", "Cyrillic", "Latin", "no letters"]
    sizes = {name: sums["bytes"] for name, sums in found["scripts"].items()}
    assert sizes == {"Latin": 27, "Cyrillic": len(texts["b.txt"].encode()), "no letters": 5}
    assert math.fsum(sums["byte_nats"] for sums in found["scripts"].values()) == pytest.approx(
        found["sums"]["byte_nats"], rel=1e-12
    )
    printed = run(capsys, monkeypatch, runs / "byte", "--files", f"all={tmp_path}/?.txt")
    for words in ("\nin Latin ", "\nin Cyrillic ", "\nno letters "):
        assert words in printed


def test_the_table_has_a_row_for_each_source_and_each_document_that_is_wanted(runs, capsys, monkeypatch):
    printed = run(capsys, monkeypatch, runs / "byte")
    names = [line.split()[0] for line in printed.splitlines()]
    assert names == ["documents", "code", "prose", "all", "median:", "windows"]
    assert "windows of 64 positions, 32 apart: each byte once, after 32 or more" in printed
    printed = run(capsys, monkeypatch, runs / "byte", "--documents", "--max-bytes", 200)
    _, *documents, total, _, _ = [line.split() for line in printed.splitlines()]
    assert sum(int(line[-4]) for line in documents if ".jsonl" in line[0]) <= 200
    assert len(documents) >= 2 and total[0] in ("all", "code", "prose")


@pytest.mark.slow
def test_given_files_and_what_a_corpus_lacks_are_scored_alike(runs, tmp_path, capsys, monkeypatch):
    by_corpus = scored(capsys, monkeypatch, tmp_path, runs / "blt")
    # The same documents as files: their entropies are made, where those of the corpus were stored.
    held_out = Corpus.open(runs.parent / "corpus").documents("heldout")
    for number, document in enumerate(held_out):
        (tmp_path / f"{number:03}.txt").write_bytes(document.tobytes())
    by_files = scored(capsys, monkeypatch, tmp_path, runs / "blt", "--files", f"held={tmp_path}/*.txt")
    assert by_files["sums"]["byte_nats"] == pytest.approx(by_corpus["sums"]["byte_nats"], rel=1e-9)
    assert list(by_files["sources"]) == ["held"]
    bare = tmp_path / "bare"
    shutil.copytree(runs.parent / "corpus", bare, ignore=shutil.ignore_patterns("*.entropies.*"))
    by_copy = scored(capsys, monkeypatch, tmp_path, runs / "blt", "--corpus", bare)
    assert by_copy["sums"] == pytest.approx(by_corpus["sums"], rel=1e-9)


@pytest.mark.slow
def test_a_checkpoint_of_transformers(runs, tmp_path, capsys, monkeypatch):
    trained = load_source(runs / "blt")
    text = tmp_path / "text.txt"
    text.write_text("the theory of the thing")
    by_run = scored(capsys, monkeypatch, tmp_path, runs / "blt", "--files", text)
    assert trained.patcher is not None and isinstance(trained.patcher, PatcherConfig)
    pretrained = Pretrained(
        trained.config, trained.params, trained.entropy_config, trained.entropy_params, trained.patcher.threshold
    )
    save_pretrained(tmp_path / "checkpoint", pretrained, one_document_rows=True)
    with pytest.raises(SystemExit, match="does not name its corpus"):
        run(capsys, monkeypatch, tmp_path / "checkpoint")
    found = scored(
        capsys, monkeypatch, tmp_path, tmp_path / "checkpoint", "--files", text, "--context-bytes", 64
    )  # fmt: skip
    assert found["bits_per_byte"] == pytest.approx(by_run["bits_per_byte"], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{runs}/absent",), r"absent holds no run"),
        (("{runs}/byte", "--context-bytes", "65"), r"context_bytes=65: .*byte was trained on rows of 64, not longer"),
        (("{runs}/byte", "--context-bytes", "1"), r"context_bytes=1: must be at least 2"),
        (("{runs}/byte", "--stride-bytes", "0"), r"stride_bytes=0: must lie in 1 \.\. context_bytes, 64"),
        (("{runs}/byte", "--stride-bytes", "65"), r"stride_bytes=65: must lie in 1 \.\. context_bytes, 64"),
        (("{runs}/byte", "--batch", "0"), r"batch=0: must be at least 1"),
        (("{runs}/byte", "--files", "{empty}"), r"empty\.txt is empty: there is no byte to score"),
        (("{runs}/byte", "--files", "absent.txt"), r"absent\.txt does not exist"),
        (("{runs}/byte", "--files", "a.txt", "--corpus", "b"), r"corpus=b, files=.*: give one of them"),
        (("{runs}/byte", "--corpus", "{runs}"), r"holds no corpus"),
        (("{runs}/byte", "--max-bytes", "1"), r"max_bytes=1: the shortest of \d+ documents has"),
        (("{runs}/byte", "--json", "{runs}"), r"json=.*: name a file in a folder that exists"),
        (("{runs}/byte", "--limit", "3"), r"limit=3: needs tasks"),
        (("{runs}/byte", "--tasks", "a", "--csv", "b.csv"), r"csv=b\.csv: is of no use with tasks"),
        (("{runs}/byte", "--entropy-run", "{runs}/entropy"), r"holds no model that is patched by entropy"),
        (("{runs}/blt", "--entropy-run", "{runs}/byte"), r"holds a ByteTransformerConfig, not an entropy model"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, runs, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty.txt").write_bytes(b"")
    places = {"{runs}": str(runs), "{empty}": str(tmp_path / "empty.txt")}
    arguments = [re.sub(r"\{\w+\}", lambda name: places[name[0]], argument) for argument in arguments]
    with pytest.raises(SystemExit) as caught:
        run(capsys, monkeypatch, *arguments)
    assert re.search(message, str(caught.value)) and "\n" not in str(caught.value)
