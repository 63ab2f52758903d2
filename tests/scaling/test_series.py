import dataclasses
import typing

import pytest

from bltjax.config import PatcherConfig
from bltjax.presets import CPU_TOKENS, PRESETS, preset
from bltjax.scaling.plots import FAMILY_NAMES
from bltjax.scaling.series import RULES, Family, named, patch_size, rule_of, size_name, sized, with_vocabulary
from bltjax.vocabulary import OFFSET

FAMILIES = typing.get_args(Family)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_a_study_has_a_ladder_and_a_name_in_figures(family):
    for size in ("cpu-0", "cpu-4"):
        found, model = named(f"{family}-{size}")
        assert found == family
        assert model == preset(f"{'blt' if family in RULES else family}-{size}")
        assert (rule_of(f"{family}-{size}") is not None) == model.reads_patches
    assert FAMILY_NAMES[family]


def test_no_preset_is_hidden_by_the_name_of_a_rule():
    for name, model in PRESETS.items():
        assert named(name) == (name.split("-")[0], model)


def test_the_rules_are_those_that_their_names_say():
    rules = {family: rule_of(f"{family}-cpu-0") for family in FAMILIES}
    assert rules["blt"] == rules["blt-entropy"] == PatcherConfig(rule="entropy", variant="global")
    assert rules["blt-monotonic"] == PatcherConfig(rule="entropy", variant="monotonic")
    assert rules["spacebyte"] == rules["blt-space"] == PatcherConfig(rule="space")
    assert {family: rule.rule for family, rule in rules.items() if family in ("blt-strided", "blt-bpe")} == {
        "blt-strided": "strided", "blt-bpe": "bpe"
    }  # fmt: skip


def test_a_patch_size_is_that_which_was_asked_for():
    assert patch_size(PatcherConfig(mean_patch_bytes=6.0)) == 6.0
    assert patch_size(PatcherConfig(rule="strided", size=3)) == 3.0
    assert patch_size(PatcherConfig(rule="space")) is None is patch_size(None)


def test_a_vocabulary_is_part_of_the_name_of_a_token_model():
    family, model = named("token-cpu-1-v512")
    assert (family, model) == ("token", dataclasses.replace(preset("token-cpu-1"), vocabulary_size=512 + OFFSET))
    assert with_vocabulary("token-cpu-1", 512) == with_vocabulary("token-cpu-1-v2048", 512) == "token-cpu-1-v512"
    # The preset's own has the preset's own name, under which its runs may lie already.
    assert with_vocabulary("token-cpu-1", CPU_TOKENS - OFFSET) == "token-cpu-1"
    assert size_name("token-cpu-1-v512") == size_name("token-cpu-1") == "token-cpu-1"
    # The end of a variant's name is no vocabulary.
    assert size_name("token-cpu-1-v512+wide-v2") == size_name("token-cpu-1+wide-v2") == "token-cpu-1+wide-v2"
    with pytest.raises(ValueError, match="byte-cpu-1-v512"):
        named("byte-cpu-1-v512")


def test_a_rule_takes_a_size_where_it_has_one():
    assert sized(RULES["blt-monotonic"], 6.0) == PatcherConfig(variant="monotonic", mean_patch_bytes=6.0)
    assert sized(RULES["blt-strided"], 6.0) == PatcherConfig(rule="strided", size=6)
    wrong = ((RULES["blt-space"], 6.0), (None, 6.0), (RULES["blt-strided"], 4.5), (RULES["blt-entropy"], 0.5))
    for rule, size in wrong:
        with pytest.raises(ValueError, match="patch"):
            sized(rule, size)


def test_an_unknown_size_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="blt-400m"):
        named("blt-space-40m")
