import dataclasses

import numpy as np
import pytest

from bltjax.config import PatcherConfig, TokenTransformerConfig, TransformerConfig
from bltjax.generate.source import Source
from bltjax.interop.huggingface_config import Pretrained
from bltjax.presets import preset
from tests.generate.models import CASES, FLAT, Reversed

CASE = CASES["released, global"]
PATCHER = PatcherConfig(threshold=1.0)
TOKENS = TokenTransformerConfig(TransformerConfig(16, 1, 2, hidden=24), vocabulary_size=260)


def blt(**changes):
    return Source(**{**{"config": CASE.config, "params": {}, "patcher": PATCHER,
                        "entropy_config": CASE.entropy, "entropy_params": {}}, **changes})  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: blt(patcher=None), "patcher=None: a BLTConfig needs the rule"),
        (lambda: blt(patcher=PatcherConfig(rule="bpe")), "'bpe': where its patches end depends on bytes that are not"),
        (lambda: blt(entropy_params=None), "entropy_params=None: the entropy rule needs the entropy model"),
        (lambda: blt(patcher=PatcherConfig()), r"patcher\.threshold=None: not yet calibrated"),
        (lambda: Source(FLAT, {}, PATCHER), "a ByteTransformerConfig reads no patches, and takes none"),
        (lambda: Source(preset("megabyte-tiny"), {}, PATCHER), "a MegabyteConfig reads no patches, and takes none"),
        (lambda: Source(preset("spacebyte-tiny"), {}), "patcher=None: a SpaceByteConfig needs the rule"),
        (lambda: Source(TOKENS, {}), "tokenizer=None: a TokenTransformerConfig needs its tokenizer"),
        (lambda: Source(FLAT, {}, tokenizer=Reversed()), "reads bytes, and takes none"),
        (
            lambda: Source(dataclasses.replace(TOKENS, vocabulary_size=300), {}, tokenizer=Reversed()),
            "tokenizer has 260 ids.*the model has 300",
        ),
        (lambda: Source.of(Pretrained(CASE.config, {})), "no entropy model or no threshold"),
        (
            lambda: Source.of(Pretrained(CASE.config, {}, CASE.entropy, {}, float("inf"))),
            "threshold=inf: must be a finite number",
        ),
    ],
)
def test_what_cannot_be_generated_from_is_refused_with_a_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_checkpoint_brings_its_rule_or_is_given_one():
    whole = Pretrained(CASE.config, {"a": 1}, CASE.entropy, {"b": 2}, 1.25, 7)
    source = Source.of(whole)
    assert source.patcher == PatcherConfig(threshold=1.25, max_patch_length=7)
    assert source.entropy_params == {"b": 2} and Source.of(source) is source
    given = Source.of(Pretrained(CASE.config, {}), PatcherConfig(rule="space"))
    assert given.patcher == PatcherConfig(rule="space") and given.entropy_params is None


def test_any_bytes_become_ids_and_come_back():
    raw = bytes(range(256)) + b"\xff\xfe"
    for source in (Source(FLAT, {}), Source(TOKENS, {}, tokenizer=Reversed())):
        ids = source.ids_of(raw)
        assert ids[0] == 1 and len(ids) == 259 and source.text_of(ids) == raw
        assert source.ids_of("ü").tolist() == source.ids_of("ü".encode()).tolist()
        assert source.ids_of(b"").tolist() == [1]
        assert source.id_bytes().tolist() == [0] * 4 + [1] * 256
        assert np.flatnonzero(~source.drawable(eos=True)).tolist() == [0, 1, 3]
    assert Source(FLAT, {}).ids_of(np.array([1, 7, 2, 1])).tolist() == [1, 7, 2, 1]


@pytest.mark.parametrize("prompt", [np.array([]), np.array([[1]]), np.array([1.5]), np.array([-1]), np.array([260])])
def test_ids_that_are_none_are_refused(prompt):
    with pytest.raises(ValueError, match="a prompt"):
        Source(FLAT, {}).ids_of(prompt)
