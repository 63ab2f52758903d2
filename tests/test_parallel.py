"""The modules under every mesh: the same numbers, and no more talk between devices than the layout needs."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from bltjax import parallel, vocabulary
from bltjax.config import (
    BLTConfig,
    CrossAttentionConfig,
    HashConfig,
    MegabyteConfig,
    MeshConfig,
    SpaceByteConfig,
    TokenTransformerConfig,
    TransformerConfig,
)
from bltjax.families import abstract_params, build
from bltjax.patching import Patches
from bltjax.sharding import batch_sharding, make_mesh, parameter_shardings, shard_params
from tests.programs import quick_jit

ROWS, BYTES, SLOTS = 8, 64, 32
LOCAL = TransformerConfig(width=32, layers=2, heads=4, kv_heads=4, hidden=48, window=9)
BLT = BLTConfig(
    encoder=LOCAL,
    global_model=TransformerConfig(width=64, layers=2, heads=8, kv_heads=4, hidden=80),
    decoder=dataclasses.replace(LOCAL, window=24),  # more than the bytes of a device
    cross_attention=CrossAttentionConfig(k=2, heads=4),
    hash=HashConfig(sizes=(3, 4), buckets=11, functions=2),
)
MODELS = {
    "blt": BLT,
    "blt-all": dataclasses.replace(
        BLT, cross_attention=CrossAttentionConfig(k=2, heads=4, encoder="all", decoder="first", pooling="mean")
    ),
    "token": TokenTransformerConfig(dataclasses.replace(LOCAL, heads=8, window=None), vocabulary_size=300),
}
BASELINES = {
    "megabyte": MegabyteConfig(
        BLT.global_model,
        dataclasses.replace(LOCAL, window=None),
        patch_bytes=4,
        context_bytes=BYTES,
        patch_encoder="convolution",
        cross_patch_bytes=2,
    ),
    "spacebyte": SpaceByteConfig(LOCAL, BLT.global_model, BLT.decoder),
}
ONE_AXIS = [{axis: size} for axis in ("replica", "data", "model", "sequence") for size in (2, 4)]
MESHES = [*ONE_AXIS, {"data": 8}, {"sequence": 8}, {"data": 2, "model": 2, "sequence": 2}, {"replica": 2, "data": 4}]
ALL_BUT_REPLICA = {"data": 2, "model": 2, "sequence": 2}
KINDS = (AxisType.Auto, AxisType.Explicit)
FIRST = [(ALL_BUT_REPLICA, KINDS[1]), ({"data": 8}, KINDS[0]), ({"replica": 2, "sequence": 4}, KINDS[0])]
# A BLT under every mesh of both kinds; the others, of the same modules, under every mesh of one kind by turns.
REST = [("blt", sizes, kind) for sizes in MESHES for kind in KINDS if (sizes, kind) not in FIRST]
REST += [
    (name, sizes, KINDS[(n + m) % 2]) for m, name in enumerate(["blt-all", "token"]) for n, sizes in enumerate(MESHES)
]
# Of these CI has each axis alone, eight parts of a row, and for every family the mesh of most axes.
SLOW = [each for each in REST if each[1] == ALL_BUT_REPLICA or (each[1] in ONE_AXIS[1::2] and each[2] is KINDS[1])]
SLOW += [("blt", {"sequence": 8}, KINDS[0]), ("blt", {"replica": 2, "data": 4}, KINDS[1])]


@functools.cache
def inputs(name):
    """Params of std 0.3 or so, ids with documents that end, patches, and a cotangent for the logits."""
    config, random = {**MODELS, **BASELINES}[name], np.random.default_rng(3)
    shapes = abstract_params(config)
    params = jax.tree.map(lambda leaf: np.float32(random.normal(scale=0.3, size=leaf.shape)), shapes)
    ids = random.integers(4, 260, (ROWS, BYTES)).astype(np.int32)
    ids[random.random(ids.shape) < 0.05] = vocabulary.EOS
    patches = None
    if config.reads_patches:
        starts = random.random((ROWS, BYTES + 1)) < 0.35
        starts[:, :2] = True
        starts &= np.cumsum(starts, axis=1) <= SLOTS
        patches = Patches.from_starts(starts, SLOTS)
    cotangent = np.float32(random.normal(size=(ROWS, BYTES, getattr(config, "vocabulary_size", 260))))
    return params, ids, patches, cotangent


def logits_and_gradients(config, params, ids, patches, cotangent):
    def loss(params):
        logits = build(config).apply({"params": params}, ids, patches)
        return jnp.sum(logits * cotangent), logits

    gradients, logits = jax.grad(loss, has_aux=True)(params)
    return logits, gradients


@functools.cache
def alone(name):
    return quick_jit(functools.partial(logits_and_gradients, {**MODELS, **BASELINES}[name]))(*inputs(name))


def mesh_of(sizes, kind):
    count = int(np.prod(list(sizes.values())))
    return make_mesh(MeshConfig(**{"data": 1, **sizes}), jax.devices()[:count], kind)


def check_equal(name, sizes, kind):
    params, *rest = inputs(name)
    mesh = mesh_of(sizes, kind)
    with jax.set_mesh(mesh):
        program = quick_jit(functools.partial(logits_and_gradients, {**MODELS, **BASELINES}[name]))
        logits, gradients = program(shard_params(params, mesh), *rest)
    wanted, wanted_gradients = alone(name)
    np.testing.assert_allclose(logits, wanted, atol=1e-5 * np.abs(wanted).max())
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(wanted_gradients), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max(), err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("sizes", "kind"),
    [FIRST[0], *(pytest.param(*each, marks=pytest.mark.slow) for each in FIRST[1:])],
    ids=str,
)
def test_a_mesh_changes_neither_logits_nor_gradients(sizes, kind):
    check_equal("blt", sizes, kind)


@pytest.mark.slow
def test_what_goes_in_two_phases_is_the_same(monkeypatch):
    monkeypatch.setattr(parallel, "IN_TWO_PHASES", 8)  # as rows of 2 and columns of 4
    check_equal("blt", {"data": 8}, AxisType.Auto)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "kind"),
    [
        (ALL_BUT_REPLICA, KINDS[1]),
        pytest.param(ALL_BUT_REPLICA, KINDS[0], marks=pytest.mark.thorough),
        pytest.param({"replica": 2, "sequence": 4}, KINDS[0], marks=pytest.mark.thorough),
    ],
)
@pytest.mark.parametrize("name", BASELINES)
def test_no_mesh_changes_a_baseline(name, sizes, kind):
    check_equal(name, sizes, kind)


def test_a_device_with_parts_of_patches_is_refused():
    config = dataclasses.replace(BASELINES["megabyte"], patch_bytes=16, context_bytes=BYTES)
    params = abstract_params(config)
    _, *rest = inputs("megabyte")
    with (
        jax.set_mesh(mesh_of({"sequence": 8}, AxisType.Auto)),
        pytest.raises(ValueError, match="no whole patches of 16"),
    ):
        jax.eval_shape(functools.partial(logits_and_gradients, config), params, *rest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes", "kind"),
    [each if each in SLOW else pytest.param(*each, marks=pytest.mark.thorough) for each in REST],
    ids=str,
)
def test_no_mesh_changes_any_family(name, sizes, kind):
    check_equal(name, sizes, kind)


@pytest.mark.parametrize(("sizes", "what"), [({"data": 3}, "8 batch"), ({"sequence": 5}, "64 positions")])
def test_rows_and_positions_that_do_not_divide_are_refused(sizes, what):
    params, *rest = inputs("blt")
    config = dataclasses.replace(BLT, encoder=LOCAL)
    with jax.set_mesh(mesh_of(sizes, AxisType.Auto)), pytest.raises(ValueError, match=f"{what} do not divide over"):
        jax.eval_shape(functools.partial(logits_and_gradients, config), params, *rest)


def test_under_explicit_axes_gradients_lie_as_the_parameters_do():
    params, *rest = inputs("blt")
    mesh = mesh_of({"data": 2, "model": 2, "sequence": 2}, AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = shard_params(params, mesh)
        _, gradients = jax.eval_shape(functools.partial(logits_and_gradients, BLT), params, *rest)
    for (path, got), leaf in zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(params), strict=True):
        assert got.sharding.spec == leaf.sharding.spec, jax.tree_util.keystr(path)


def compiled(config, sizes, unroll=True):
    mesh = mesh_of(sizes, AxisType.Auto)
    config = dataclasses.replace(config, compute=dataclasses.replace(config.compute, unroll=unroll))
    _, *rest = inputs("blt")
    shapes = abstract_params(config)
    shardings = parameter_shardings(shapes, mesh)
    params = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)
    with jax.set_mesh(mesh):
        program = jax.jit(
            functools.partial(logits_and_gradients, config), out_shardings=(None, shardings)
        ).lower(params, *rest)  # fmt: skip
        return program.compile().as_text()


def test_the_hash_tables_are_never_gathered():
    rows = 4 * 1009
    config = dataclasses.replace(BLT, hash=HashConfig(sizes=(3, 4), buckets=1009, functions=2))
    text = compiled(config, {"data": 4, "model": 2})
    shapes = re.findall(r"f32\[(\d+(?:,\d+)*)\]", text)
    widths = {shape for shape in shapes if shape.startswith(f"{rows},") or shape.endswith(f",{rows}")}
    assert widths == {f"{rows},8"}, "only parts of the table, a quarter of its width of 32"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [{"replica": 4}, {"replica": 2, "data": 2}])
def test_replicas_go_round_a_loop_as_often_as_their_own_rows_need(sizes, kind):
    rows, step = jnp.arange(8.0), jnp.float32(1.0)

    def until_seven(step, rows):
        """How often each row's device goes round: until its last row is 7."""
        rounds = jnp.zeros(len(rows))
        return jax.lax.while_loop(
            lambda carry: jnp.any(carry[0] < 7), lambda carry: (carry[0] + step, carry[1] + 1), (rows, rounds)
        )[1]

    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[:4], kind)
    with jax.set_mesh(mesh):
        placed = jax.device_put(rows, batch_sharding(mesh))
        program = jax.jit(parallel.by_replica(until_seven)).lower(step, placed).compile()
        found = np.asarray(program(step, placed))
    talks = re.search(r"all-reduce|all-gather|all-to-all|collective-permute", program.as_text()) is not None
    if sizes == {"replica": 4}:
        assert found.tolist() == [7, 7, 5, 5, 3, 3, 1, 1] and not talks
    else:  # left to the compiler
        assert found.tolist() == [7] * 8 and talks


@pytest.mark.slow
def test_windows_send_their_halo_and_no_more():
    """Of keys and values only the last `window - 1` positions of a neighbour's part travel."""
    text = compiled(dataclasses.replace(BLT, decoder=LOCAL), {"sequence": 4}, unroll=False)
    sent = re.findall(r"= f32\[([\d,]+)\]\S* collective-permute(?:-start)?\(", text)
    assert sent, "the windows reach into the neighbour's bytes"
    assert {shape for shape in sent if "8,4," in shape} == {"8,4,8,8"}  # rows, heads, window - 1, head width
