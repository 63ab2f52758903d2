import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from bltjax import families
from bltjax.config import (
    BLTConfig,
    ByteTransformerConfig,
    ComputeConfig,
    CrossAttentionConfig,
    EntropyModelConfig,
    HashConfig,
    LanguageModelConfig,
    MegabyteConfig,
    SpaceByteConfig,
    TokenTransformerConfig,
    TransformerConfig,
)
from bltjax.families import abstract_params
from bltjax.flops import PEAKS, cross_layers, flops_per_byte, mean_keys, mfu, parameters
from bltjax.patching.patches import Patches
from bltjax.presets import preset


@pytest.mark.parametrize(
    ("name", "bytes_per_token", "expected"),
    [
        ("token-470m", 3.7, 3.14e8),
        ("token-450m", 4.4, 3.15e8),
        ("token-3.6b", 3.7, 2.13e9),
        ("token-3.9b", 4.4, 2.13e9),
    ],
)
def test_token_models_cost_what_table_2_of_the_paper_says(name, bytes_per_token, expected):
    cost = flops_per_byte(preset(name), bytes_per_token, 8192)
    assert cost.forward == pytest.approx(expected, rel=0.01)
    assert cost.training == 3 * cost.forward


@pytest.mark.parametrize(
    ("name", "gflops", "shares"),
    [
        ("blt-400m", (0.416, 0.382, 0.316, 0.269), (64, 61, 54, 47)),
        ("blt-1b", (1.007, 0.924, 0.761, 0.643), (68, 65, 58, 51)),
        ("blt-2b", (1.427, 1.295, 1.038, 0.849), (76, 74, 69, 62)),
        ("blt-4b", (2.488, 2.234, 1.735, 1.368), (86, 85, 81, 77)),
        ("blt-8b", (3.732, 3.341, 2.569, 1.998), (90, 89, 86, 82)),
    ],
)
def test_blt_presets_cost_what_the_papers_equations_give(name, gflops, shares):
    for patch_size, cost, share in zip((4, 4.5, 6, 8), gflops, shares, strict=True):
        breakdown = flops_per_byte(preset(name), patch_size, 8192)
        assert breakdown.forward / 1e9 == pytest.approx(cost, rel=0.01)
        assert 100 * breakdown.parts["global"] / breakdown.forward == pytest.approx(share, abs=0.6)


@pytest.mark.parametrize(("width", "heads", "expected"), [(512, 8, 9.6e7), (768, 12, 2.1e8)])
def test_the_entropy_model_costs_a_tenth_to_a_fifth_of_a_gigaflop(width, heads, expected):
    model = EntropyModelConfig(TransformerConfig(width, 14, heads, window=512))
    assert flops_per_byte(model, 1, 8192).forward == pytest.approx(expected, rel=0.01)


def test_megabyte_and_spacebyte_cost_what_the_papers_equations_give():
    """Per byte: 24 layers width^2, 2 layers width (keys + 1), and 2 width 256 for the output, by tower."""
    latent = (24 * 24 * 2048**2 + 2 * 24 * 2048 * 1025) / 8
    local = 24 * 17 * 1024**2 + 2 * 17 * 1024 * 9 + 2 * 1024 * 256
    cost = flops_per_byte(preset("megabyte-1.3b"), 1, 8192)
    assert cost.parts == {"global": pytest.approx(latent), "local": pytest.approx(local)}
    assert cost.forward == pytest.approx(7.432e8, rel=1e-3)
    latent = (24 * 28 * 1536**2 + 2 * 28 * 1536 * (8192 / 6 + 1)) / 6
    local = 24 * 26 * 768**2 + 2 * 26 * 768 * 769 + 2 * 768 * 256
    cost = flops_per_byte(preset("spacebyte-793m"), 6, 8192)
    assert cost.parts["global"] == pytest.approx(latent)
    assert cost.parts["encoder"] + cost.parts["decoder"] == pytest.approx(local)
    assert cost.forward == pytest.approx(6.830e8, rel=1e-3)


