"""What the models of a study are called, and how text is cut for them: one model may stand in several series.

A name is that of a preset, `byte-cpu-0`, or of a BLT with its rule in front of the size: `blt-space-cpu-0` is the model
`blt-cpu-0` on patches after spaces. `blt` alone is `blt-entropy`. A token model with another vocabulary than its preset
says how many tokens: `token-cpu-0-v512`. After a plus it has the name of a variant.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

from bltjax import vocabulary
from bltjax.config import ModelConfig, PatcherConfig, TokenTransformerConfig, family_of, usual_patcher
from bltjax.presets import preset

Family = Literal[
    "blt",
    "byte",
    "token",
    "megabyte",
    "spacebyte",
    "blt-entropy",
    "blt-monotonic",
    "blt-strided",
    "blt-space",
    "blt-bpe",
]

RULES: Mapping[str, PatcherConfig] = {
    "blt-entropy": PatcherConfig(),
    "blt-monotonic": PatcherConfig(variant="monotonic"),
    "blt-strided": PatcherConfig(rule="strided"),
    "blt-space": PatcherConfig(rule="space"),
    "blt-bpe": PatcherConfig(rule="bpe"),
}

_VOCABULARY = re.compile(r"(?P<size>token-[^+]+)-v(?P<tokens>[1-9]\d*)")


def named(name: str) -> tuple[str, ModelConfig]:
    """The family and the model of a name.

    Raises:
      ValueError: for an unknown name, with the nearest known ones.
    """
    for family in RULES:
        if name.startswith(f"{family}-"):
            return family, preset(f"blt{name.removeprefix(family)}")
    found = _VOCABULARY.fullmatch(name)
    model = preset(found["size"] if found else name)
    if found:
        if not isinstance(model, TokenTransformerConfig):
            raise ValueError(f"preset={name!r}: only a token model has a vocabulary to choose.")
        model = dataclasses.replace(model, vocabulary_size=int(found["tokens"]) + vocabulary.OFFSET)
    return family_of(model), model


def with_vocabulary(name: str, tokens: int) -> str:
    """The name of a token model with a BPE of so many tokens: its own where the preset has as many."""
    sized = f"{size_name(name)}-v{tokens}"
    own = named(size_name(name))[1]
    return size_name(name) if named(sized)[1] == own else sized


def size_name(name: str) -> str:
    """A name without its vocabulary: what models have in common that differ in it alone."""
    base, mark, variant = name.partition("+")
    found = _VOCABULARY.fullmatch(base)
    return f"{found['size'] if found else base}{mark}{variant}"


def rule_of(name: str) -> PatcherConfig | None:
    """How text is cut for the model of a name, sizes left at their defaults; None where it reads no patches."""
    family, model = named(name.partition("+")[0])  # a variant is cut for as its preset is
    return RULES.get(family, usual_patcher(model))


def patch_size(wanted: PatcherConfig | None) -> float | None:
    """Bytes per patch that a patcher is asked for; None where its rule has no choice."""
    if wanted is None or wanted.rule not in ("entropy", "strided"):
        return None
    return wanted.mean_patch_bytes if wanted.rule == "entropy" else float(wanted.size)


def sized(rule: PatcherConfig | None, patch_bytes: float) -> PatcherConfig:
    """A rule with patches of a size.

    Raises:
      ValueError: for one that leaves no choice of size, or a size that it refuses.
    """
    if patch_size(rule) is None or rule is None:
        raise ValueError(f"patch_size={patch_bytes:g}: this model's patches have no size to choose.")
    if rule.rule == "entropy":
        return dataclasses.replace(rule, mean_patch_bytes=patch_bytes)
    if patch_bytes != int(patch_bytes):
        raise ValueError(f"patch_size={patch_bytes:g}: patches of one length have whole bytes.")
    return dataclasses.replace(rule, size=int(patch_bytes))


def series_of(name: str, size: float | None = None) -> str:
    """What the model of a name is compared as: its family and variant, whatever its size: `blt-6+no-hash`.

    Args:
      size: bytes per patch, where its study has several.
    """
    base, mark, variant = name.partition("+")
    family = named(base)[0]
    return f"{family if size is None else f'{family}-{size:g}'}{mark}{variant}"
