import dataclasses

import pytest

from bltjax.config import PatcherConfig, RowsConfig
from bltjax.presets import preset
from bltjax.scaling.plan import RowFacts, plan_run, plan_table, run_hash
from bltjax.scaling.study import Study

FACTS = RowFacts(
    corpus_bytes=1_000_000, positions=256, mean_row_bytes=250.0, unit_bytes=4.0, byte_fill=0.97, slot_fill=0.9
)
BYTES = RowFacts(
    corpus_bytes=1_000_000, positions=256, mean_row_bytes=255.0, unit_bytes=1.0, byte_fill=0.99, slot_fill=0.99
)


def blt_plan(study: Study, budget: float = 1e10, **changes):
    arguments = {
        "rows": RowsConfig(bytes=256, slots=70, batch=4),
        "facts": FACTS,
        "patcher": PatcherConfig(threshold=1.5),
        "wanted": PatcherConfig(),
        "inputs": {"corpus": "c"},
        "seed": 0,
        "rate": study.peak_rates[0],
        **changes,
    }
    return plan_run(study, arguments.pop("name", "blt-tiny"), preset("blt-tiny"), budget=budget, **arguments)


@pytest.mark.parametrize("accounting", ["paper", "full"])
def test_a_run_spends_its_budget_to_half_a_step(accounting):
    study = Study(accounting=accounting, entropy_bytes=20_000, entropy_model="entropy-tiny")
    plan = blt_plan(study)
    step = plan.training_flops / plan.train.steps
    assert abs(plan.training_flops - 1e10) < 0.52 * step
    assert plan.flops[accounting].training * plan.bytes == pytest.approx(plan.training_flops)


def test_the_full_accounting_charges_each_blt_run_its_share_of_the_entropy_model():
    one = Study(accounting="full", preset=("blt-tiny",), budgets=(1e11,), entropy_bytes=50_000)
    many = dataclasses.replace(one, seeds=(0, 1, 2, 3))
    alone, shared = (blt_plan(study, 1e11) for study in (one, many))
    assert alone.train.steps < shared.train.steps
    share = [plan.flops["full"].parts["patcher_training"] * plan.bytes for plan in (alone, shared)]
    assert share[0] == pytest.approx(4 * share[1])
    assert "patcher_inference" not in alone.flops["paper"].parts


def test_a_flat_model_is_not_charged_for_a_patcher():
    plan = plan_run(Study(), "byte-tiny", preset("byte-tiny"), RowsConfig(bytes=256, batch=4), BYTES, 1e10, 0, 8e-3)
    assert not {"patcher_inference", "patcher_training"} & set(plan.flops["full"].parts)


def test_a_budget_below_one_step_is_refused_before_anything_is_computed():
    with pytest.raises(ValueError, match=r"budgets: 1e\+05 FLOPs are less than one step of blt-cpu-0"):
        Study(budgets=(1e5, 1e12))
    with pytest.raises(ValueError, match="less than one step"):
        blt_plan(Study(), budget=1e5)
    with pytest.raises(ValueError, match="share of the entropy model's training"):
        blt_plan(Study(accounting="full", entropy_bytes=1e9))


def test_a_run_is_another_one_when_anything_that_it_depends_on_is():
    study = Study()
    plans = [
        blt_plan(study),
        blt_plan(study, seed=1),
        blt_plan(study, budget=1.0001e10),
        blt_plan(study, patcher=PatcherConfig(threshold=1.51)),
        blt_plan(study, inputs={"corpus": "d"}),
        blt_plan(dataclasses.replace(study, peak_rates=(1e-3,))),
        blt_plan(dataclasses.replace(study, accounting="full", entropy_bytes=1e3)),
        blt_plan(dataclasses.replace(study, transfer="width", transfer_base="cpu-1")),
        blt_plan(dataclasses.replace(study, transfer="width-depth", transfer_base="cpu-1")),
        blt_plan(dataclasses.replace(study, transfer="width", transfer_base="cpu-2")),
    ]
    assert len({run_hash(plan) for plan in plans}) == len(plans)
    assert run_hash(blt_plan(study)) == run_hash(plans[0])
    assert run_hash(plans[0]) == "f15e836767e73fd9", "what it was before there were several rates and transfers"
    tiny = {"transfer": "width", "transfer_base": "tiny", "families": ("blt",)}
    same = dataclasses.replace(study, peak_rates=(1e-3, 8e-3), **tiny)
    assert run_hash(blt_plan(same, rate=8e-3)) == run_hash(plans[0]), "a base is trained as it is, whatever else is"


def test_a_plan_says_what_weakens_its_result():
    few = blt_plan(Study(), budget=5e8)
    assert few.train.steps < 10
    assert few.warnings() == [f"only {few.train.steps} steps"]
    small = dataclasses.replace(FACTS, corpus_bytes=1000, slot_fill=0.8, byte_fill=0.85)
    warnings = " ".join(blt_plan(Study(), facts=small).warnings())
    assert all(text in warnings for text in ("epochs", "20% of the patch slots", "15% of the byte positions"))
    assert "note: only" in plan_table([few])


@pytest.mark.parametrize("rule", ["space", "strided", "bpe"])
def test_only_patches_by_entropy_are_charged_for_the_entropy_model(rule):
    study = Study(preset=(f"blt-{rule}-tiny", "blt-tiny"), budgets=(1e11,), accounting="full", entropy_bytes=50_000)
    assert study.patched_runs == 1
    patcher = PatcherConfig(rule=rule)
    facts = dataclasses.replace(FACTS, positions=320)
    plan = blt_plan(study, 1e11, name=f"blt-{rule}-tiny", patcher=patcher, wanted=patcher, facts=facts)
    assert not {"patcher_inference", "patcher_training"} & set(plan.flops["full"].parts)
    assert not plan.by_entropy and plan.series == f"blt-{rule}"
    # The positions of delimiters are computed as well: in full, but not by the paper's equations.
    without = blt_plan(study, 1e11, name=f"blt-{rule}-tiny", patcher=patcher, wanted=patcher)
    assert plan.flops["full"].forward > without.flops["full"].forward
    assert plan.flops["paper"] == without.flops["paper"]


def test_a_run_that_leaves_a_trunk_has_the_steps_of_one_that_is_trained_alone():
    study = Study(budgets=(1e10, 4e10))
    shared = dataclasses.replace(study, schedule="wsd", cooldown=0.25)
    for budget in study.budgets:
        alone, leaves = blt_plan(study, budget), blt_plan(shared, budget)
        assert (leaves.train.steps, leaves.bytes, leaves.training_flops) == (
            alone.train.steps, alone.bytes, alone.training_flops
        )  # fmt: skip
        assert alone.branch_step == 0
        assert leaves.branch_step == leaves.train.steps - round(0.25 * leaves.train.steps)
        # What comes before it leaves is the same for every budget: the warm-up is that of the smallest.
        assert leaves.train.optim.warmup_steps == blt_plan(study, 1e10).train.steps // 10
    assert blt_plan(study, 4e10).train.optim.warmup_steps > blt_plan(shared, 4e10).train.optim.warmup_steps
    assert blt_plan(dataclasses.replace(study, warmup_steps=3)).train.optim.warmup_steps == 3


def test_a_series_names_the_patch_size_only_where_there_are_several():
    assert blt_plan(Study()).series == "blt"
    assert blt_plan(Study(patch_sizes=(4.5, 6.0))).series == "blt-4.5"
