import dataclasses
import hashlib
import json
from functools import partial

import pytest

from bltjax.config import (
    BLTConfig,
    ByteTransformerConfig,
    ComputeConfig,
    CrossAttentionConfig,
    EntropyModelConfig,
    HashConfig,
    LanguageModelConfig,
    MeshConfig,
    OptimConfig,
    PatcherConfig,
    RowsConfig,
    TokenTransformerConfig,
    TrainConfig,
    TransformerConfig,
    config_hash,
    family_of,
    from_dict,
    swiglu_width,
    to_dict,
)

LOCAL = TransformerConfig(
    width=16, layers=2, heads=4, kv_heads=2, hidden=40, window=9, rope_theta=7e4, norm_epsilon=1e-6, init_factor="depth"
)
LATENT = TransformerConfig(width=48, layers=3, heads=2, init_std=0.02)
BLT = BLTConfig(
    encoder=LOCAL,
    global_model=LATENT,
    decoder=dataclasses.replace(LOCAL, layers=5),
    cross_attention=CrossAttentionConfig(4, 8, 2, "all_repool", "first", "single", "mean"),
    hash=HashConfig((2, 7), 101, 3, True, "paper", "omit"),
    document_mask=False,
    compute=ComputeConfig("bfloat16", True, "dots"),
)
MODELS = {
    "blt": BLT,
    "entropy": EntropyModelConfig(),
    "byte": ByteTransformerConfig(LATENT),
    "token": TokenTransformerConfig(LATENT, vocabulary_size=999),
}
TRAIN = TrainConfig(
    model=BLT,
    steps=50,
    patcher=PatcherConfig("space", "add", 1.5, 0.25, 3, 24, 6.0),
    rows=RowsConfig(512, 100, 6, 1),
    optim=OptimConfig(1e-3, "wsd", 5, 0.1, 0.3, 0.8, 0.99, 1e-9, 0.2, 0.5, "bfloat16", 6.0, 64),
    mesh=MeshConfig(2, 2, 2, 3),
    accumulation=3,
    seed=4,
    log_every=2,
    checkpoint_every=7,
    keep_every=21,
    max_skips=2,
)