MEGABYTE = MegabyteConfig(
    TransformerConfig(24, 2, 2, hidden=20), TransformerConfig(8, 3, 2, hidden=12), patch_bytes=4, context_bytes=64
)


def test_full_counts_every_matrix_product_of_megabyte():
    """14 bytes are 4 patches, the last one completed."""
    extended = dataclasses.replace(MEGABYTE, patch_encoder="convolution", cross_patch_bytes=2)
    global_layer = 2 * 24 * 4 * 24 + 2 * 2 * 2.5 * 24 + 3 * 2 * 24 * 20
    expected = {
        "patch_encoder": 0,
        "global": 2 * 4 * global_layer,
        "global_projection": 16 * 2 * 6 * 8,
        "local": 3 * 16 * (2 * 8 * 32 + 2 * 2 * 2.5 * 8 + 3 * 2 * 8 * 12),
        "output": 16 * 2 * 8 * 260,
    }
    parts = flops_per_byte(MEGABYTE, 1, 14, "full").parts
    assert {name: value * 14 for name, value in parts.items()} == pytest.approx(expected)
    parts = flops_per_byte(extended, 1, 14, "full").parts
    convolution = 16 * (3 + 5 + 7) * 2 * 6 * 6
    more = 3 * 2 * 2 * 8 * 2 * 12  # two keys more for the twelve bytes that have a patch before theirs
    expected |= {"patch_encoder": convolution, "local": expected["local"] + more}
    assert {name: value * 14 for name, value in parts.items()} == pytest.approx(expected)


def test_strided_inference_costs_two_passes():
    twice = dataclasses.replace(MEGABYTE, inference="strided")
    for accounting in ("paper", "full"):
        costs = [flops_per_byte(config, 1, 16, accounting).forward for config in (MEGABYTE, twice)]
        assert costs[1] == 2 * costs[0]


SMALL = BLTConfig(
    encoder=TransformerConfig(8, 2, 2, hidden=20, window=4),
    global_model=TransformerConfig(24, 3, 4, kv_heads=2, hidden=40),
    decoder=TransformerConfig(8, 2, 2, hidden=12, window=100),
    cross_attention=CrossAttentionConfig(k=2, encoder="all", decoder="first"),
    hash=HashConfig(buckets=11),
)


def test_full_counts_every_matrix_product_of_a_row():
    """16 byte positions in 4 patches, each product written out: rows x inputs x outputs x 2."""
    parts = flops_per_byte(SMALL, 4, 16, "full").parts
    encoder_keys = (1 + 2 + 3 + 4 * 13) / 16
    layer = 2 * 8 * (8 + 8 + 8 + 8) + 2 * 2 * encoder_keys * 8 + 2 * 8 * (20 + 20) + 2 * 20 * 8
    global_layer = 2 * 24 * (24 + 12 + 12 + 24) + 2 * 2 * 2.5 * 24 + 2 * 24 * 80 + 2 * 40 * 24
    decoder_layer = 2 * 8 * 32 + 2 * 2 * 8.5 * 8 + 2 * 8 * 24 + 2 * 12 * 8
    cross = 8 * 2 * 8 * 16 + 16 * 2 * 8 * 16 + 2 * 16 * 2 * 8 * 2
    assert {name: value * 16 for name, value in parts.items()} == pytest.approx(
        {
            "encoder": 2 * 16 * layer,
            "encoder_projection": 4 * 2 * 8 * 16,
            "encoder_cross": 2 * cross,
            "global_projection": 4 * 2 * 16 * 24,
            "global": 3 * 4 * global_layer,
            "decoder_projection": 4 * 2 * 24 * 16,
            "decoder_cross": cross,
            "decoder": 2 * 16 * decoder_layer,
            "output": 16 * 2 * 8 * 260,
        }
    )


