import dataclasses
import hashlib
import json

import pytest

from bltjax.config import (
    BLTConfig,
    ByteTransformerConfig,
    ComputeConfig,
    EntropyModelConfig,
    HashConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    TransferConfig,
    TransformerConfig,
    config_hash,
    family_of,
    from_dict,
    to_dict,
)
from tests.config.examples import BLT, LATENT, MODELS, SMALLER, TRAIN


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
    changes = {"inference": "basic"} if family == "megabyte" else {}
    model = dataclasses.replace(MODELS[family], **changes)
    patcher = TRAIN.patcher if model.reads_patches else None
    run = TRAIN if family == "blt" else TrainConfig(model=model, steps=3, patcher=patcher)
    again = from_dict(TrainConfig, json.loads(json.dumps(to_dict(run))))
    assert again == run and type(again.model) is type(run.model)
    assert hash(again) == hash(run) and config_hash(again) == config_hash(run)


def test_no_field_of_these_has_its_default_everywhere():
    # For a field lost on the way through JSON would come back with its default.
    found = [*fields_in(TRAIN), *fields_in(MODELS["megabyte"]), *fields_in(MODELS["spacebyte"])]
    differs = {name for name, is_default in found if not is_default}
    assert {name for name, _ in found} - differs == {"ComputeConfig.attention"}  # which has one choice


def test_any_other_value_makes_another_hash():
    changes = [
        {"seed": 5},
        {"steps": 51},
        {"optim": dataclasses.replace(TRAIN.optim, peak_rate=1.0000001e-3)},
        {"optim": dataclasses.replace(TRAIN.optim, transfer=TransferConfig("width-depth", SMALLER))},
        {"optim": dataclasses.replace(TRAIN.optim, transfer=TransferConfig("width", BLT))},
        {"optim": dataclasses.replace(TRAIN.optim, transfer=None)},
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


def test_a_field_that_came_later_is_written_only_where_it_is_set():
    """So that the hashes of runs made before it came stay what they were: this is that of a version without it."""
    assert "transfer" not in to_dict(OptimConfig()) and to_dict(TRAIN.optim)["transfer"]["rule"] == "width"
    assert config_hash(OptimConfig()) == "86f16db8f8f468c5"


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
