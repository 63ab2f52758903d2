import pytest

from experiments.local_layers import LAYERS, arm, studies
from tests.arms import SCALES, changed, plans, settings


@pytest.mark.parametrize("scale", SCALES)
def test_arms_divide_the_same_layers_with_hashes_and_without(scale):
    (study,) = studies(settings(scale)).values()
    models = {name.partition("+")[2]: model for name, model in study.models().items()}
    found = {(bool(m.hash.sizes), m.encoder.layers, m.decoder.layers) for m in models.values()}
    assert found == {(hashes, *layers) for hashes in (True, False) for layers in LAYERS[scale]}
    assert len({model.encoder.layers + model.decoder.layers for model in models.values()}) == 1
    baseline = models[arm("hash", LAYERS[scale][0])]
    for model in models.values():
        assert changed(model, baseline).keys() <= {"encoder.layers", "decoder.layers", "hash.sizes"}


@pytest.mark.parametrize("scale", SCALES)
def test_every_arm_has_three_seeds_and_its_budget(scale):
    assert len(plans(studies(settings(scale)))) == 18