def test_grouped_queries_make_cross_attention_cheaper_by_their_keys_and_values():
    """Half the key heads: half of the keys' and values' products, over 16 bytes, then over 8 rows."""
    grouped = dataclasses.replace(SMALL, cross_attention=dataclasses.replace(SMALL.cross_attention, kv_heads=1))
    less, more = (flops_per_byte(config, 4, 16, "full").parts for config in (grouped, SMALL))
    saved = {name: 16 * (value - less[name]) for name, value in more.items()}
    expected = {"encoder_cross": 2 * 16 * 2 * 8 * 8, "decoder_cross": 8 * 2 * 8 * 8}
    assert saved == pytest.approx({name: expected.get(name, 0) for name in more})
    shapes = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(grouped)))
    assert sum(parameters(grouped).values()) == shapes


def test_mistake_3_windowed_layers_pay_for_the_mean_of_their_causal_window():
    for window, length in ((1, 5), (3, 5), (5, 5), (9, 5), (None, 5)):
        seen = [min(window or length, position + 1) for position in range(length)]
        assert mean_keys(window, length) == pytest.approx(sum(seen) / length)


@pytest.mark.parametrize("length", [16, 160])
def test_mistake_4_attention_pays_for_its_causal_half_and_once(length):
    """No masked score is paid for, and none a second time as a kernel's backward pass may compute it."""
    tower = TransformerConfig(8, 3, 2, hidden=12)
    per_layer = 2 * 2 * 8  # scores and weighed values, for each key that is seen
    for accounting in ("paper", "full"):
        all_keys = flops_per_byte(ByteTransformerConfig(tower), 1, length, accounting)
        one_key = flops_per_byte(ByteTransformerConfig(dataclasses.replace(tower, window=1)), 1, length, accounting)
        assert all_keys.forward - one_key.forward == pytest.approx(3 * per_layer * ((length + 1) / 2 - 1)), accounting
        assert all_keys.training == 3 * all_keys.forward


def test_mistake_5_padding_is_paid_per_real_byte():
    whole = flops_per_byte(SMALL, 4, 16, "full")
    half = flops_per_byte(SMALL, 4, 16, "full", byte_fill=0.5, patch_fill=0.5)
    # The row and its slots are the same (16 positions, 4 slots); it holds half as many bytes in half as many patches.
    assert half.forward == pytest.approx(2 * whole.forward)
    empty_slots = flops_per_byte(SMALL, 4, 16, "full", patch_fill=0.5)
    assert empty_slots.parts["decoder"] == whole.parts["decoder"]
    assert empty_slots.parts["global_projection"] == 2 * whole.parts["global_projection"]


def test_the_entropy_model_is_charged_once_a_byte_and_its_training_is_shared():
    patcher = EntropyModelConfig(TransformerConfig(8, 1, 1, window=4))
    alone = flops_per_byte(patcher, 1, 16, "full").forward
    without = flops_per_byte(SMALL, 4, 16, "full")
    cost = flops_per_byte(
        SMALL, 4, 16, "full", patcher=patcher, patcher_training_bytes=3000, patcher_runs=5, run_bytes=200
    )
    assert cost.forward == pytest.approx(without.forward + alone)
    assert cost.training == pytest.approx(3 * without.forward + alone + 3 * alone * 3000 / (5 * 200))


def test_short_rows_see_no_more_keys_than_they_have():
    wide = dataclasses.replace(SMALL, encoder=dataclasses.replace(SMALL.encoder, window=None))
    windowed = dataclasses.replace(SMALL, encoder=dataclasses.replace(SMALL.encoder, window=512))
    for accounting in ("paper", "full"):
        assert flops_per_byte(wide, 4, 16, accounting) == flops_per_byte(windowed, 4, 16, accounting)


BYTES = ByteTransformerConfig(TransformerConfig(8, 1, 1))


