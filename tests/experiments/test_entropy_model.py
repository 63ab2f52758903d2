import pytest

from bltjax.flops import parameters
from experiments.entropy_model import MODELS, PRESETS, entropy_model, studies
from tests.arms import SCALES, changed, plans, settings


@pytest.mark.parametrize("scale", SCALES)
def test_one_blt_is_trained_on_the_patches_of_every_entropy_model(scale):
    asked = studies(settings(scale))
    assert list(asked) == list(MODELS[scale])
    assert len({study.out for study in asked.values()}) == len(asked)
    models = {name: study.patcher_model() for name, study in asked.items()}
    baseline = models[next(iter(models))]
    for name, model in models.items():
        tower = {"tower.width", "tower.layers", "tower.heads", "tower.hidden", "tower.window"}
        assert changed(model, baseline).keys() <= tower
        assert name == f"{model.tower.width}x{model.tower.layers}_window-{model.tower.window}"
    found = plans(asked)
    assert len(found) == 3 * len(asked)
    assert len({(plan.train.model, plan.train.steps, plan.bytes) for plan in found}) == 1


@pytest.mark.parametrize("scale", SCALES)
def test_size_and_window_are_changed_one_at_a_time_around_the_preset(scale):
    names = list(MODELS[scale])
    assert entropy_model(names[0], scale).changes == {}, PRESETS
    base = entropy_model(names[0], scale).model().tower
    for name in names[1:]:
        tower = entropy_model(name, scale).model().tower
        assert (tower.window == base.window) != ((tower.width, tower.layers) == (base.width, base.layers))


def test_the_accelerator_s_sizes_span_those_of_the_paper():
    sizes = sorted(
        sum(parameters(entropy_model(name, "accelerator").model()).values()) for name in MODELS["accelerator"]
    )
    assert sizes[0] < 1.2e6 and 9e7 < sizes[-1] < 1.1e8
