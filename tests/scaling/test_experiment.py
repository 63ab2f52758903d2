import csv
import dataclasses
import re
from pathlib import Path

import pytest

from bltjax.scaling import experiment
from bltjax.scaling.experiment import Settings, command_line, conclude, in_folders, run_all, show_plan
from bltjax.scaling.variants import Variant
from tests.scaling.conftest import tiny_study


def two_studies(texts, settings):
    """Flat bytes with two feed-forwards, in rows of two lengths."""
    thin = Variant("thin", "byte-tiny", {"tower.hidden": 8})
    study = tiny_study(texts, settings.out)
    study = dataclasses.replace(study, preset=("byte-tiny",), budgets=(1e8,), seeds=settings.seeds, variants=(thin,))
    return in_folders({"short": study, "long": dataclasses.replace(study, row_bytes=64)})


@pytest.mark.slow
def test_studies_are_run_joined_and_compared(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "keep_compiled", lambda folder: None)
    settings = Settings(tmp_path / "out", seeds=(0, 1))
    studies = two_studies(texts, settings)
    rows = run_all(studies, settings)
    conclude(studies, settings, rows, "short byte", "Title")
    with (settings.out / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) == 8
    assert (
        {row["study"] for row in table}
        == {"short", "long"}
        == {path.parent.name for path in settings.out.glob("*/runs")}
    )
    assert {row["series"] for row in table} == {"byte", "byte+thin"}
    with (settings.out / "comparison.csv").open() as file:
        found = {row["arm"]: float(row["bits"]) for row in csv.DictReader(file)}
    assert list(found) == ["short byte", "short thin", "long byte", "long thin"]
    assert len(set(found.values())) == 4
    assert "long thin" in capsys.readouterr().out


@pytest.mark.thorough
def test_entropy_models_are_variants_too(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "keep_compiled", lambda folder: None)
    settings = Settings(tmp_path / "out", seeds=(0,))
    study = dataclasses.replace(tiny_study(texts, settings.out), preset=("blt-tiny",), budgets=(2e8,))
    near = Variant("near", "entropy-tiny", {"tower.window": 8})
    other = dataclasses.replace(study, variants=(near,), entropy_model="entropy-tiny+near")
    rows = run_all(in_folders({"far": study, "near": other}), settings)
    assert len({row["heldout_bits_per_byte"] for row in rows}) == 2 and len({row["heldout_bytes"] for row in rows}) == 1
    identities = {path.name.split("-")[1] for path in settings.out.glob("*/entropy-*")}
    assert len(identities) == 2


def test_a_plan_makes_nothing(texts, tmp_path, capsys):
    show_plan(two_studies(texts, Settings(tmp_path / "out", seeds=(0, 1, 2))))
    said = capsys.readouterr().out
    assert "short: 6 runs of 3 seeds" in said and len(re.findall(r"byte-tiny\+thin", said)) >= 2
    assert not (tmp_path / "out").exists()


def test_settings_reach_the_study_before_the_scale_does():
    given = Settings(Path("runs/x"), ("a", "b"), "accelerator", (3e19,), (4,)).study({}, {"preset": ("blt-400m",)})
    assert (given.budgets, given.seeds, given.corpus) == ((3e19,), (4,), ("a", "b"))
    assert (given.dtype, given.entropy_model) == ("bfloat16", "entropy-100m")
    small = Settings(Path("runs/x")).study({"preset": ("blt-cpu-1",), "budgets": (2e11,)}, {})
    assert (small.preset, small.budgets, small.dtype) == (("blt-cpu-1",), (2e11,), "float32")


@pytest.mark.parametrize("error", [ValueError("a=1: is wrong."), FileNotFoundError("b"), KeyboardInterrupt()])
def test_what_ends_an_experiment_is_one_line(error, monkeypatch, tmp_path):
    def main(settings):
        assert settings == Settings(tmp_path, seeds=(0, 3))
        raise error

    monkeypatch.setattr("sys.argv", ["x.py", "--seeds", "0", "3"])
    with pytest.raises(SystemExit, match=str(error) or "interrupted"):
        command_line(Settings(tmp_path), "What is asked.", main)
