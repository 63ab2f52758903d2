import pytest

from bltjax.chips import CHIPS, chip
from bltjax.flops import PEAKS


def test_a_topology_names_its_chip():
    assert chip("v5p:4x4x8") is CHIPS["v5p"] and CHIPS["v5p"].peak == PEAKS["tpu-v5p"]


def test_gpus_reach_their_node_faster_than_the_network():
    for name, one in CHIPS.items():
        assert (one.node is None) == (one.network is None), name
        assert one.network is None or one.network < one.links, name


def test_an_unknown_chip_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"topology='v9:2x2': chips known here are v4, v5e, v5p, v6e"):
        chip("v9:2x2")


def test_no_chip_can_feed_its_products_from_memory_alone():
    """What a roofline rests on: a FLOP costs far less time than a byte."""
    for name, one in CHIPS.items():
        assert 100 < one.peak / one.bandwidth < 1000, name
        assert one.links < one.bandwidth, name
