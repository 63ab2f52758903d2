import pytest

from bltjax.config import family_of
from bltjax.flops import flops_per_byte, non_embedding_parameters, parameters
from bltjax.presets import PRESETS, preset


def test_the_released_models_have_their_published_parameter_counts():
    billion = parameters(preset("blt-1b"))
    assert sum(billion.values()) == 4_533_879_808
    assert billion["hash_embedding"] == 3_072_012_288
    assert sum(parameters(preset("entropy-100m")).values()) == 99_512_064
    assert sum(parameters(preset("blt-7b")).values()) == 10_553_570_560


@pytest.mark.parametrize(
    ("name", "encoder", "latent", "decoder"),
    [
        ("blt-400m", 7e6, 470e6, 50e6),
        ("blt-1b", 12e6, 1.26e9, 113e6),
        ("blt-2b", 12e6, 2.04e9, 113e6),
        ("blt-4b", 12e6, 4.1e9, 113e6),
        ("blt-8b", 20e6, 6.4e9, 120e6),
    ],
)
def test_table_10_counts_its_towers(name, encoder, latent, decoder):
    """Table 10 counts 12 layers width^2; it rounds, and the rounded feed-forward is wider."""
    counts = parameters(preset(name))
    assert counts["encoder"] == pytest.approx(encoder, rel=0.075)
    assert counts["global"] == pytest.approx(latent, rel=0.075)
    assert counts["decoder"] == pytest.approx(decoder, rel=0.075)


@pytest.mark.parametrize("family", ["blt", "byte", "token"])
def test_each_step_of_the_cpu_ladder_costs_more(family):
    rungs = [preset(f"{family}-cpu-{index}") for index in range(5)]
    assert all(family_of(rung) == family for rung in rungs)
    patch_size = 1.0 if family == "byte" else 4.0
    costs = [flops_per_byte(rung, patch_size, 512).forward for rung in rungs]
    sizes = [non_embedding_parameters(rung) for rung in rungs]
    assert all(b > 1.2 * a for a, b in zip(costs, costs[1:], strict=False))
    assert all(b > 1.2 * a for a, b in zip(sizes, sizes[1:], strict=False))


def test_a_name_begins_with_its_family():
    for name, config in PRESETS.items():
        assert name.split("-")[0] == family_of(config)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="blt-400m"):
        preset("blt-40m")
