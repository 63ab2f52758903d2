import dataclasses
from typing import Any

import numpy as np
import pytest

from bltjax.flops import non_embedding_parameters, parameters
from bltjax.presets import preset
from bltjax.scaling.fit.points import SIZES, count, from_manifests, size_label
from bltjax.scaling.store import Run
from tests.scaling.fit.truths import design


def manifest(name="a", **changes: Any) -> dict[str, Any]:
    model = preset("blt-cpu-1")
    parts = {"paper": {"global": 2e4}, "full": {"global": 3e4, "patcher_inference": 1e4, "patcher_training": 500.0}}
    whole = {
        "id": name,
        "status": "complete",
        "family": "blt",
        "series": "blt",
        "preset": name,
        "accounting": "paper",
        "budget": 1e12,
        "patch_size_wanted": 4.5,
        "config": {"seed": 3, "optim": {"peak_rate": 1e-3}},
        "inputs": {"corpus": "c0ffee"},
        "rows": {"unit_bytes": 4.4},
        "parameters": {**parameters(model), "non_embedding": non_embedding_parameters(model)},
        "flops_per_byte": {each: {"version": f"{each}-v1", "parts": parts[each]} for each in parts},
        "result": {
            "heldout_bits_per_byte": 2.1,
            "heldout_sums": {"bytes": 97_330},
            "bytes_seen": 1.2e7,
            "epochs": 0.4,
            "training_flops": {"paper": 0.9e12, "full": 1.3e12},
            "device_seconds": 20.0,
        },
    }
    return {**whole, **changes}


def test_mistake_2_look_up_tables_are_no_part_of_n_unless_asked_for():
    model = preset("blt-8b")
    groups = {**parameters(model), "non_embedding": non_embedding_parameters(model)}
    tables = groups["hash_embedding"] + groups["byte_embedding"]
    assert tables > 3e9  # a BLT-8B would be twice the size of its global model's half
    assert count(groups, "non_embedding") == non_embedding_parameters(model)
    assert count(groups, "all") == count(groups, "non_embedding") + tables
    assert count(groups, "latent") == groups["global"]
    assert count(groups, ("encoder", "decoder")) == groups["encoder"] + groups["decoder"]


def test_the_choice_of_n_is_written_on_the_axis():
    for size in SIZES:
        assert from_manifests([manifest()], size).about.size == SIZES[size]
    assert size_label(("encoder", "decoder")) == "parameters of encoder, decoder"
    assert len({from_manifests([manifest()], size).size[0] for size in SIZES}) == len(SIZES)


def test_a_group_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no parameter group router; there are byte_embedding"):
        count(manifest()["parameters"], ("router",))
    with pytest.raises(ValueError, match="choose one of non_embedding, all, latent"):
        size_label("everything")


def test_the_columns_are_those_of_the_runs():
    points = from_manifests([manifest("a"), manifest("b", trunk="t")])
    assert points.loss.tolist() == [2.1, 2.1]
    assert points.flops.tolist() == [0.9e12] * 2
    assert points.cluster == ("a", "t")  # a run of its own, and a branch
    assert points.about.accounting == "paper-v1"
    assert points.about.seeds == (3,)
    assert points.patch_size is None
    assert "97,330 bytes of corpus c0ffee" in points.about.scored


def test_mistake_1_the_full_accounting_has_the_patcher_in_it():
    paper, full = (from_manifests([manifest()], accounting=accounting) for accounting in ("paper", "full"))
    assert full.about.accounting == "full-v1"
    assert full.flops[0] > paper.flops[0]
    assert paper.shared_flops[0] == 0
    assert full.shared_flops[0] == 500 * 1.2e7  # does not grow with the bytes of a run


def test_mistake_12_a_loss_in_mid_schedule_is_no_point():
    with pytest.raises(ValueError, match="not complete; a loss in mid-schedule is not a point"):
        from_manifests([manifest(), manifest("b", status="running")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"family": "token"}, "families blt, token"),
        ({"accounting": "full"}, "accountings full, paper"),
        ({"inputs": {"corpus": "decaf"}}, "corpora"),
        ({"result": {**manifest()["result"], "heldout_sums": {"bytes": 5}}}, "held-out texts of 5 bytes"),
    ],
)
def test_mistake_8_only_like_is_fitted_with_like(change, words):
    with pytest.raises(ValueError, match=words):
        from_manifests([manifest(), manifest("b", **change)])


def test_several_patch_sizes_are_a_column():
    runs = [manifest("a"), manifest("b", patch_size_wanted=6.0, series="blt-6", rows={"unit_bytes": 5.9})]
    points = from_manifests(runs)
    assert points.patch_size.tolist() == [4.4, 5.9]
    assert points.about.name == "blt"


def test_mistake_7_single_precision_is_refused(unchecked):
    points = design().draw(0)
    with pytest.raises(ValueError, match="float64"):
        dataclasses.replace(points, loss=points.loss.astype(np.float32))


@pytest.mark.parametrize(("name", "value"), [("loss", np.nan), ("flops", np.inf), ("bytes", 0.0), ("size", -1.0)])
def test_a_value_that_is_no_measurement_is_refused(name, value):
    points = design().draw(0)
    column = getattr(points, name).copy()
    column[4] = value
    with pytest.raises(ValueError, match=f"{name}=.* positive finite"):
        dataclasses.replace(points, **{name: column})


def test_columns_have_one_length(unchecked):
    points = design().draw(0)
    with pytest.raises(ValueError, match="shape"):
        dataclasses.replace(points, bytes=points.bytes[1:])
    with pytest.raises(ValueError, match="34 names for 35 points"):
        dataclasses.replace(points, cluster=points.cluster[1:])


def test_no_points_are_no_fit():
    with pytest.raises(ValueError, match="needs complete runs"):
        from_manifests([])
    points = design().draw(0)
    with pytest.raises(ValueError, match="there are none"):
        points.where(points.size < 0)


def test_a_mask_chooses_in_every_column():
    points = dataclasses.replace(design().draw(0), seconds=np.arange(1.0, 36))
    half = points.where(points.budget > 1e18)
    assert len(half) == len(half.cluster) == 14
    assert half.seconds.tolist() == points.seconds[points.budget > 1e18].tolist()
    assert half.budgets().tolist() == pytest.approx([10**18.5, 1e19])


def test_the_manifests_of_a_real_study_are_points(unbroken):
    study, rows = unbroken
    manifests = [Run(path.parent).manifest() for path in sorted(study.out.glob("runs/*/manifest.json"))]
    for family in study.families:
        own = [each for each in manifests if each["family"] == family]
        for accounting in ("paper", "full"):
            points = from_manifests(own, accounting=accounting)
            table = sorted(row[f"training_flops_{accounting}"] for row in rows if row["family"] == family)
            assert sorted(points.flops) == pytest.approx(table)
            assert (points.budget == sorted(study.budgets)).all() or len(points) == len(study.budgets)
