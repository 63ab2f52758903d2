import pytest

from bltjax.flops import parameters
from experiments.cross_attention import ARMS, BASELINE, studies
from tests.arms import SCALES, changed, plans, settings

# Table 7 of the paper: decoder, encoder, whether patches are pooled first.
TABLE = {
    ("none", "all", False), ("none", "last", False), ("none", "none", True), ("first", "last", True),
    ("all", "last", True), ("all", "all", True),
}  # fmt: skip


@pytest.mark.parametrize("scale", SCALES)
def test_arms_are_the_rows_of_the_paper_s_table_and_differ_in_nothing_else(scale):
    (study,) = studies(settings(scale)).values()
    models = {name.partition("+")[2]: model for name, model in study.models().items()}
    assert set(models) == set(ARMS)
    crosses = [model.cross_attention for model in models.values()]
    assert {(cross.decoder, cross.encoder, cross.pooling != "none") for cross in crosses} == TABLE
    for model in models.values():
        assert {path.split(".")[0] for path in changed(model, models[BASELINE])} <= {"cross_attention"}
        assert model.encoder.layers > 1 and model.decoder.layers > 1  # else "last" is "all", "first" is "all"


@pytest.mark.parametrize("scale", SCALES)
def test_every_arm_has_three_seeds_and_its_budget(scale):
    assert len(plans(studies(settings(scale)))) == 3 * len(ARMS)


def test_cross_attention_costs_what_its_layers_have():
    (study,) = studies(settings("cpu")).values()
    found = {name.partition("+")[2]: parameters(model) for name, model in study.models().items()}
    width, k = 24, 2
    layer, base = 4 * width**2 + 2 * width, found[BASELINE]
    assert found["decoder-all_encoder-all"]["encoder_cross"] - base["encoder_cross"] == layer
    assert base["decoder_cross"] - found["decoder-first_encoder-last"]["decoder_cross"] == layer
    assert found["decoder-none_encoder-none"]["decoder_cross"] == 48 * width
    assert found["decoder-none_encoder-none"]["encoder_cross"] == k * width * width
    assert found["decoder-none_encoder-last_unpooled"]["encoder_cross"] == k * width + layer
