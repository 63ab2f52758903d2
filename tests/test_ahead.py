import dataclasses
import math

import numpy as np
import pytest
from jax.experimental import topologies

from bltjax import topology
from bltjax.ahead import Plan, compile_ahead, model_flops, talk_seconds
from bltjax.chips import CHIPS
from bltjax.config import MeshConfig, OptimConfig
from bltjax.flops import parameters
from bltjax.hlo import Program, by_axis
from bltjax.presets import preset
from bltjax.sharding import make_mesh
from bltjax.step import compile_step


def plan(name, remat="none", **changes):
    model = preset(name)
    compute = dataclasses.replace(model.compute, dtype="bfloat16", remat=remat)
    return Plan(dataclasses.replace(model, compute=compute), **changes)


def test_model_flops_are_those_of_all_bytes_of_a_batch():
    small = plan("blt-400m", topology="v5e:4x4", rows=1, positions=8192, slots=2048)
    many = dataclasses.replace(small, rows=48)
    assert model_flops(many) == 48 * model_flops(small)
    # 470M parameters in the global model for each of 2,048 patches, six FLOPs each, and the local models beside it
    assert 6 * 470e6 * 2048 < model_flops(small) < 2 * 6 * 470e6 * 2048


def test_gpus_of_a_node_talk_over_its_links_and_nodes_over_the_network():
    """16 GPUs in two nodes as [replica 4, data 4]: data lies within a node, replica half in each of them."""
    nodes = np.repeat([0, 1], 8).reshape(4, 4)
    chip, names = CHIPS["h100"], ("replica", "data")
    assert talk_seconds(chip, nodes, names, {("data",): 450e9}) == {"links": 1.0}
    # two members of a group in each node, each with a network card, so each card carries half
    assert talk_seconds(chip, nodes, names, {("replica",): 50e9}) == {"links": 0.0, "network": 0.5}
    everywhere = {("data", "replica"): 8 * 50e9}
    assert talk_seconds(chip, nodes, names, everywhere) == {"links": 0.0, "network": 1.0}
    assert talk_seconds(chip, nodes, names, {(): 8 * 50e9}) == {"links": 0.0, "network": 1.0}, "unknown: all axes"
    assert talk_seconds(CHIPS["v5e"], nodes, names, {("replica",): 200e9}) == {"links": 1.0}


@pytest.mark.pods
def test_only_replicas_lie_in_several_slices(nobody_to_ask):
    described = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2)
    mesh = make_mesh(MeshConfig(replica=4, data=2), described.devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (slices == slices[:, :1]).all(), "a replica lies in one slice"
    assert set(slices.ravel()) == {0, 1}
    with pytest.raises(ValueError, match=r"mesh\(replica=1\) over 2 slices: must be a multiple"):
        make_mesh(MeshConfig(data=8), described.devices)


@pytest.mark.pods
# What was compiled without a chip can be stored but not read again; it is compiled anew then.
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry:UserWarning")
@pytest.mark.parametrize(
    ("name", "topology", "mesh"),
    [
        ("blt-tiny", "v5e:4x4", {"data": 16}),
        ("blt-tiny", "v6e:4x4", {"data": 16}),
        ("blt-tiny", "v5p:4x4x8", {"replica": 8, "data": 16}),
        ("blt-tiny", "v6e:16x16", {"replica": 16, "data": 16}),
        ("blt-400m", "v5e:4x4", {"data": 16}),
        ("blt-400m", "v6e:4x4", {"data": 16}),
        ("blt-8b", "v5p:4x4x8", {"data": 128}),
        ("blt-8b", "v6e:16x16", {"data": 256}),
    ],
)
def test_a_preset_compiles_for_its_pod(name, topology, mesh, nobody_to_ask):
    rows = math.prod(mesh.values())
    size = {"positions": 256, "slots": 64} if name == "blt-tiny" else {"positions": 8192, "slots": 2048}
    report = compile_ahead(plan(name, "full", topology=topology, mesh=MeshConfig(**mesh), rows=rows, **size))
    assert report.devices == rows
    assert report.free > 0
    assert {axes for one in report.traffic for axes in one.axes} == set(mesh)
    # Only kernels are gathered, and of tables what is looked up: activations would be hundreds of megabytes more.
    sent = by_axis(report.traffic)
    for axes, least in report.least.items():
        assert sent[tuple(axes.split("+"))] < 1.1 * least + 1e6, axes
    held = report.parameters + report.optimizer
    assert held == pytest.approx(12 * sum(parameters(preset(name)).values()) / mesh["data"], rel=0.2)
    if name != "blt-tiny":  # whose products are smaller than a tile
        assert report.compiled_flops / report.model_flops < 4 / 3 * 1.15  # the forward pass is computed twice


@pytest.mark.gpus
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry:UserWarning")
def test_a_preset_compiles_for_a_node_of_gpus():
    size = {"rows": 8, "positions": 512, "slots": 128}
    asked = plan("blt-cpu-0", "full", topology="h100:8", mesh=MeshConfig(data=8), **size)
    report = compile_ahead(asked)
    assert report.devices == 8 and report.free > 0
    assert {axes for one in report.traffic for axes in one.axes} == {"data"}
    assert set(report.seconds) == {"compute", "memory", "links"}, "one node needs no network"
    held = report.parameters + report.optimizer
    assert held == pytest.approx(12 * sum(parameters(asked.model).values()) / 8, rel=0.2)
    # Products of XLA's own, Triton's and cuBLAS's kernels are those that a CPU computes, but for some padding.
    step = compile_step(asked.model, OptimConfig(), make_mesh(asked.mesh), slots=asked.slots)
    computed = Program(step.lower(asked.rows, asked.positions).compile().as_text() or "").flops
    assert report.compiled_flops == pytest.approx(computed, rel=0.02)


@pytest.mark.gpus
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry:UserWarning")
def test_in_bfloat16_a_gpu_gets_attention_by_cudnn_which_is_not_here():
    model = preset("byte-cpu-2")
    model = dataclasses.replace(model, compute=dataclasses.replace(model.compute, dtype="bfloat16", unroll=True))
    with topology.traceable("h100:1"):
        step = compile_step(model, OptimConfig(), make_mesh(MeshConfig(), topology.devices("h100:1")))
        program = step.lower(2, 256).compile().as_text() or ""
    layers = model.tower.layers
    assert program.count('custom_call_target="__cudnn$fmhaScaleBiasSoftmax"') == layers
    assert program.count('custom_call_target="__cudnn$fmhaScaleBiasSoftmaxBackward"') == layers


@pytest.mark.gpus
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry:UserWarning")
def test_only_replicas_lie_in_several_nodes():
    asked = plan("byte-tiny", topology="h100:2x2", rows=4, positions=256)
    with pytest.raises(ValueError, match=r"mesh\(replica=1\) over 2 nodes: must be a multiple of them"):
        compile_ahead(asked)
    report = compile_ahead(dataclasses.replace(asked, mesh=MeshConfig(replica=2)))
    assert {axes for one in report.traffic for axes in one.axes} == {"data", "replica"}
    crossed = sum(one.sent for one in report.traffic if "replica" in one.axes)
    least = 4 * sum(parameters(asked.model).values()) / 2  # the gradients of a device's share of the parameters
    assert crossed == pytest.approx(least, rel=0.1)
    # what all four devices sum leaves each node over two network cards
    assert 0.9 * crossed / 50e9 < report.seconds["network"] <= crossed / 50e9
