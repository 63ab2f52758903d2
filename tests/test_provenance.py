"""A run's folder says what it was made with, wherever all of it is moved to."""

import json
import shutil
from pathlib import Path

import pytest

from bltjax.claim import Claim
from bltjax.provenance import FILE, Provenance, beside, note_scorer, place, scorer_of

ENTROPIES = {"model": "a" * 16, "params": "b" * 16}


def made_in(top: Path) -> Provenance:
    return Provenance(
        corpus="c" * 16,
        corpus_folder=top / "corpora" / "python",
        entropies=ENTROPIES,
        entropy_run=top / "runs" / "entropy",
        tokenizer="d" * 16,
        tokenizer_file=top / "corpora" / "python" / "tokenizer-300.json",
    )


def test_what_is_written_is_read(tmp_path):
    run = tmp_path / "runs" / "blt"
    run.mkdir(parents=True)
    for made in (made_in(tmp_path), Provenance(), Provenance(corpus="c" * 16)):
        made.write(run)
        assert Provenance.of(run) == made
    assert Provenance.of(tmp_path) == Provenance(), "a folder without a record says nothing"


def test_all_of_it_moved_together_is_found_again(tmp_path):
    run = tmp_path / "here" / "runs" / "blt"
    run.mkdir(parents=True)
    made_in(tmp_path / "here").write(run)
    assert str(tmp_path) not in (run / FILE).read_text()
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert Provenance.of(tmp_path / "there" / "runs" / "blt") == made_in(tmp_path / "there")


def test_a_run_is_known_by_a_link_too(tmp_path):
    run = tmp_path / "disk" / "runs" / "blt"
    run.mkdir(parents=True)
    made_in(tmp_path / "disk").write(run)
    (tmp_path / "link").symlink_to(run)
    assert Provenance.of(tmp_path / "link") == made_in(tmp_path / "disk")


def test_a_place_is_relative_where_the_two_can_be_moved_together():
    assert place(Path("/data/a/corpus"), Path("/data/runs/x")) == "../../a/corpus"
    assert place(Path("/scratch/corpus"), Path("/data/runs/x")) == "/scratch/corpus"


def test_a_study_says_it_in_its_manifest(tmp_path):
    inputs = {"corpus": "c" * 16, "entropies": ENTROPIES, "scoring": {"row_bytes": 64}}
    (tmp_path / "manifest.json").write_text(json.dumps({"inputs": inputs}))
    assert Provenance.of(tmp_path) == Provenance(corpus="c" * 16, entropies=ENTROPIES)


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json does not say what the run was made with"):
        Provenance.of(tmp_path)


def test_a_study_is_searched_from_its_runs_and_from_its_entropy_models(tmp_path):
    for name in ("corpus-a", "corpus-b", "entropy-a", "runs/one"):
        (tmp_path / name).mkdir(parents=True)
    wanted = [tmp_path / "corpus-a", tmp_path / "corpus-b"]
    assert list(beside(tmp_path / "runs" / "one", "corpus-*")) == wanted
    assert list(beside(tmp_path / "entropy-a", "corpus-*")) == wanted


def test_a_corpus_knows_the_run_of_its_entropies_and_of_no_others(tmp_path):
    assert scorer_of(tmp_path, ENTROPIES) is None
    note_scorer(tmp_path, tmp_path / "runs" / "entropy", ENTROPIES)
    assert scorer_of(tmp_path, ENTROPIES) == tmp_path / "runs" / "entropy"
    assert scorer_of(tmp_path, {**ENTROPIES, "params": "0" * 16}) is None


def test_a_refused_claim_leaves_the_record_of_the_run(tmp_path):
    about = {"steps": 10}
    Claim(tmp_path, about, provenance=made_in(tmp_path)).release()
    with pytest.raises(ValueError, match="steps: 10 before, 11 now"):
        Claim(tmp_path, {"steps": 11}, provenance=Provenance()).release()
    assert Provenance.of(tmp_path) == made_in(tmp_path)
