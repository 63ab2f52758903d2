import dataclasses
import math

import pytest

from bltjax.config import from_dict, to_dict
from bltjax.flops import flops_per_byte, non_embedding_parameters
from bltjax.presets import preset
from bltjax.scaling.classes import MOST_ASPECT, TOLERANCE, InferenceClass, fitted

SMALL = InferenceClass.of(preset("token-470m"), 3.7, 8192)
TINY = InferenceClass.of(preset("token-cpu-3"), 3.0, 256)


@pytest.mark.parametrize("accounting", ["paper", "full"])
@pytest.mark.parametrize(("reference", "unit", "context", "shape", "patch_sizes"), [
    ("token-470m", 3.7, 8192, "blt-400m", (4.5, 6, 8)),
    ("token-3.6b", 3.7, 8192, "blt-4b", (6, 12)),
    ("token-cpu-3", 3.0, 256, "blt-cpu-2", (4.5,)),
    ("token-3.6b", 3.7, 8192, "spacebyte-793m", (5.0,)),
    ("token-3.6b", 3.7, 8192, "byte-450m", (1.0,)),
])  # fmt: skip
def test_a_member_costs_what_its_class_does(reference, unit, context, shape, patch_sizes, accounting):
    to = InferenceClass.of(preset(reference), unit, context, accounting)
    assert to.flops_per_byte == flops_per_byte(preset(reference), unit, context, accounting).forward
    for size in patch_sizes:
        member = fitted(preset(shape), size, to)
        forward = flops_per_byte(member.model, size, context, accounting).forward
        assert member.flops_per_byte == forward and member.deviation == pytest.approx(forward / to.flops_per_byte - 1)
        assert abs(member.deviation) <= TOLERANCE and 1 / MOST_ASPECT <= member.aspect <= MOST_ASPECT


def test_the_model_grows_with_its_patches_and_its_local_models_stay():
    members = [fitted(preset("blt-400m"), size, SMALL) for size in (4.5, 6, 8, 12)]
    sizes = [non_embedding_parameters(member.model) for member in members]
    assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0]
    for member in members:
        assert {path.split(".")[0] for path in member.changes} <= {"global_model"}
        for part in ("encoder", "decoder", "hash", "cross_attention"):
            assert getattr(member.model, part) == getattr(preset("blt-400m"), part)
        assert member.model.global_model.head_width == 128


@pytest.mark.parametrize(("shape", "to", "patch_size", "paper"), [
    ("blt-400m", SMALL, 6, 610e6), ("blt-400m", SMALL, 8, 760e6),
    ("blt-4b", InferenceClass.of(preset("token-3.6b"), 3.7, 8192), 6, 5.2e9),
    ("blt-4b", InferenceClass.of(preset("token-3.6b"), 3.7, 8192), 8, 6.6e9),
])  # fmt: skip
def test_the_sizes_are_near_those_of_the_paper_s_table_2(shape, to, patch_size, paper):
    # The paper gives no shapes; its counts of parameters, within an eighth.
    assert non_embedding_parameters(fitted(preset(shape), patch_size, to).model) == pytest.approx(paper, rel=0.125)


def test_the_changes_make_the_model_from_its_preset():
    for patch_size in (4.5, 6.0, 8.0):
        member = fitted(preset("blt-cpu-2"), patch_size, TINY, head_width=8)
        values = to_dict(preset("blt-cpu-2"))
        for path, value in member.changes.items():
            part, name = path.split(".")
            values[part][name] = value
        assert from_dict(type(member.model), values, "model") == member.model
        assert member.model.global_model.head_width == 8


def test_with_everything_counted_the_patcher_takes_its_share():
    full = dataclasses.replace(SMALL, accounting="full", flops_per_byte=4e8)
    alone, patched = (fitted(preset("blt-400m"), 6, full, patcher=p) for p in (None, preset("entropy-cpu")))
    assert patched.deviation == pytest.approx(
        flops_per_byte(patched.model, 6, 8192, "full", patcher=preset("entropy-cpu")).forward / 4e8 - 1
    )
    assert non_embedding_parameters(patched.model) <= non_embedding_parameters(alone.model)
    with pytest.raises(ValueError, match="the paper's accounting has none"):
        fitted(preset("blt-400m"), 6, SMALL, patcher=preset("entropy-cpu"))
    # The released entropy model alone is more than half of the paper's smaller class.
    with pytest.raises(ValueError, match="leaves too little"):
        fitted(preset("blt-400m"), 6, dataclasses.replace(SMALL, accounting="full"), patcher=preset("entropy-100m"))


def test_what_does_not_fit_says_what_comes_nearest():
    with pytest.raises(ValueError, match=r"all but the global model takes .* leaves too little"):
        fitted(preset("blt-cpu-2"), 6, InferenceClass.of(preset("token-cpu-0"), 3.0, 256))
    # At 16 wide it would cost the class with 13 layers: that is another shape, not this one.
    with pytest.raises(ValueError, match=r"all but the tower takes .*; the nearest at patch size 1 is"):
        fitted(preset("byte-cpu-2"), 1, TINY)
    with pytest.raises(ValueError, match="is a share of the class"):
        fitted(preset("blt-cpu-2"), 6, TINY, 0.0)
    loose = fitted(preset("byte-cpu-2"), 1, TINY, tolerance=0.1)
    assert 0.02 < abs(loose.deviation) <= 0.1


def test_of_what_fits_the_shape_s_own_proportions_are_nearest():
    member = fitted(preset("blt-400m"), 8, SMALL)
    own = preset("blt-400m").global_model
    others = []
    for heads in range(7, 18):
        for layers in range(14, 60):
            tower = dataclasses.replace(own, width=128 * heads, heads=heads, layers=layers)
            forward = SMALL.forward(dataclasses.replace(preset("blt-400m"), global_model=tower), 8)
            if abs(forward / SMALL.flops_per_byte - 1) <= TOLERANCE:
                others.append(abs(math.log(128 * heads / layers / (own.width / own.layers))))
    assert len(others) > 5 and abs(math.log(member.aspect)) == pytest.approx(min(others))