def fields_in(config):
    """(class and field, whether it has its default value) of a configuration and all that it holds."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_in(value)
        else:
            yield f"{type(config).__name__}.{field.name}", value == field.default


@pytest.mark.parametrize("family", MODELS)
def test_a_model_survives_json(family):
    model = MODELS[family]
    values = json.loads(json.dumps(to_dict(model)))
    assert values["family"] == family == family_of(model)
    assert from_dict(type(model), values) == model


@pytest.mark.parametrize("family", MODELS)
def test_a_run_survives_json_whatever_its_model(family):
    run = TRAIN if family == "blt" else TrainConfig(model=MODELS[family], steps=3)
    again = from_dict(TrainConfig, json.loads(json.dumps(to_dict(run))))
    assert again == run and type(again.model) is type(run.model)
    assert hash(again) == hash(run) and config_hash(again) == config_hash(run)


def test_no_field_of_that_run_has_its_default_everywhere():
    # For a field lost on the way through JSON would come back with its default.
    found = list(fields_in(TRAIN))
    differs = {name for name, is_default in found if not is_default}
    assert {name for name, _ in found} - differs == {"ComputeConfig.attention"}  # which has one choice


def test_any_other_value_makes_another_hash():
    changes = [
        {"seed": 5},
        {"steps": 51},
        {"optim": dataclasses.replace(TRAIN.optim, peak_rate=1.0000001e-3)},
        {"rows": dataclasses.replace(TRAIN.rows, slots=None)},
        {"patcher": dataclasses.replace(TRAIN.patcher, threshold=1.5000001)},
        {"model": dataclasses.replace(BLT, document_mask=True)},
        {"model": dataclasses.replace(BLT, hash=dataclasses.replace(BLT.hash, sizes=(7, 2)))},
        {"model": dataclasses.replace(BLT, global_model=dataclasses.replace(LATENT, window=10))},
    ]
    runs = [TRAIN, *(dataclasses.replace(TRAIN, **change) for change in changes)]
    assert len({config_hash(run) for run in runs}) == len(runs)
    # The family counts as well: these two have the same fields with the same values.
    tower = EntropyModelConfig().tower
    assert config_hash(EntropyModelConfig()) != config_hash(ByteTransformerConfig(tower))


def test_the_hash_is_that_of_the_sorted_json():
    text = b'{"data":-1,"model":1,"replica":1,"sequence":4}'
    assert config_hash(MeshConfig(sequence=4)) == hashlib.sha256(text).hexdigest()[:16]


def test_equal_configurations_have_equal_hashes(unchecked):
    whole, real = (TransformerConfig(16, 1, 2, rope_theta=theta) for theta in (10_000, 10_000.0))
    assert whole == real and config_hash(whole) == config_hash(real)
    assert HashConfig(sizes=[3, 4]) == HashConfig(sizes=(3, 4))


def test_configurations_are_frozen_keys():
    assert {TRAIN: 1}[dataclasses.replace(TRAIN)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        TRAIN.steps = 3


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (TransformerConfig, {"widht": 8}, r"config\.widht is not a known key of TransformerConfig.*: width"),
        (BLTConfig, {"encoder": {"widht": 8}}, r"config\.encoder\.widht .*: width"),
        (TrainConfig, {"model": {"family": "blt", "hash": {"bucket": 8}}}, r"config\.model\.hash\.bucket .*: buckets"),
        (OptimConfig, {"learning_rate": 1.0}, r"config\.learning_rate .*peak_rate"),
        (TrainConfig, {"model": {"family": "bltt"}}, r"config\.model\.family='bltt': .* Did you mean 'blt'"),
        (TrainConfig, {"model": {}}, r"config\.model\.family=None"),
        (ByteTransformerConfig, {"family": "token"}, r"config\.family='token': a ByteTransformerConfig"),
        (TransformerConfig, {"width": 8, "layers": 1}, r"config: .*missing.*'heads'"),
        (BLTConfig, {"encoder": {"width": 8, "layers": 1, "heads": 3}}, r"config\.encoder: heads=3: must divide"),
        (TrainConfig, {"rows": 512}, r"config\.rows=512: must be a value of type RowsConfig"),
        (TrainConfig, {"steps": "ten"}, r"config\.steps='ten': .* type int"),
        (TransformerConfig, {"width": 8.0}, r"config\.width=8\.0: .* type int"),
        (TransformerConfig, {"window": "512"}, r"config\.window='512': .* type int or None"),
        (ComputeConfig, {"unroll": "false"}, r"config\.unroll='false': .* type bool"),
        (HashConfig, {"sizes": ["3"]}, r"config\.sizes=\('3',\): .*tuple"),
        (HashConfig, {"sizes": 3}, r"config\.sizes=3: .*tuple"),
        (OptimConfig, {"peak_rate": True}, r"config\.peak_rate=True: .* type float"),
    ],
)
def test_what_cannot_be_read_is_named(cls, values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(cls, values)


tower = partial(TransformerConfig, width=16, layers=1, heads=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tower(width=0), "width=0"),
        (lambda: tower(heads=0), "heads=0"),
        (lambda: tower(heads=3), "heads=3: must divide the width, 16"),
        (lambda: tower(heads=16), "heads=16: .*even"),
        (lambda: tower(layers=-1), "layers=-1"),
        (lambda: tower(kv_heads=0), "kv_heads=0"),
        (lambda: tower(heads=4, kv_heads=3), "kv_heads=3: must divide heads, 4"),
        (lambda: tower(heads=2, kv_heads=4), "kv_heads=4: must divide heads, 2"),
        (lambda: tower(hidden=0), "hidden=0"),
        (lambda: tower(window=0), "window=0"),
        (lambda: tower(rope_theta=1.0), "rope_theta=1.0"),
        (lambda: tower(norm_epsilon=0.0), "norm_epsilon=0.0"),
        (lambda: tower(init_std=-0.1), "init_std=-0.1"),
        (lambda: tower(init_factor="dept"), "init_factor='dept': choose.*Did you mean 'depth'"),
        (lambda: ComputeConfig(dtype="float16"), r"compute\.dtype='float16': choose one of 'float32', 'bfloat16'"),
        (lambda: ComputeConfig(remat="all"), r"compute\.remat='all'"),
        (lambda: ComputeConfig(attention="flash"), r"compute\.attention='flash'"),
        (lambda: HashConfig(sizes=(3, 0)), r"hash\.sizes=\(3, 0\)"),
        (lambda: HashConfig(sizes=(3, 3)), r"hash\.sizes=\(3, 3\): must not repeat"),
        (lambda: HashConfig(buckets=0), r"hash\.buckets=0"),
        (lambda: HashConfig(buckets=2**31), r"hash\.buckets=2147483648"),
        (lambda: HashConfig(functions=12), r"hash\.functions=12"),
        (lambda: HashConfig(power_order="newest"), r"hash\.power_order='newest'"),
        (lambda: HashConfig(short_ngrams="skip"), r"hash\.short_ngrams='skip'"),
        (lambda: CrossAttentionConfig(k=0), r"cross_attention\.k=0"),
        (lambda: CrossAttentionConfig(heads=0), r"cross_attention\.heads=0"),
        (lambda: CrossAttentionConfig(kv_heads=0), r"cross_attention\.kv_heads=0"),
        (lambda: CrossAttentionConfig(encoder="first"), r"cross_attention\.encoder='first'"),
        (lambda: CrossAttentionConfig(decoder="last"), r"cross_attention\.decoder='last'"),
        (lambda: CrossAttentionConfig(residual="triple"), r"cross_attention\.residual='triple'"),
        (lambda: CrossAttentionConfig(pooling="avg"), r"cross_attention\.pooling='avg'"),
        (lambda: BLTConfig(tower(), tower(), tower(width=32)), r"decoder\.width=32: .* 16"),
        (lambda: BLTConfig(tower(layers=0), tower(), tower()), r"encoder\.layers=0"),
        (lambda: BLTConfig(tower(), tower(), tower(layers=0)), r"decoder\.layers=0"),
        (
            lambda: BLTConfig(tower(), tower(), tower(), CrossAttentionConfig(heads=3)),
            r"cross_attention\.heads=3: must divide the local width, 16",
        ),
        (
            lambda: BLTConfig(tower(), tower(), tower(), CrossAttentionConfig(heads=4, kv_heads=3)),
            r"cross_attention\.kv_heads=3: must divide its heads, 4",
        ),
        (lambda: LanguageModelConfig(tower(), vocabulary_size=4), "vocabulary_size=4"),
        (lambda: TokenTransformerConfig(tower(), vocabulary_size=4), "vocabulary_size=4"),
        (lambda: ByteTransformerConfig(tower(), vocabulary_size=256), "vocabulary_size=256: a byte model has 260"),
        (lambda: EntropyModelConfig(vocabulary_size=300), "vocabulary_size=300: a byte model has 260"),
        (lambda: PatcherConfig(rule="spaces"), r"patcher\.rule='spaces'.*Did you mean 'space'"),
        (lambda: PatcherConfig(variant="rise"), r"patcher\.variant='rise'"),
        (lambda: PatcherConfig(variant="add", threshold=1.0), r"patcher\.threshold_add=None"),
        (lambda: PatcherConfig(threshold=float("nan")), r"patcher\.threshold=nan"),
        (lambda: PatcherConfig(size=0), r"patcher\.size=0"),
        (lambda: PatcherConfig(max_patch_length=0), r"patcher\.max_patch_length=0"),
        (lambda: PatcherConfig(mean_patch_bytes=1.0), r"patcher\.mean_patch_bytes=1\.0"),
        (lambda: RowsConfig(bytes=1), r"rows\.bytes=1"),
        (lambda: RowsConfig(slots=1), r"rows\.slots=1"),
        (lambda: RowsConfig(batch=0), r"rows\.batch=0"),
        (lambda: OptimConfig(schedule="linear"), r"optim\.schedule='linear'"),
        (lambda: OptimConfig(peak_rate=0.0), r"optim\.peak_rate=0\.0"),
        (lambda: OptimConfig(peak_rate=float("nan")), r"optim\.peak_rate=nan"),
        (lambda: OptimConfig(warmup_steps=-1), r"optim\.warmup_steps=-1"),
        (lambda: OptimConfig(final_fraction=1.5), r"optim\.final_fraction=1\.5"),
        (lambda: OptimConfig(decay_fraction=0.0), r"optim\.decay_fraction=0\.0"),
        (lambda: OptimConfig(beta1=1.0), r"optim\.beta1=1\.0"),
        (lambda: OptimConfig(beta2=-0.1), r"optim\.beta2=-0\.1"),
        (lambda: OptimConfig(epsilon=0.0), r"optim\.epsilon=0\.0"),
        (lambda: OptimConfig(weight_decay=-1.0), r"optim\.weight_decay=-1\.0"),
        (lambda: OptimConfig(clip_norm=0.0), r"optim\.clip_norm=0\.0"),
        (lambda: MeshConfig(data=0), r"mesh=\(1, 0, 1, 1\)"),
        (lambda: MeshConfig(model=-1), r"mesh=\(1, -1, -1, 1\): only one"),
        (lambda: dataclasses.replace(TRAIN, steps=0), "steps=0"),
        (lambda: dataclasses.replace(TRAIN, log_every=0), "log_every=0"),
        (lambda: dataclasses.replace(TRAIN, checkpoint_every=0), "checkpoint_every=0"),
        (lambda: dataclasses.replace(TRAIN, accumulation=4), r"accumulation=4: must divide rows\.batch, 6"),
        (lambda: dataclasses.replace(TRAIN, steps=4), r"optim\.warmup_steps=5: must not exceed steps, 4"),
        (lambda: dataclasses.replace(TRAIN, patcher=None), "patcher=None"),
        (lambda: TrainConfig(MODELS["byte"], 9, PatcherConfig()), "patcher=PatcherConfig"),
    ],
)
def test_a_refused_value_is_named(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("width", "hidden"),
    [(512, 1536), (768, 2048), (1024, 2816), (1280, 3584), (2048, 5632), (2560, 6912), (3072, 8192), (4096, 11008)],
)
def test_feed_forward_widths_of_the_released_code(width, hidden):
    assert swiglu_width(width) == hidden == TransformerConfig(width, 1, 2).hidden_width


def test_an_input_projection_only_where_the_widths_differ():
    local = tower(width=16)
    same = BLTConfig(local, tower(width=48), local, CrossAttentionConfig(k=3))
    assert same.patch_width == 48 and not same.has_input_projection
    assert dataclasses.replace(same, cross_attention=CrossAttentionConfig(k=2)).has_input_projection
