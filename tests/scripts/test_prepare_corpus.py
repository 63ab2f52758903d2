import runpy
import sys
from pathlib import Path

import pytest

from bltjax.data.corpus import Corpus

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "prepare_corpus.py"


def test_from_one_text_to_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "book.txt").write_text("It was a dark and stormy night. " * 40)
    arguments = [str(SCRIPT), str(tmp_path / "*.txt"), "--folder", str(tmp_path / "corpus")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=r"error: the \w+ split is empty.*piece_bytes"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert not (tmp_path / "corpus").exists()

    monkeypatch.setattr(sys, "argv", [*arguments, "--piece-bytes", "37", "--heldout-percent", "20"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.manifest["origin"]["piece_bytes"] == 37
    printed = capsys.readouterr().out
    assert corpus.fingerprint in printed
    assert "exact duplicates" in printed


def test_many_sources_to_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for name in ("web", "wiki"):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{name} {n}"}}\n' for n in range(300)))
    paths = [f"{name}={tmp_path / name}.jsonl" for name in ("web", "wiki")]
    arguments = [str(SCRIPT), *paths, "--folder", str(tmp_path / "corpus"), "--workers", "1", "--shard-bytes", "2000"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--licenses", "wikipedia", "CC-BY-SA-4.0"])
    with pytest.raises(SystemExit, match="no source is called wikipedia"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    for _ in range(2):  # the second time there is nothing left to do
        monkeypatch.setattr(sys, "argv", [*arguments, "--licenses", "wiki", "CC-BY-SA-4.0"])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        corpus = Corpus.open(tmp_path / "corpus")
        printed = capsys.readouterr().out
        assert corpus.fingerprint in printed
        assert "source wiki: 2,290 bytes, licence CC-BY-SA-4.0" in printed
    assert len(corpus.manifest["splits"]["train"]["shards"]) > 4
