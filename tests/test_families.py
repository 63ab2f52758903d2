import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from bltjax.config import (
    BLTConfig,
    ByteTransformerConfig,
    ComputeConfig,
    CrossAttentionConfig,
    EntropyModelConfig,
    HashConfig,
    MegabyteConfig,
    SpaceByteConfig,
    TokenTransformerConfig,
    TransformerConfig,
)
from bltjax.families import MODULES, abstract_params, build, initialize
from bltjax.patching import Patches
from bltjax.presets import preset
from tests.programs import quick_jit

LOCAL = TransformerConfig(width=8, layers=2, heads=4, kv_heads=2, hidden=12, window=6)
BLT = BLTConfig(
    encoder=LOCAL,
    global_model=TransformerConfig(width=20, layers=3, heads=2, hidden=28),
    decoder=dataclasses.replace(LOCAL, layers=5),
    cross_attention=CrossAttentionConfig(k=3, heads=2),
    hash=HashConfig(sizes=(3, 5), buckets=7, functions=2),
)
FAMILIES = {
    "blt": BLT,
    "entropy": EntropyModelConfig(LOCAL),
    "byte": ByteTransformerConfig(LOCAL),
    "token": TokenTransformerConfig(LOCAL, vocabulary_size=300),
    "megabyte": MegabyteConfig(
        TransformerConfig(width=20, layers=3, heads=2, hidden=28),
        dataclasses.replace(LOCAL, window=None),
        patch_bytes=4,
        context_bytes=30,
        patch_encoder="convolution",
    ),
    "spacebyte": SpaceByteConfig(LOCAL, TransformerConfig(20, 3, 2, hidden=28), dataclasses.replace(LOCAL, layers=5)),
}


def shapes(config):
    return {"/".join(path): leaf.shape for path, leaf in flatten_dict(abstract_params(config)).items()}


def layers(under, count, width, heads, key_heads, head_width, hidden):
    return {
        f"{under}/layers/attention/query/kernel": (count, width, heads, head_width),
        f"{under}/layers/attention/key/kernel": (count, width, key_heads, head_width),
        f"{under}/layers/attention/value/kernel": (count, width, key_heads, head_width),
        f"{under}/layers/attention/out/kernel": (count, heads, head_width, width),
        f"{under}/layers/attention_norm/scale": (count, width),
        f"{under}/layers/feed_forward/gate/kernel": (count, width, hidden),
        f"{under}/layers/feed_forward/up/kernel": (count, width, hidden),
        f"{under}/layers/feed_forward/down/kernel": (count, hidden, width),
        f"{under}/layers/feed_forward_norm/scale": (count, width),
    }


def cross(under, count, width, heads, key_heads):
    head_width = width // heads
    return {
        f"{under}/cross_attention/query_norm/scale": (count, width),
        f"{under}/cross_attention/memory_norm/scale": (count, width),
        f"{under}/cross_attention/query/kernel": (count, width, heads, head_width),
        f"{under}/cross_attention/key/kernel": (count, width, key_heads, head_width),
        f"{under}/cross_attention/value/kernel": (count, width, key_heads, head_width),
        f"{under}/cross_attention/out/kernel": (count, heads, head_width, width),
    }


def blt_tree(encoder_cross=1, decoder_cross=5, key_heads=2):
    return {
        "byte_embedding/table": (260, 8),
        "hash_embedding/table": (2 * 2 * 7, 8),
        **layers("encoder", 2, 8, 4, 2, 2, 12),
        "encoder/patch_projection/kernel": (8, 24),
        **cross("encoder", encoder_cross, 8, 2, key_heads),
        "global_model/input_projection/kernel": (24, 20),
        **layers("global_model", 3, 20, 2, 2, 10, 28),
        "decoder/patch_projection/kernel": (20, 24),
        **cross("decoder", decoder_cross, 8, 2, key_heads),
        **layers("decoder", 5, 8, 4, 2, 2, 12),
        "decoder/norm/scale": (8,),
        "decoder/output/kernel": (8, 260),
    }


def test_the_tree_of_a_blt():
    assert shapes(BLT) == blt_tree()


