import itertools
import math

import pytest

from bltjax import families
from bltjax.config import family_of
from bltjax.flops import flops_per_byte, non_embedding_parameters, parameters
from bltjax.presets import PRESETS, preset
from bltjax.sharding import parameter_paths


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


@pytest.mark.parametrize("family", ["blt", "byte", "token", "megabyte", "spacebyte"])
def test_each_step_of_the_cpu_ladder_costs_more(family):
    rungs = [preset(f"{family}-cpu-{index}") for index in range(5)]
    assert all(family_of(rung) == family for rung in rungs)
    patch_size = 1.0 if family in ("byte", "megabyte") else 4.0
    costs = [flops_per_byte(rung, patch_size, 512).forward for rung in rungs]
    sizes = [non_embedding_parameters(rung) for rung in rungs]
    assert all(b > 1.2 * a for a, b in itertools.pairwise(costs))
    assert all(b > 1.2 * a for a, b in itertools.pairwise(sizes))


GROUPS = {  # the beginnings of parameter paths
    "byte_embedding": "byte_embedding",
    "hash_embedding": "hash_embedding",
    "encoder/layers": "encoder",
    "encoder/patch_projection": "encoder_cross",
    "encoder/cross_attention": "encoder_cross",
    "global_model/input_projection": "encoder_cross",
    "global_model/layers": "global",
    "decoder/patch_projection": "decoder_cross",
    "decoder/cross_attention": "decoder_cross",
    "decoder/layers": "decoder",
    "decoder/norm": "output",
    "decoder/output": "output",
    "embedding": "embedding",
    "layers": "tower",
    "norm": "output",
    "output": "output",
}
OF_MEGABYTE = {
    "global_embedding": "global_embedding",
    "position_embedding": "position_embedding",
    "global_pad": "pad_embedding",
    "local_pad": "pad_embedding",
    "patch_encoder": "patch_encoder",
    "global_model": "global",
    "global_projection": "global_projection",
    "local_embedding": "output",
    "local_model/layers": "local",
    "local_model/norm": "output",
}


@pytest.mark.parametrize("name", PRESETS)
def test_groups_are_counted_as_the_models_have_them(name):
    config = preset(name)
    groups = OF_MEGABYTE if family_of(config) == "megabyte" else GROUPS
    found = dict.fromkeys(parameters(config), 0)
    for path, leaf in parameter_paths(families.abstract_params(config)):
        found[next(group for start, group in groups.items() if path.startswith(f"{start}/"))] += math.prod(leaf.shape)
    assert found == parameters(config)


def test_megabyte_and_spacebyte_have_the_sizes_of_their_papers():
    """1.3B + 218M, and 793M + 184M, as their papers count them: 12 layers width^2."""
    large, local = preset("megabyte-1.3b").global_model, preset("megabyte-1.3b").local_model
    assert 12 * large.layers * large.width**2 == pytest.approx(1.3e9, rel=0.08)
    assert 12 * local.layers * local.width**2 == pytest.approx(218e6, rel=0.03)
    model = preset("spacebyte-793m")
    assert 12 * model.global_model.layers * model.global_model.width**2 == pytest.approx(793e6, rel=0.001)
    local_layers = model.encoder.layers + model.decoder.layers
    assert 12 * local_layers * model.encoder.width**2 == pytest.approx(184e6, rel=0.001)


def test_a_name_begins_with_its_family():
    for name, config in PRESETS.items():
        assert name.split("-")[0] == family_of(config)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="blt-400m"):
        preset("blt-40m")
