import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bltjax.config import PatcherConfig
from bltjax.data.sources import Document
from bltjax.data.stream import ByteStream, write_entropies
from bltjax.data.write import prepare
from scripts import patch_stats
from scripts.patch_stats import Arguments

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {"a.txt": b"one two three, four\n" * 40, "b.bin": b"\x00\xff\xfe <b>" * 30, "c.txt": b"x"}


@pytest.fixture
def folder(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, text in TEXTS.items():
        (texts / name).write_bytes(text)
    (texts / "empty.txt").write_bytes(b"")
    return texts


@pytest.fixture
def corpus(tmp_path):
    corpus = prepare([Document(name, text) for name, text in TEXTS.items()], tmp_path / "corpus", 0)
    stream = ByteStream(corpus.documents("train"))
    entropies = np.random.default_rng(0).gamma(0.6, 1.5, stream.length).astype(np.float16)
    write_entropies(corpus, "train", entropies, {"model": "random numbers"})
    return corpus


def test_files_under_a_rule_without_a_model(folder, tmp_path, capsys):
    out = tmp_path / "out.json"
    patch_stats.main(Arguments((str(folder),), PatcherConfig(rule="strided", size=4), json=out))
    report = json.loads(out.read_text())
    assert report["bytes"] == sum(map(len, TEXTS.values()))
    assert report["patcher"]["size"] == 4
    assert {Path(each["name"]).name: each["bytes"] for each in report["by_document"]} == {
        name: len(text) for name, text in TEXTS.items()
    }
    assert sum(each["patches"] for each in report["by_document"]) == report["patches"]
    shown = capsys.readouterr().out
    assert "a.txt" in shown
    assert f"{report['bytes'] / report['patches']:.4f} bytes per patch" in shown


def test_a_scored_corpus_is_calibrated(corpus, tmp_path, capsys):
    out = tmp_path / "out.json"
    patcher = PatcherConfig(mean_patch_bytes=3.5)
    patch_stats.main(Arguments((), patcher, corpus=corpus.folder, json=out))
    report = json.loads(out.read_text())
    assert report["bytes"] / report["patches"] == pytest.approx(3.5, rel=0.01)
    assert f"threshold {report['patcher']['threshold']!r} nats" in capsys.readouterr().out


def test_the_page_shows_the_chosen_document(corpus, folder, tmp_path):
    view = tmp_path / "view.html"
    patcher = PatcherConfig(threshold=1.0)
    patch_stats.main(Arguments((), patcher, corpus=corpus.folder, view=view, view_document="b.bin"))
    assert "<title>b.bin</title>" in view.read_text()
    assert "210 bytes." in view.read_text()
    patch_stats.main(
        Arguments((str(folder / "a.txt"),), PatcherConfig(rule="space"), view=view, view_document="0", view_bytes=100)
    )
    assert "The first 100 of 800 bytes." in view.read_text()
    assert view.read_text().count("<b ") == 101  # and BOS


def test_the_histogram_counts_every_patch_once():
    lengths = {1: 5, 2: 7, 16: 1, 17: 2, 32: 3, 33: 4, 64: 1, 1000: 1}
    statistics = patch_stats.PatchStatistics(1, 1, 1, sum(lengths.values()), lengths, (1.0,))
    lines = [line.split() for line in patch_stats.histogram(statistics)[1:]]
    assert [(line[0], line[1]) for line in lines] == [
        *(("1", "5"), ("2", "7"), ("16", "1"), ("17-32", "5"), ("33-64", "5"), ("513-1,024", "1")),
    ]


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"patcher": PatcherConfig()}, "needs entropies"),
        ({"patcher": PatcherConfig(rule="bpe")}, "no BPE delimiter"),
        ({"patcher": PatcherConfig(rule="byte"), "view": Path("nowhere/at/all.html")}, "view=nowhere"),
        ({"patcher": PatcherConfig(rule="byte"), "view_document": "d", "view": Path("v.html")}, "view_document='d'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(how, named, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=named):
        patch_stats.main(Arguments((str(folder),), **how))
    assert sorted(tmp_path.rglob("*")) == before


def test_texts_without_a_byte_are_refused(folder):
    with pytest.raises(ValueError, match="no bytes"):
        patch_stats.main(Arguments((str(folder / "empty.txt"),), PatcherConfig(rule="space")))


def test_thresholds_and_sizes_that_make_no_patches_are_refused(corpus):
    for patcher, named in (
        (PatcherConfig(threshold=100.0), "one patch per document"),
        (PatcherConfig(threshold=-1.0), "one patch per byte"),
        (PatcherConfig(mean_patch_bytes=900.0), r"mean_patch_bytes=900\.0"),
    ):
        with pytest.raises(ValueError, match=named):
            patch_stats.main(Arguments((), patcher, corpus=corpus.folder))


def test_a_corpus_that_is_not_scored_is_refused(corpus):
    (corpus.folder / "train.entropies.json").unlink()
    with pytest.raises(FileNotFoundError, match="score the train split"):
        patch_stats.main(Arguments((), PatcherConfig(), corpus=corpus.folder))
    with pytest.raises(ValueError, match="has no documents"):
        patch_stats.main(Arguments((), PatcherConfig(rule="byte"), corpus=corpus.folder, split="heldout"))
    with pytest.raises(ValueError, match="either paths or a corpus"):
        patch_stats.main(Arguments(("x",), PatcherConfig(rule="byte"), corpus=corpus.folder))


def test_as_a_command(folder):
    command = [sys.executable, "scripts/patch_stats.py", str(folder)]
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": ""}
    done = subprocess.run([*command, "--rule", "space"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bytes per patch" in done.stdout
    done = subprocess.run([*command, "--rule", "strided", "--size", "0"], cwd=ROOT, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: patcher.size=0: must be at least 1.\n"
