import re
import shlex
from pathlib import Path

import pytest
import tyro

from bltjax.scaling.study import Study
from bltjax.scaling.studyfile import RUNNER, command, read_study

STUDIES = (
    Study(),
    Study(
        out=Path("runs/a b"), corpus=("text/*.parquet", "it's"), preset=("blt-tiny", "byte-tiny"),
        budgets=(2e9, 3e10, 1.23456789e11),
        seeds=(0, 1, 2), patch_sizes=(3.0, 4.5), accounting="full", dtype="bfloat16", keep_weights=False,
        corpus_bytes=12345, heldout_bytes=None, stride_bytes=17, peak_rates=(6e-3, 1.25e-2), transfer="width-depth",
        transfer_base="tiny",
    ),
)  # fmt: skip


@pytest.mark.parametrize("study", STUDIES, ids=["default", "changed"])
def test_the_command_that_is_named_runs_the_same_study(study):
    words = shlex.split(command(study))
    assert shlex.join(words[:2]) == RUNNER
    assert tyro.cli(Study, args=words[2:]) == study


def test_a_study_is_read_from_its_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from bltjax.scaling.study import Study\nstudy = Study(budgets=(1e11, 3e11), seeds=(4,))\n")
    assert read_study(path) == Study(budgets=(1e11, 3e11), seeds=(4,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("x = 1", "has no `study`"),
        ("study = 3", "has a `study` that is a int"),
        ("study = (", "fails with SyntaxError"),
        ("import nowhere_at_all", "fails with ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("from bltjax.scaling.study import Study\nstudy = Study(budgets=())", "fails with ValueError: budgets=()"),
        ("from bltjax.scaling.study import Study\nstudy = Study(buget=3)", "fails with TypeError"),
    ],
)
def test_a_file_without_a_study_is_refused(text, message, tmp_path):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_study(path)
