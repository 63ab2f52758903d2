import re

import pytest
from jax.experimental import topologies

from bltjax import topology
from bltjax.chips import CHIPS

GPUS = [name for name, one in CHIPS.items() if one.node]


def described(name):
    """The numbers of a target description."""
    text = topology.target(f"{name}:8")
    return {field: float(value) for field, value in re.findall(r"^ *(\w+): ([\d.]+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("name", GPUS)
def test_the_compiler_is_told_the_machine_that_the_roofline_stands_on(name):
    told = described(name)
    assert told["device_memory_size"] == CHIPS[name].memory
    assert told["memory_bandwidth"] == CHIPS[name].bandwidth
    # A multiprocessor of this generation does 4,096 bfloat16 FLOPs a clock; products don't run at the highest clock.
    fastest = told["core_count"] * 4096 * told["clock_rate_ghz"] * 1e9
    assert 0.9 < CHIPS[name].peak / fastest < 1


@pytest.mark.parametrize("name", GPUS)
def test_a_target_allows_what_its_multiprocessors_have(name):
    told = described(name)
    assert told["shared_memory_per_block"] < told["shared_memory_per_block_optin"] < told["shared_memory_per_core"]
    assert told["threads_per_block_limit"] <= told["threads_per_core_limit"]
    assert told["threads_per_core_limit"] % told["threads_per_warp"] == 0
    assert told["registers_per_block_limit"] <= told["registers_per_core_limit"]


def test_gpus_are_nodes_of_some_each():
    assert topology.nodes("h100:8") == (1, 8)
    assert topology.nodes("h100:1") == (1, 1)
    assert topology.nodes("h100:16x8") == (16, 8)


@pytest.mark.parametrize("wrong", ["h100", "h100:", "h100:0", "h100:2x", "h100:2x2x2", "h100:eight", "v5e:4x4"])
def test_what_names_no_gpus_is_refused_with_how_to_write_them(wrong):
    with pytest.raises(ValueError, match=rf"topology='{wrong}': write GPUs as h100:8, or as h100:16x8"):
        topology.nodes(wrong)


def test_a_node_holds_no_more_gpus_than_its_links_join():
    with pytest.raises(ValueError, match=r"topology='h100:16': a node has 8 GPUs at most; write h100:2x8"):
        topology.nodes("h100:16")
    with pytest.raises(ValueError, match=r"write h100:8x8"):
        topology.nodes("h100:4x16")


def test_a_missing_compiler_is_named_by_its_extra(monkeypatch):
    def missing(**options):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(ImportError, match=r"topology='h100:8': .* install the extra cuda-compile"):
        topology.devices("h100:8")


def test_nodes_of_gpus_are_no_slices():
    with pytest.raises(ValueError, match="slices=2: is for TPUs"):
        topology.devices("h100:8", slices=2)
