"""A text small enough to train on in a test, and a study of it."""

import random
from pathlib import Path
from typing import Any

import pytest

from bltjax.scaling.plan import Study
from bltjax.scaling.sweep import run_study


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of forty short texts."""
    folder = tmp_path_factory.mktemp("texts")
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
def unbroken(texts: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[dict[str, Any]]]:
    """The study, done without a break, and its table."""
    study = tiny_study(texts, tmp_path_factory.mktemp("unbroken") / "study")
    return study, run_study(study, lambda text: None)
