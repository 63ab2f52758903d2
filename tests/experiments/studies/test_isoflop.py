import dataclasses
from pathlib import Path

import tyro

from bltjax.scaling.study import Study
from bltjax.scaling.studyfile import read_study

ROOT = Path(__file__).resolve().parents[3]


def test_it_is_the_study_that_the_main_job_does_without_arguments():
    study = read_study(ROOT / "experiments" / "studies" / "isoflop.py")
    assert study == tyro.cli(Study, args=[]) == Study()
    assert dataclasses.replace(study, batch=4) != Study()
