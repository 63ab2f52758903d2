"""The mesh, the table of rules, and the helper that is called with and without a mesh."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from bltjax import families
from bltjax.config import (
    BLTConfig,
    CrossAttentionConfig,
    HashConfig,
    MegabyteConfig,
    MeshConfig,
    SpaceByteConfig,
    TransformerConfig,
)
from bltjax.presets import PRESETS
from bltjax.sharding import (
    LOGICAL_AXES,
    PARAMETER_RULES,
    constrain,
    make_mesh,
    mesh_of,
    parameter_axes,
    parameter_paths,
    parameter_shardings,
    partition_spec,
    put_batch,
    shard_params,
)

TOWER = TransformerConfig(width=16, layers=2, heads=2, hidden=24)
FULL_BLT = BLTConfig(  # every parameter that a BLT can have
    TOWER, TransformerConfig(24, 2, 2, hidden=16), TOWER, CrossAttentionConfig(k=2), HashConfig(buckets=7)
)
FULL_MEGABYTE = MegabyteConfig(TOWER, TOWER, patch_encoder="convolution")
LEARNED_BLT = dataclasses.replace(FULL_BLT, cross_attention=CrossAttentionConfig(pooling="none"))
FULL = (FULL_BLT, LEARNED_BLT, FULL_MEGABYTE, SpaceByteConfig(TOWER, TOWER, TOWER))


@pytest.mark.slow
def test_every_parameter_of_every_preset_matches_one_rule_of_its_rank():
    used = set()
    for model in (*PRESETS.values(), *FULL):
        for path, leaf in parameter_paths(families.abstract_params(model)):
            assert len(parameter_axes(path)) == len(leaf.shape), path
            used |= {pattern for pattern, _ in PARAMETER_RULES if re.fullmatch(pattern, path)}
    assert used == {pattern for pattern, _ in PARAMETER_RULES}, "a rule that nothing needs"


def test_all_but_the_scales_are_split_over_data():
    """Otherwise a pod would hold whole copies of something large."""
    for model in FULL:
        for path, _ in parameter_paths(families.abstract_params(model)):
            assert ("shard" in parameter_axes(path)) == (not path.endswith("norm/scale")), path


@pytest.mark.parametrize(
    "path", ["encoder/layers/attention/query/bias", "layers/attention/query", "x/layers/norm/scale"]
)
def test_a_parameter_without_a_rule_is_refused(path):
    with pytest.raises(ValueError, match=f"'{path}' matches no rule"):
        parameter_axes(path)


def test_a_parameter_with_two_rules_is_refused(monkeypatch):
    monkeypatch.setattr("bltjax.sharding.PARAMETER_RULES", (*PARAMETER_RULES, (r"output/.*", ("shard", "vocabulary"))))
    with pytest.raises(ValueError, match="'output/kernel' matches more than one rule"):
        parameter_axes("output/kernel")


def test_a_mesh_fills_its_open_axis():
    mesh = make_mesh(MeshConfig(replica=2, model=2))
    assert dict(mesh.shape) == {"replica": 2, "data": 2, "model": 2, "sequence": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(model=3), MeshConfig(data=16), MeshConfig(data=4)])
def test_a_mesh_that_does_not_fit_is_refused(config):
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        make_mesh(config)


def test_parameters_are_split_as_their_rules_say():
    mesh = make_mesh(MeshConfig(data=4, model=2))
    shapes = families.abstract_params(FULL_BLT)
    params = shard_params(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), mesh)
    assert mesh_of(params) == mesh
    shards = {path: leaf.addressable_shards[0].data.shape for path, leaf in parameter_paths(params)}
    assert shards["encoder/layers/attention/query/kernel"] == (2, 4, 1, 8)
    assert shards["encoder/layers/attention/out/kernel"] == (2, 1, 8, 4)
    assert shards["global_model/layers/feed_forward/down/kernel"] == (2, 8, 6)
    assert shards["hash_embedding/table"] == (6 * 7, 4)
    assert shards["decoder/norm/scale"] == (16,)


def test_an_axis_that_does_not_divide_names_the_parameter():
    mesh = make_mesh(MeshConfig(data=1, model=4, replica=2))
    with pytest.raises(ValueError, match=r"'byte_embedding/table'|attention.*'heads' axis of 2 over model=4") as caught:
        parameter_shardings(families.abstract_params(FULL_BLT), mesh)
    assert "smaller model axis" in str(caught.value)


def test_a_leaf_of_another_rank_than_its_rule_is_refused():
    with pytest.raises(ValueError, match="'norm/scale' has shape"):
        parameter_shardings({"norm": {"scale": jax.ShapeDtypeStruct((2, 3), jnp.float32)}}, make_mesh())


def test_one_mesh_axis_never_splits_two_dimensions():
    with pytest.raises(ValueError, match="use one mesh axis twice"):
        partition_spec(("heads", "hidden"))


def test_logical_axes_name_mesh_axes():
    mesh = make_mesh()
    for axes in LOGICAL_AXES.values():
        assert set((axes,) if isinstance(axes, str) else axes or ()) <= set(mesh.axis_names)


class TestConstrain:
    x = np.arange(8 * 6 * 4, dtype=np.float32).reshape(8, 6, 4)
    axes = ("batch", "bytes", "heads")

    def test_is_the_identity_without_a_mesh(self):
        x = jnp.asarray(self.x)
        assert constrain(x, self.axes) is x

    @pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
    def test_lays_out_an_activation(self, axis_type):
        mesh = make_mesh(MeshConfig(data=2, model=2, sequence=2), axis_type=axis_type)
        with jax.set_mesh(mesh):
            y = jax.jit(lambda x: constrain(2 * x, self.axes))(jnp.asarray(self.x))
        assert y.addressable_shards[0].data.shape == (4, 3, 2)
        np.testing.assert_array_equal(y, 2 * self.x)

    @pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
    def test_gradients_pass_through(self, axis_type):
        with jax.set_mesh(make_mesh(MeshConfig(data=4, model=2), axis_type=axis_type)):
            gradient = jax.jit(jax.grad(lambda x: jnp.sum(constrain(x, self.axes) ** 2)))(jnp.asarray(self.x))
        np.testing.assert_array_equal(gradient, 2 * self.x)

    def test_leaves_out_axes_that_a_shard_map_has_taken(self):
        def inside(x):
            assert x.shape == (4, 6, 4)
            return constrain(x, self.axes)

        with jax.set_mesh(make_mesh(MeshConfig(data=2, model=4))):
            mapped = jax.shard_map(
                inside, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"), axis_names={"data"}
            )
            np.testing.assert_array_equal(jax.jit(mapped)(jnp.asarray(self.x)), self.x)

    def test_leaves_foreign_meshes_alone(self):
        mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
        with jax.set_mesh(mesh):
            jaxpr = jax.make_jaxpr(lambda x: constrain(x, self.axes))(jnp.asarray(self.x))
        assert not jaxpr.eqns

    def test_refuses_wrong_names(self):
        with pytest.raises(ValueError, match="one for each of the 3 dimensions"):
            constrain(jnp.asarray(self.x), ("batch", None))
        with pytest.raises(ValueError, match="logical axis 'batches' is not known"):
            constrain(jnp.asarray(self.x), ("batches", None, None))


def test_a_batch_is_split_by_rows():
    mesh = make_mesh(MeshConfig(replica=2, data=2, model=2))
    batch = put_batch({"ids": np.arange(32).reshape(8, 4), "starts": None}, mesh)
    assert batch["starts"] is None
    assert batch["ids"].addressable_shards[0].data.shape == (2, 4)
    assert len({math.prod(s.data.shape) for s in batch["ids"].addressable_shards}) == 1
    with pytest.raises(ValueError, match="6 rows does not divide over replica x data = 4"):
        put_batch(np.zeros((6, 2)), mesh)
