import dataclasses
import json
import re

import pytest
import tyro

from bltjax.presets import preset
from bltjax.scaling.series import rule_of, series_of
from bltjax.scaling.study import Study
from bltjax.scaling.studyfile import command
from bltjax.scaling.sweep import claim
from bltjax.scaling.variants import Variant

NO_HASH = Variant("no-hash", "blt-tiny", {"hash.sizes": []})
SMALL = {"budgets": (1e9,), "row_bytes": 64}


def test_a_variant_is_its_preset_but_for_what_is_changed():
    tiny = preset("blt-tiny")
    assert NO_HASH.model() == dataclasses.replace(tiny, hash=dataclasses.replace(tiny.hash, sizes=()))
    assert Variant("x", "blt-space-tiny", {"decoder.layers": 3}).model().decoder.layers == 3


@pytest.mark.parametrize(
    ("name", "base", "changes", "named"),
    [
        ("a", "blt-tiny", {"hash.bucket": 3}, "hash.bucket is not a known key of HashConfig; the nearest are: buckets"),
        ("a", "blt-tiny", {"hahs.sizes": []}, "hahs is not a known key of BLTConfig; the nearest are: hash"),
        ("a", "blt-tiny", {"hash.buckets": "many"}, "hash.buckets='many'"),
        ("a", "blt-tiny", {"hash.buckets": 0}, "hash.buckets=0"),
        ("a", "blt-tiny", {"decoder.width": 24}, "decoder.width=24: must equal encoder's"),
        ("a", "blt-tiny", {"hash.buckets.x": 1}, "buckets holds no fields"),
        ("a", "blt-tiny", {"hash.buckets": 101}, "hash.buckets=101 is what the preset has"),
        ("a b", "blt-tiny", {"hash.buckets": 7}, "'a b'"),
        ("a", "blt-tine", {"hash.buckets": 7}, "blt-tiny"),
    ],
)
def test_what_is_no_variant_is_refused_by_name(name, base, changes, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        Variant(name, base, changes)


def test_values_that_the_preset_has_are_no_changes():
    found = Variant.having("a", "blt-tiny", {"hash.buckets": 101, "hash.sizes": (3,), "decoder.layers": 2})
    assert found == Variant("a", "blt-tiny", {"hash.sizes": [3], "decoder.layers": 2})
    assert Variant.having("a", "blt-tiny", {}).model() == preset("blt-tiny")
    with pytest.raises(ValueError, match="nearest are: buckets"):
        Variant.having("a", "blt-tiny", {"hash.bucket": 7})


def test_variants_are_models_of_a_study_and_series_of_their_own():
    study = Study(preset=("blt-tiny",), variants=(NO_HASH,), **SMALL)
    assert list(study.models()) == ["blt-tiny", "blt-tiny+no-hash"]
    assert study.models()["blt-tiny+no-hash"].hash.sizes == ()
    assert list(Study(variants=(NO_HASH,), **SMALL).models()) == ["blt-tiny+no-hash"]
    assert series_of("blt-tiny+no-hash") == "blt+no-hash" and series_of("blt-tiny+no-hash", 6.0) == "blt-6+no-hash"
    assert rule_of("blt-space-tiny+no-hash") == rule_of("blt-space-tiny")
    with pytest.raises(ValueError, match="once"):
        Study(variants=(NO_HASH, NO_HASH), **SMALL)


def test_a_variant_may_have_a_patch_size_of_its_own():
    long = Variant("p8", "blt-tiny", {"global_model.layers": 2}, patch_size=8.0)
    study = Study(preset=("blt-tiny",), variants=(NO_HASH, long, Variant("p9", "blt-tiny", {}, 9.0)), **SMALL)
    study = dataclasses.replace(study, patch_sizes=(3.0, 4.5))
    found = {name: [rule.mean_patch_bytes for rule in study.patchers_of(name)] for name in study.models()}
    own = {"blt-tiny+p8": [8.0], "blt-tiny+p9": [9.0]}
    assert found == {"blt-tiny": [3.0, 4.5], "blt-tiny+no-hash": [3.0, 4.5], **own}
    assert study.patched_runs == 6 and study.models()["blt-tiny+p9"] == study.models()["blt-tiny"]
    for name in ("byte-tiny", "blt-space-tiny"):
        with pytest.raises(ValueError, match="patch_size=8"):
            Variant("a", name, {}, 8.0)


def test_a_variant_of_an_entropy_model_sets_the_patches():
    narrow = Variant("w4", "entropy-tiny", {"tower.window": 4})
    study = Study(preset=("blt-tiny",), variants=(narrow,), entropy_model="entropy-tiny+w4", **SMALL)
    assert study.patcher_model().tower.window == 4
    assert list(study.models()) == ["blt-tiny"]
    with pytest.raises(ValueError, match="an entropy model only sets patches"):
        Study(preset=("blt-tiny",), variants=(narrow,), **SMALL)


def test_a_study_with_variants_is_written_down_but_is_no_command(tmp_path):
    study = Study(out=tmp_path / "study", variants=(NO_HASH,), **SMALL)
    claim(study)
    kept = json.loads((study.out / "study.json").read_text())["variants"]
    assert [Variant(**one) for one in kept] == [NO_HASH]
    with pytest.raises(ValueError, match="variants"):
        command(study)
    assert tyro.cli(Study, args=[]) == Study()
