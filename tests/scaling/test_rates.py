import pytest

from bltjax.presets import preset
from bltjax.scaling.rates import learning_rate_rule
from bltjax.scaling.study import Study


def test_the_learning_rate_follows_the_narrowest_tower():
    study = Study(peak_rate=8e-3)
    assert learning_rate_rule(study, preset("blt-8b")) == pytest.approx(4e-4)
    assert learning_rate_rule(study, preset("token-470m")) == pytest.approx(4e-4)
    assert learning_rate_rule(study, preset("megabyte-1.3b")) == pytest.approx(5e-4)  # its local model's width is 1,024
    assert learning_rate_rule(study, preset("spacebyte-793m")) == pytest.approx(8e-3 * 64 / 768)