@pytest.mark.parametrize(
    ("config", "arguments", "named"),
    [
        (SMALL, {"accounting": "fulll"}, "accounting"),
        (SMALL, {"patch_size": 0.5}, "patch_size"),
        (SMALL, {"context_bytes": 3}, "context_bytes"),
        (BYTES, {"patch_size": 4}, "patch_size"),
        (MEGABYTE, {"patch_size": 4}, "patch_size"),
        (SMALL, {"byte_fill": 0.0, "accounting": "full"}, "byte_fill"),
        (SMALL, {"patch_fill": 1.1, "accounting": "full"}, "patch_fill"),
        (SMALL, {"patch_fill": 0.9}, "fill"),
        (SMALL, {"patcher": EntropyModelConfig()}, "patcher"),
        (SMALL, {"patcher_training_bytes": 9, "accounting": "full"}, "patcher_training_bytes"),
        (SMALL, {"patcher": EntropyModelConfig(), "patcher_training_bytes": 9, "accounting": "full"}, "run_bytes"),
        (SMALL, {"patcher_runs": 0, "accounting": "full"}, "patcher_runs"),
    ],
)
def test_senseless_arguments_are_refused_by_name(unchecked, config, arguments, named):
    with pytest.raises(ValueError, match=named):
        flops_per_byte(config, **{"patch_size": 4, "context_bytes": 16, **arguments})


def test_mfu_is_a_share_of_the_peak():
    assert mfu(1e15, 10, PEAKS["tpu-v5e"]) == pytest.approx(1e14 / 197e12)
    with pytest.raises(ValueError, match="seconds"):
        mfu(1.0, 0.0, 1.0)


UNROLLED = ComputeConfig(unroll=True)
FLAT = LanguageModelConfig(TransformerConfig(256, 2, 4, hidden=512), compute=UNROLLED)
COUNTED = {
    "byte": (ByteTransformerConfig(FLAT.tower, compute=UNROLLED), 1, None),
    "token": (TokenTransformerConfig(FLAT.tower, vocabulary_size=1000, compute=UNROLLED), 1, None),
    "entropy": (EntropyModelConfig(FLAT.tower, compute=UNROLLED), 1, None),
    "blt": (
        BLTConfig(
            encoder=TransformerConfig(128, 1, 2),
            global_model=TransformerConfig(192, 2, 3),
            decoder=TransformerConfig(128, 2, 2),
            hash=HashConfig(sizes=(3,), buckets=11),
            compute=UNROLLED,
        ),
        4,
        32,
    ),
    "megabyte": (
        MegabyteConfig(
            TransformerConfig(512, 2, 4),
            TransformerConfig(128, 2, 2),
            patch_bytes=4,
            context_bytes=128,
            patch_encoder="convolution",
            cross_patch_bytes=2,
            compute=UNROLLED,
        ),
        1,
        None,
    ),
    "spacebyte": (
        SpaceByteConfig(
            TransformerConfig(128, 1, 2), TransformerConfig(192, 2, 3), TransformerConfig(128, 2, 2), compute=UNROLLED
        ),
        4,
        32,
    ),
    "blt, no cross-attention": (
        BLTConfig(
            encoder=TransformerConfig(128, 2, 4),
            global_model=TransformerConfig(384, 1, 4),
            decoder=TransformerConfig(128, 2, 2),
            cross_attention=CrossAttentionConfig(k=3, encoder="none", decoder="none"),
            hash=HashConfig(sizes=(3,), buckets=11),
            compute=UNROLLED,
        ),
        4,
        32,
    ),
    "blt, learned queries": (
        BLTConfig(
            encoder=TransformerConfig(128, 2, 4),
            global_model=TransformerConfig(384, 1, 4),
            decoder=TransformerConfig(128, 2, 2),
            cross_attention=CrossAttentionConfig(k=3, encoder="all", decoder="first", pooling="none"),
            hash=HashConfig(sizes=(3,), buckets=11),
            compute=UNROLLED,
        ),
        4,
        32,
    ),
    "blt, grouped queries, other cross-attention": (
        BLTConfig(
            encoder=TransformerConfig(128, 2, 4, kv_heads=2),
            global_model=TransformerConfig(384, 1, 4, kv_heads=1),
            decoder=TransformerConfig(128, 2, 2),
            cross_attention=CrossAttentionConfig(k=3, kv_heads=1, encoder="all_repool", decoder="first"),
            hash=HashConfig(sizes=(3,), buckets=11),
            compute=UNROLLED,
        ),
        4,
        32,
    ),
}


COUNTED_ROW = 128  # one block of attention: every product is computed, those that the mask hides included