@pytest.mark.parametrize("encoder", ["all", "all_repool"])
def test_cross_attention_has_a_layer_wherever_it_is_used(encoder):
    changed = dataclasses.replace(BLT.cross_attention, encoder=encoder, decoder="first", kv_heads=1)
    config = dataclasses.replace(BLT, cross_attention=changed)
    assert shapes(config) == blt_tree(encoder_cross=2, decoder_cross=1, key_heads=1)


def test_what_is_not_used_is_not_there():
    config = dataclasses.replace(
        BLT, global_model=dataclasses.replace(BLT.global_model, width=24, hidden=30), hash=HashConfig(sizes=())
    )
    tree = shapes(config)
    assert "global_model/input_projection/kernel" not in tree and "hash_embedding/table" not in tree


@pytest.mark.parametrize("family", ["entropy", "byte", "token"])
def test_the_tree_of_a_flat_family(family):
    rows = FAMILIES[family].vocabulary_size
    tree = {path.removeprefix("/"): shape for path, shape in layers("", 2, 8, 4, 2, 2, 12).items()}
    tree |= {"embedding/table": (rows, 8), "norm/scale": (8,), "output/kernel": (8, rows)}
    assert shapes(FAMILIES[family]) == tree


def test_the_tree_of_megabyte():
    assert shapes(FAMILIES["megabyte"]) == {
        "global_embedding/table": (260, 5),
        "position_embedding/table": (30, 5),
        "global_pad/table": (4, 5),
        "patch_encoder/convolution_3/kernel": (3, 5, 5),
        "patch_encoder/convolution_5/kernel": (5, 5, 5),
        "patch_encoder/convolution_7/kernel": (7, 5, 5),
        **layers("global_model", 3, 20, 2, 2, 10, 28),
        "global_model/norm/scale": (20,),
        "global_projection/kernel": (5, 8),
        "local_embedding/table": (260, 8),  # the output too
        "local_pad/table": (1, 8),
        **layers("local_model", 2, 8, 4, 2, 2, 12),
        "local_model/norm/scale": (8,),
    }


def test_the_tree_of_spacebyte():
    assert shapes(FAMILIES["spacebyte"]) == {
        "byte_embedding/table": (260, 8),
        **layers("encoder", 2, 8, 4, 2, 2, 12),
        **layers("global_model", 3, 20, 2, 2, 10, 28),
        **layers("decoder", 5, 8, 4, 2, 2, 12),
        "decoder/norm/scale": (8,),
        "decoder/output/kernel": (8, 260),
    }


def test_released_models_have_their_published_parameters_without_allocating_any():
    def count(name):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(preset(name))))

    assert count("blt-1b") == 4_533_879_808
    assert count("entropy-100m") == 99_512_064
    assert count("blt-7b") == 10_553_570_560


