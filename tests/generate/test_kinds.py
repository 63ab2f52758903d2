import pytest

from bltjax.config import FAMILIES, MegabyteConfig, PatcherConfig, SpaceByteConfig
from bltjax.generate import Generator, Source
from bltjax.generate.kinds import KINDS, kind_of
from bltjax.generate.state import Latent
from bltjax.presets import preset
from tests.generate.models import CASES, FLAT

CASE = CASES["released, global"]


def test_every_family_is_of_one_kind_or_is_refused():
    models = [Latent(CASE.config, CASE.patcher, CASE.entropy, 8, 8), FLAT, preset("token-tiny"), preset("entropy-tiny")]
    for model in (*models, preset("megabyte-tiny")):
        assert [kind_of(model)] == [kind for cls, kind in KINDS.items() if isinstance(model, cls)]
    others = {MegabyteConfig, SpaceByteConfig, type(CASE.config), *map(type, models)}
    assert others >= set(FAMILIES.values())


def test_a_family_without_a_step_form_is_refused():
    source = Source(preset("spacebyte-tiny"), {}, PatcherConfig(rule="space"))
    with pytest.raises(ValueError, match=r"config=SpaceByteConfig.*: SpaceByte is trained and scored, but has no step"):
        Generator(source)
