import dataclasses
import re

import pytest

from bltjax.config import TransferConfig
from bltjax.presets import preset
from bltjax.scaling.study import Study


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"preset": ("blt-40m",)}, "blt-400m"),
        ({"sizes": ("cpu-9",)}, "preset='blt-cpu-9'"),
        ({"budgets": ()}, "budgets"),
        ({"budgets": (1e11, 1e11)}, "budgets"),
        ({"budgets": (float("nan"),)}, "budgets"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"patch_sizes": (0.5,)}, "mean_patch_bytes"),
        ({"patch_lengths": (0,)}, "patcher.size=0"),
        ({"patch_lengths": ()}, "patch_lengths"),
        ({"delimiter_tokens": 256}, "delimiter_tokens=256"),
        ({"preset": ("blt-space-cpu-9",)}, "preset='blt-cpu-9'"),
        ({"peak_rates": (0.0,)}, "peak_rates"),
        ({"peak_rates": ()}, "peak_rates"),
        ({"entropy_rate": -1.0}, "entropy_rate=-1.0"),
        ({"transfer_base": "cpu-0"}, "transfer_base='cpu-0': nothing is transferred"),
        ({"transfer": "width", "transfer_base": "cpu-9"}, "preset='blt-cpu-9'"),
        ({"transfer": "width", "preset": ("token-cpu-0", "token-470m")}, "vocabulary_size: 2052, not 32000"),
        ({"entropy_model": "byte-tiny"}, "entropy_model"),
        ({"preset": ("entropy-tiny",)}, "entropy-tiny"),
        ({"stride_bytes": 1000}, "stride_bytes"),
        ({"heldout_percent": 0.0}, "heldout_percent"),
        ({"row_bytes": 1}, "rows.bytes"),
        ({"corpus_bytes": 0}, "corpus_bytes"),
        ({"cooldown": 1.0}, "cooldown=1.0"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"vocabularies": (512, 256)}, "vocabularies=[256]"),
        ({"vocabularies": (512, 512)}, "vocabularies=(512, 512): give each value once"),
        ({"vocabularies": (512,), "families": ("byte",)}, "no token model"),
    ],
)
def test_flags_that_make_no_study_are_refused_by_name(flags, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        Study(**flags)


def test_dtype_and_remat_reach_every_model():
    study = Study(dtype="bfloat16", remat="full")
    models = [*study.models().values(), study.patcher_model()]
    assert {(model.compute.dtype, model.compute.remat) for model in models} == {("bfloat16", "full")}


def test_rates_are_transferred_from_the_smallest_of_each_family_or_the_size_that_is_named():
    study = Study(families=("token", "blt-space"), sizes=("cpu-2", "cpu-1"), transfer="width-depth")
    for family, of in (("token", "token"), ("blt-space", "blt")):
        assert study.transfer_of(f"{family}-cpu-1") is None, "a base is trained as it is"
        assert study.transfer_of(f"{family}-cpu-2") == TransferConfig("width-depth", preset(f"{of}-cpu-1"))
    named = dataclasses.replace(study, transfer_base="cpu-0", dtype="bfloat16")
    assert {named.transfer_of(name).base for name in named.models()} == {preset("token-cpu-0"), preset("blt-cpu-0")}
    assert dataclasses.replace(study, transfer="none").transfer_of("token-cpu-2") is None


def test_presets_take_the_place_of_families_and_sizes():
    assert list(Study(preset=("byte-tiny", "blt-tiny"), budgets=(1e10,)).models()) == ["byte-tiny", "blt-tiny"]
    assert list(Study(families=("token",), sizes=("cpu-1", "cpu-0")).models()) == ["token-cpu-1", "token-cpu-0"]


def test_each_token_model_has_every_vocabulary_and_no_other_model_has_any():
    models = Study(families=("byte", "token"), sizes=("cpu-0", "cpu-1"), vocabularies=(512, 2048)).models()
    sizes = {name: model.vocabulary_size for name, model in models.items() if name.startswith("token")}
    assert sizes == {f"token-cpu-{i}{tokens}": size for i in (0, 1) for tokens, size in (("-v512", 516), ("", 2052))}
    assert len(models) == 6 and {models[f"byte-cpu-{i}"].vocabulary_size for i in (0, 1)} == {260}


def test_each_rule_has_the_sizes_that_are_asked_for():
    study = Study(patch_sizes=(3.0, 4.5), patch_lengths=(2, 6))
    assert [p.mean_patch_bytes for p in study.patchers_of("blt-cpu-0")] == [3.0, 4.5]
    assert [(p.variant, p.mean_patch_bytes) for p in study.patchers_of("blt-monotonic-cpu-0")] == [
        ("monotonic", 3.0), ("monotonic", 4.5)
    ]  # fmt: skip
    assert [(p.rule, p.size) for p in study.patchers_of("blt-strided-cpu-0")] == [("strided", 2), ("strided", 6)]
    assert [p.rule for p in study.patchers_of("spacebyte-cpu-0")] == ["space"]
    assert study.patchers_of("megabyte-cpu-0") == study.patchers_of("token-cpu-0") == (None,)
