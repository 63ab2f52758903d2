"""Rules of muP and CompleteP: one for each parameter, folded exactly, and what they are for: the coordinate check."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from bltjax import families
from bltjax.config import (
    BLTConfig,
    ByteTransformerConfig,
    CrossAttentionConfig,
    HashConfig,
    MegabyteConfig,
    OptimConfig,
    SpaceByteConfig,
    TokenTransformerConfig,
    TransferConfig,
    TransformerConfig,
)
from bltjax.layers import RMSNorm, matrix_std
from bltjax.loss import loss_sums
from bltjax.optim import adamw
from bltjax.patching.patches import Patches
from bltjax.presets import PRESETS, preset
from bltjax.sharding import parameter_axes, parameter_paths
from bltjax.transfer import RULES, Factors, role_of, scaled, transfer_factors
from tests.test_sharding import FULL

LARGER = 4  # times as wide, or as deep, as the base, in the coordinate check
RATE, STEPS = 0.02, 4


def factors_of(rule, base, model):
    return dict(parameter_paths(transfer_factors(TransferConfig(rule, base), model)))


SMALL = [*FULL, *(model for name, model in PRESETS.items() if name.endswith("-tiny"))]


@pytest.mark.parametrize(
    "models", [SMALL, pytest.param([*PRESETS.values(), *FULL], marks=pytest.mark.thorough)], ids=len
)
def test_every_parameter_of_every_preset_has_one_rule_and_no_rule_is_for_nothing(models):
    used = set()
    for model in models:
        for path, leaf in parameter_paths(families.abstract_params(model)):
            _, inputs = role_of(path)
            assert inputs <= len(leaf.shape) - (parameter_axes(path)[0] == "layers"), path
            used |= {pattern for pattern, _, _ in RULES if re.fullmatch(pattern, path)}
    assert used == {pattern for pattern, _, _ in RULES}
    with pytest.raises(ValueError, match="'layers/attention/bias' matches 0 rules"):
        role_of("layers/attention/bias")


@pytest.mark.parametrize("rule", ["width", "width-depth"])
def test_a_base_is_trained_as_it_is(rule):
    for model in SMALL:
        assert set(factors_of(rule, model, model).values()) == {Factors()}


def test_a_constant_of_the_forward_pass_and_its_factors_train_alike():
    """x (a W), moved by AdamW as it is, is x V with V = a W moved as `folded` says; not so if one were left out."""
    a, rng = 0.3, np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8, 4)).astype(np.float32)
    w = {"kernel": jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)}
    optim = OptimConfig(epsilon=0.05, weight_decay=0.4, clip_norm=1e6)  # an epsilon and a decay that are felt

    def trained(params, constant, factors):
        loss = lambda p: jnp.sum((x @ (constant * p["kernel"]) - y) ** 2)  # noqa: E731
        optimizer = adamw(optim, factors)
        state = optimizer.init(params)
        for _ in range(12):
            updates, state = optimizer.update(jax.grad(loss)(params), state, params, rate=0.05)
            params = optax.apply_updates(params, updates)
        return params["kernel"]

    by = {"kernel": Factors().folded(a)}
    constant, folded = a * trained(w, a, None), trained(scaled(w, by), 1.0, by)
    np.testing.assert_allclose(folded, constant, rtol=2e-5, atol=1e-6)
    for field in ("initial", "rate", "decay", "epsilon"):
        wrong = {"kernel": dataclasses.replace(by["kernel"], **{field: 1.0})}
        assert np.abs(trained(scaled(w, wrong), 1.0, wrong) - constant).max() > 1e-3, field


def test_a_matrix_follows_what_it_reads_and_each_tower_its_own_width():
    model = preset("blt-cpu-2")
    found = factors_of("width", preset("blt-cpu-0"), model)
    local, wide = model.encoder.width / 16, model.global_model.width / 32
    assert (local, wide) == (2, 3)
    rates = {
        "byte_embedding/table": 1, "hash_embedding/table": 1, "decoder/norm/scale": 1,
        "decoder/cross_attention/key/kernel": local, "encoder/patch_projection/kernel": local,
        "decoder/patch_projection/kernel": wide, "global_model/layers/attention/out/kernel": wide,
        "global_model/layers/feed_forward/down/kernel": 256 / 88, "decoder/output/kernel": local,
        # the base has none: its patches, two rows of 16, are as wide as its global model
        "global_model/input_projection/kernel": local,
    }  # fmt: skip
    for path, slower in rates.items():
        assert found[path].rate == pytest.approx(1 / slower), path
        assert found[path].rate * found[path].decay == pytest.approx(1), "a step takes off what it does in the base"
    stds = {path: by.initial for path, by in found.items() if by.initial != 1}
    tables = dict.fromkeys(["byte_embedding/table", "hash_embedding/table"], local**0.5)
    assert stds == pytest.approx({**tables, "decoder/output/kernel": local**-0.5})


def test_depth_divides_what_branches_add_and_nothing_else():
    by_width, by_both = (
        factors_of(rule, preset("byte-cpu-2"), preset("byte-cpu-4")) for rule in ("width", "width-depth")
    )
    deeper = 4 / 2
    for path, by in by_both.items():
        before = by_width[path]
        if path.endswith(("out/kernel", "down/kernel")):
            assert dataclasses.astuple(by) == pytest.approx(
                (before.initial / deeper, before.rate / deeper, before.decay * deeper, before.epsilon)
            )
        else:
            inside = path.startswith("layers/")
            assert by == dataclasses.replace(before, epsilon=by.epsilon)
            assert by.epsilon == pytest.approx(before.epsilon / (deeper if inside else 1))


def test_a_stack_whose_stream_doubles_in_each_layer_needs_no_division():
    def divided(residual, decoder):
        cross = CrossAttentionConfig(residual=residual, decoder=decoder)
        base = dataclasses.replace(family("blt"), cross_attention=cross)
        deep = dataclasses.replace(base, decoder=dataclasses.replace(base.decoder, layers=3))
        return {path for path, by in factors_of("width-depth", base, deep).items() if by.initial != 1}

    stack = {f"decoder/layers/{name}/kernel" for name in ("attention/out", "feed_forward/down")}
    assert divided("double", "all") == set()
    assert divided("double", "first") == stack
    assert divided("single", "all") == stack | {"decoder/cross_attention/out/kernel"}


def test_another_head_width_is_folded_into_the_query():
    base, model = preset("megabyte-cpu-1"), preset("megabyte-cpu-2")
    assert (base.local_model.head_width, model.local_model.head_width) == (24, 16)
    found = factors_of("width", base, model)
    query, key = (found[f"local_model/layers/attention/{name}/kernel"] for name in ("query", "key"))
    # Scores are divided by 16^0.5; they were to be divided as the base's are, times 16 / 24: by 24^0.5 (16 / 24).
    assert dataclasses.astuple(query) == pytest.approx(dataclasses.astuple(key.folded(4 / (24**0.5 * 16 / 24))))
    assert found["global_model/layers/attention/query/kernel"] == found["global_model/layers/attention/key/kernel"]


def test_tied_logits_are_divided_where_they_come_from():
    found = factors_of("width", preset("megabyte-cpu-0"), preset("megabyte-cpu-4"))
    assert found["local_embedding/table"] == found["local_pad/table"]
    assert found["local_model/norm/scale"] == Factors(epsilon=1 / 4).folded(1 / 4)
    assert found["global_model/norm/scale"].rate == 1


@pytest.mark.parametrize("init", [{"init_std": 0.02}, {"init_factor": "width"}, {"init_factor": "depth"}])
def test_matrices_begin_with_the_std_of_the_base_by_fan_in_however_it_is_set(init):
    base, model = (
        ByteTransformerConfig(TransformerConfig(width, layers, width // 4, hidden=2 * width, **init))
        for width, layers in ((8, 1), (128, 3))
    )
    found = factors_of("width-depth", base, model)
    for path, fan_in, divided in (
        ("attention/query", 1, 1), ("feed_forward/up", 1, 1), ("attention/out", 1, 3), ("feed_forward/down", 2, 3)
    ):  # fmt: skip
        std = matrix_std(model.tower, 128 * fan_in) * found[f"layers/{path}/kernel"].initial
        assert std == pytest.approx(matrix_std(base.tower, 8 * fan_in) / 4 / divided), path
    width_alone = factors_of("width", base, model)["layers/attention/out/kernel"].initial
    deep = dataclasses.replace(base.tower, layers=3)  # by width the tower's own rule of depth stays
    assert matrix_std(model.tower, 128) * width_alone == pytest.approx(matrix_std(deep, 8) / 4)


@pytest.mark.parametrize(
    ("base", "model", "words"),
    [
        ("token-cpu-0", "byte-cpu-1", "transfer.base: is a token model, this one a byte"),
        ("token-470m", "token-450m", "transfer.base: must differ in sizes alone .* vocabulary_size: 32000, not 128256"),
        ("megabyte-cpu-0", "megabyte-1.3b", "patch_bytes: 4, not 8"),
    ],
)
def test_a_base_that_differs_in_more_than_sizes_is_refused(base, model, words):
    with pytest.raises(ValueError, match=words):
        transfer_factors(TransferConfig("width", preset(base)), preset(model))


def test_a_base_without_layers_says_nothing_of_them():
    tower = TransformerConfig(16, 0, 2)
    base, model = (ByteTransformerConfig(dataclasses.replace(tower, layers=layers)) for layers in (0, 1))
    with pytest.raises(ValueError, match="has no parameter 'layers/attention/key/kernel'"):
        transfer_factors(TransferConfig("width", base), model)


# The coordinate check (Yang et al. 2022, appendix D.1): how far each tower's stream, and the logits, have moved from
# where they began after a few steps. At one learning rate that grows with the width (and depth) unless a rule holds it.


def family(name, m=1, layers=1):
    def tower(width):
        return TransformerConfig(m * width, layers, m * width // 8, hidden=2 * m * width)

    cross = CrossAttentionConfig(residual="single")
    return {
        "byte": lambda: ByteTransformerConfig(tower(32)),
        "token": lambda: TokenTransformerConfig(tower(32), vocabulary_size=300),
        "blt": lambda: BLTConfig(tower(16), tower(48), tower(16), cross, HashConfig((3,), 97)),
        "megabyte": lambda: MegabyteConfig(tower(32), tower(16), patch_bytes=4, context_bytes=64),
        "spacebyte": lambda: SpaceByteConfig(tower(16), tower(32), tower(16)),
    }[name]()


def text():
    """Rows of which every second byte follows from the one before."""
    ids = np.random.default_rng(0).integers(4, 260, (4, 33)).astype(np.int32)
    ids[:, 1::2] = ids[:, 0:32:2] // 2 + 2
    starts = np.zeros((4, 33), bool)
    starts[:, 0] = True
    starts[:, 1::3] = True
    return ids, starts


@functools.lru_cache
def program(config):
    """Loss, and the streams of all towers with the logits; and gradients."""
    ids, starts = text()
    patches = Patches.from_starts(jnp.asarray(starts), 16) if config.reads_patches else None

    def watched(params):
        streams = {}

        def see(call, args, kwargs, context):
            out, module = call(*args, **kwargs), context.module
            if context.method_name != "__call__" or module.scope is None:
                return out  # what is inside a scan has no value here
            path = "/".join(module.path)
            if isinstance(module, RMSNorm) and not re.search("layers|cross_attention", path):
                streams[path] = args[0]
            elif path in ("encoder", "global_model"):
                streams[path] = out[0] if isinstance(out, tuple) else out
            return out

        with nn.intercept_methods(see):
            logits = families.build(config).apply({"params": params}, ids[:, :-1], patches)
        if isinstance(config, MegabyteConfig):
            del streams["global_model"]  # comes out of its norm
        sums = loss_sums(logits, ids[:, 1:], np.ones_like(ids[:, 1:]))
        return (sums.byte_nats + sums.special_nats) / ids[:, 1:].size, {**streams, "logits": logits}

    quick = {"xla_backend_optimization_level": 0}
    begin = jax.jit(functools.partial(families.initialize, config), compiler_options=quick)(jax.random.key(0))
    return jax.jit(jax.value_and_grad(watched, has_aux=True), compiler_options=quick), begin


@functools.lru_cache
def moved(config, transfer):
    """RMS of what each stream has moved in a few steps."""
    step, params = program(config)
    factors = None if transfer is None else transfer_factors(transfer, config)
    params = params if factors is None else scaled(params, factors)
    optimizer = adamw(OptimConfig(), factors)
    state = optimizer.init(params)
    update = jax.jit(
        lambda g, state, params: optimizer.update(g, state, params, rate=RATE),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    first = None
    for _ in range(STEPS):
        (_, streams), gradients = step(params)
        first = streams if first is None else first
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    (_, streams), _ = step(params)
    return {name: float(jnp.sqrt(jnp.mean((streams[name] - first[name]) ** 2))) for name in streams}


def growth(base, model, rule):
    """How many times further each stream of a model moves than that of its base."""
    before = moved(base, None)
    after = moved(model, None if rule is None else TransferConfig(rule, base))
    return {name: after[name] / before[name] for name in before}


@pytest.mark.slow
def test_with_width_nothing_moves_further_under_the_rule_and_all_does_without():
    base, wide = family("byte"), family("byte", LARGER)
    held, free = growth(base, wide, "width"), growth(base, wide, None)
    assert set(held) == {"norm", "logits"}
    assert max(held.values()) < 1.2, held
    assert free["norm"] > 2 and free["logits"] > 1.2, free


@pytest.mark.slow
def test_with_depth_nothing_moves_further_under_the_rule_and_all_does_under_that_of_width():
    base, deep = family("byte"), family("byte", layers=LARGER)
    held, free = growth(base, deep, "width-depth"), growth(base, deep, "width")
    assert max(held.values()) < 1.2, held
    assert free["norm"] > 2, free


TOWERS = {
    "token": {"norm"},
    "blt": {"encoder", "global_model", "decoder/norm"},
    "megabyte": {"global_model/norm", "local_model/norm"},
    "spacebyte": {"encoder", "global_model", "decoder/norm"},
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", TOWERS)
def test_in_every_family_no_tower_moves_further_under_the_rules_and_each_does_without(name):
    base, large = family(name), family(name, LARGER, LARGER)
    held, by_width, free = (growth(base, large, rule) for rule in ("width-depth", "width", None))
    assert set(held) == TOWERS[name] | {"logits"}
    assert max(held.values()) < 1.2, held
    assert min(by_width[tower] for tower in TOWERS[name]) > 1.8, by_width
    assert all(free[tower] > 3 * by_width[tower] for tower in TOWERS[name]), (free, by_width)