def forward_of(model, slots):
    def forward(params, ids, starts):
        patches = None if slots is None else Patches.from_starts(starts, slots)
        return families.build(model).apply({"params": params}, ids, patches)

    ids = jax.ShapeDtypeStruct((1, COUNTED_ROW), jnp.int32)
    starts = jax.ShapeDtypeStruct((1, COUNTED_ROW + 1), jnp.bool_)
    return forward, (families.abstract_params(model), ids, starts)


def full_with_hidden_products(model, patch_size, slots):
    """The full accounting of a row, with the products that the mask hides, which it leaves out."""
    hidden = 0.0
    if isinstance(model, MegabyteConfig):
        size, cross, local = model.patch_bytes, model.cross_patch_bytes, model.local_model
        positions = [(model.global_model, COUNTED_ROW // size)]
        later, before_the_row = COUNTED_ROW * (size - 1) / 2, cross * size
        hidden = local.layers * 4 * (later + before_the_row) * local.width
    else:
        towers = [model.encoder, model.decoder] if slots else [model.tower]
        positions = [(tower, COUNTED_ROW) for tower in towers] + ([(model.global_model, slots)] if slots else [])
    hidden += sum(t.layers * n * 4 * (n - mean_keys(t.window, n)) * t.width for t, n in positions)
    return flops_per_byte(model, patch_size, COUNTED_ROW, "full").forward * COUNTED_ROW + hidden


def matrix_products(jaxpr, times=1):
    """FLOPs of all matrix products of a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += times * 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
        inside = times * equation.params["length"] if equation.primitive.name == "scan" else times
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += matrix_products(inner, inside)
    return total


NEWER = ("megabyte", "spacebyte")


@pytest.mark.parametrize("name", COUNTED)
def test_the_full_accounting_is_every_product_that_the_models_compute(name):
    model, patch_size, slots = COUNTED[name]
    forward, shapes = forward_of(model, slots)
    # Cross-attention multiplies and sums without matrix products: each byte with k rows, twice, in each layer.
    is_blt = isinstance(model, BLTConfig)
    pairs = sum(cross_layers(model)) * COUNTED_ROW * model.cross_attention.k if is_blt else 0
    expected = full_with_hidden_products(model, patch_size, slots) - (4 * pairs * model.encoder.width if is_blt else 0)
    assert matrix_products(jax.make_jaxpr(forward)(*shapes).jaxpr) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["byte", "blt", *(pytest.param(n, marks=pytest.mark.slow) for n in NEWER)])
def test_the_full_accounting_is_what_the_compiler_counts(name):
    """XLA counts a little more, for it counts norms, softmax, rotary and SiLU too: up to 2 % at these widths."""
    model, patch_size, slots = COUNTED[name]
    forward, shapes = forward_of(model, slots)
    counted = jax.jit(forward).lower(*shapes).compile().cost_analysis()["flops"]
    expected = full_with_hidden_products(model, patch_size, slots)
    assert expected < counted < 1.02 * expected


@pytest.mark.parametrize(("name", "patch_size", "share"), [("token-450m", 4.4, 0.24), ("token-470m", 3.7, 0.07)])
def test_a_vocabulary_is_paid_for_in_every_token(name, patch_size, share):
    """2 h V FLOPs a token: a quarter of the forward pass for 128,256 tokens, a fourteenth for 32,000."""
    model = preset(name)
    output = 2 * model.tower.width * model.vocabulary_size / patch_size
    for accounting in ("paper", "full"):
        cost = flops_per_byte(model, patch_size, 8192, accounting)
        without = flops_per_byte(dataclasses.replace(model, vocabulary_size=5), patch_size, 8192, accounting)
        assert output / cost.forward == pytest.approx(share, abs=0.01)
        assert cost.forward - without.forward == pytest.approx(output, rel=1e-3)


def test_token_output_grows_with_the_vocabulary_alone():
    small, large = (
        flops_per_byte(TokenTransformerConfig(BYTES.tower, vocabulary_size=v), 4, 16, "full").parts for v in (300, 600)
    )
    assert large["output"] == 2 * small["output"]
    assert large["tower"] == small["tower"]