@pytest.mark.parametrize("dtype", ["int16", "int32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_called_alike(family, dtype):
    config, ids = FAMILIES[family], jax.ShapeDtypeStruct((2, 9), dtype)
    patches = jax.eval_shape(lambda: Patches.from_starts(jnp.ones((2, 10), bool), 9)) if config.reads_patches else None
    logits = jax.eval_shape(build(config).apply, {"params": abstract_params(config)}, ids, patches)
    rows = 300 if family == "token" else 260
    assert (logits.shape, logits.dtype) == ((2, 9, rows), jnp.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_mistake_18_logits_keep_float32_where_all_else_is_bfloat16(family):
    """260 logits would lose less by rounding than 128k: every family's come from a product summed in float32."""
    config = dataclasses.replace(FAMILIES[family], compute=ComputeConfig("bfloat16"))
    ids = jnp.asarray(np.random.default_rng(0).integers(4, 260, (1, 9)), jnp.int32)
    patches = Patches.from_starts(jnp.ones((1, 10), bool), 9) if config.reads_patches else None
    params = quick_jit(initialize, static_argnums=0)(config, jax.random.key(0))
    logits = quick_jit(build(config).apply)({"params": params}, ids, patches)
    assert logits.dtype == jnp.float32
    rounded = logits.astype(jnp.bfloat16).astype(jnp.float32)
    assert np.mean(np.asarray(logits != rounded)) > 0.9


@pytest.mark.parametrize("family", ["entropy", "byte", "token"])
def test_flat_families_refuse_patches(family, unchecked):
    patches = Patches.from_starts(jnp.ones((1, 10), bool), 9)
    with pytest.raises(ValueError, match=r"patches: .*pass None"):
        initialize_with = build(FAMILIES[family]).init
        jax.eval_shape(initialize_with, jax.random.key(0), jnp.zeros((1, 9), jnp.int32), patches)


def test_every_family_has_its_own_module():
    assert {type(build(config)).__name__ for config in FAMILIES.values()} == {cls.__name__ for cls in MODULES.values()}
    assert len(set(MODULES.values())) == len(MODULES) == len(FAMILIES)


def test_a_configuration_of_no_family_is_named(unchecked):
    with pytest.raises(ValueError, match=r"config=TransformerConfig.*no family"):
        build(LOCAL)


def test_fresh_matrices_have_the_deviations_of_the_released_code():
    """Normal, cut at three deviations; deviation fan_in^-0.5, divided by the tower's factor within its layers."""
    config = BLTConfig(
        encoder=TransformerConfig(width=64, layers=1, heads=4, hidden=96, init_factor="depth"),  # sqrt(2 (1 + 1)) = 2
        global_model=TransformerConfig(width=80, layers=2, heads=4, hidden=112, init_std=0.03),
        decoder=TransformerConfig(width=64, layers=1, heads=4, hidden=96),
        cross_attention=CrossAttentionConfig(k=2),
        hash=HashConfig(sizes=(3,), buckets=100),
    )
    wanted = {
        "byte_embedding": 64**-0.5,
        "hash_embedding": 64**-0.5,
        "encoder/layers/feed_forward/down": 96**-0.5 / 2,
        "encoder/layers": 64**-0.5 / 2,
        "encoder/cross_attention": 64**-0.5 / 2,
        "encoder/patch_projection": 64**-0.5,
        "global_model/input_projection": 128**-0.5,
        "global_model/layers": 0.03,
        "decoder/patch_projection": 80**-0.5,
        "decoder/cross_attention": 64**-0.5,
        "decoder/layers/feed_forward/down": 96**-0.5,
        "decoder/layers": 64**-0.5,
        "decoder/output": 64**-0.5,
    }
    fresh = quick_jit(initialize, static_argnums=0)(config, jax.random.key(0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), fresh) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), abstract_params(config)
    )
    for path, leaf in flatten_dict(fresh).items():
        name = "/".join(path)
        if path[-1] == "scale":
            assert (leaf == 1).all(), name
            continue
        std = next(std for prefix, std in wanted.items() if name.startswith(prefix))
        drawn = np.asarray(leaf) / std
        assert drawn.std() == pytest.approx(0.98658, rel=0.05), name  # 1, but for the cut
        assert np.abs(drawn).max() < 3.0001 and np.abs(drawn.mean()) < 0.08, name


def test_the_factor_of_the_current_depth_grows_from_layer_to_layer():
    local = TransformerConfig(width=64, layers=3, heads=4, hidden=96, init_factor="current_depth")
    config = BLTConfig(
        encoder=local,
        global_model=TransformerConfig(width=128, layers=4, heads=4, hidden=192, init_factor="current_depth"),
        decoder=local,
        cross_attention=CrossAttentionConfig(k=2, encoder="last", decoder="all"),
        hash=HashConfig(sizes=(), buckets=100),
    )
    fresh = quick_jit(initialize, static_argnums=0)(config, jax.random.key(0))
    stacked = {path: leaf for path, leaf in flatten_dict(fresh).items() if {"layers", "cross_attention"} & set(path)}
    assert {len(leaf) for leaf in stacked.values()} == {1, 3, 4}
    for path, leaf in stacked.items():
        fan_in = leaf.shape[-1] if path[-2] == "out" else leaf.shape[1]  # "out" is [layers, heads, head width, width]
        for layer, values in enumerate(np.asarray(leaf)):
            if path[-1] == "scale":
                assert (values == 1).all(), path
            else:
                assert values.std() * fan_in**0.5 * np.sqrt(2 * (layer + 1)) == pytest.approx(0.987, rel=0.05), path
