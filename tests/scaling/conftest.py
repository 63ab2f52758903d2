"""A text small enough to train on in a test, and a study of it."""

import dataclasses
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from bltjax.lock import Lock
from bltjax.scaling.store import read_json
from bltjax.scaling.study import Study
from bltjax.scaling.sweep import run_study


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a test run have."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of forty short texts."""
    return written(tmp_path_factory.mktemp("texts"))


def written(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    words = "the of a to in is that for it as was with be by on not he his but at are this have from or had an they"
    generator = random.Random(0)
    for number in range(40):
        text = " ".join(generator.choices(words.split(), k=generator.randrange(50, 200)))
        Path(folder, f"{number:02d}.txt").write_text(text)
    return str(folder)


def tiny_study(texts: str, out: Path) -> Study:
    """Two budgets, one tiny model of each family."""
    return Study(
        out=out,
        corpus=(texts,),
        preset=("blt-tiny", "byte-tiny", "token-tiny"),
        budgets=(2e8, 6e8),
        patch_sizes=(3.0,),
        row_bytes=32,
        batch=8,
        entropy_model="entropy-tiny",
        entropy_bytes=3000,
        heldout_percent=20,
        heldout_bytes=2000,
    )


@pytest.fixture
def study(texts: str, tmp_path: Path) -> Study:
    return tiny_study(texts, tmp_path / "study")


@pytest.fixture(scope="session")
def vocabularies(texts: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[Any], list[Any]]:
    """A study of token models with two vocabularies, its rows and manifests, both in the order of the table."""
    study = tiny_study(texts, tmp_path_factory.mktemp("vocabularies") / "study")
    study = dataclasses.replace(study, preset=("token-tiny", "byte-tiny"), vocabularies=(270, 296), budgets=(2e8,))
    rows = run_study(study, lambda text: None)
    manifests = [read_json(next((study.out / "runs").glob(f"*{row['run']}")) / "manifest.json") for row in rows]
    return study, rows, manifests


@pytest.fixture(scope="session")
def unbroken(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[dict[str, Any]]]:
    """The study, done without a break, and its table. The first worker that asks does it, the others have a copy."""
    out = tmp_path_factory.mktemp("unbroken") / "study"
    with Lock(shared / "unbroken.lock", wait=True):
        study = tiny_study(written(shared / "unbroken-texts"), shared / "unbroken")
        run_study(study, lambda text: None)
        shutil.copytree(study.out, out)
    study = dataclasses.replace(study, out=out)
    return study, run_study(study, lambda text: None)
