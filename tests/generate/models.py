"""Tiny models of every kind for the tests of generation, and their parallel forward passes to compare with."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from bltjax.config import (
    BLTConfig,
    ByteTransformerConfig,
    CrossAttentionConfig,
    EntropyModelConfig,
    HashConfig,
    PatcherConfig,
    SpaceByteConfig,
    TransformerConfig,
)
from bltjax.entropy_model import EntropyModel
from bltjax.families import abstract_params, build
from bltjax.patching import Patches, next_byte_entropy, starts_of
from bltjax.patching.entropy import entropy_scores
from bltjax.patching.patches import document_firsts
from tests import dense
from tests.programs import quick_jit

BOS, EOS = 1, 2
LOCAL = TransformerConfig(width=16, layers=1, heads=2, hidden=24, window=6)
LATENT = TransformerConfig(width=32, layers=2, heads=4, hidden=40)
ENTROPY = EntropyModelConfig(TransformerConfig(8, 2, 2, hidden=16, window=5, rope_theta=10_000.0))


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and the rule that it is patched by; the threshold is chosen for its weights."""

    config: BLTConfig | SpaceByteConfig
    patcher: PatcherConfig
    entropy: EntropyModelConfig | None = ENTROPY


RELEASED = BLTConfig(
    encoder=LOCAL,
    global_model=LATENT,
    decoder=dataclasses.replace(LOCAL, layers=2),
    cross_attention=CrossAttentionConfig(k=2),
    hash=HashConfig(sizes=(3, 4), buckets=61),
)
CASES = {
    "released, global": Case(RELEASED, PatcherConfig(threshold=0.0)),
    "paper, monotonic, at most 5": Case(
        BLTConfig(
            encoder=dataclasses.replace(LOCAL, layers=2, kv_heads=1),
            global_model=dataclasses.replace(LATENT, width=24, kv_heads=2, window=5),
            decoder=dataclasses.replace(LOCAL, layers=2, kv_heads=1, window=None),
            cross_attention=CrossAttentionConfig(3, 4, 2, "all_repool", "first", "single", "mean"),
            hash=HashConfig((2, 5), 61, 2, normalize=True, power_order="paper", short_ngrams="omit"),
            document_mask=False,
        ),
        PatcherConfig(variant="monotonic", threshold=0.0, max_patch_length=5),
        dataclasses.replace(ENTROPY, document_mask=False),
    ),
    "carried rows, space": Case(
        BLTConfig(
            encoder=dataclasses.replace(LOCAL, layers=2),
            global_model=dataclasses.replace(LATENT, width=24, layers=1),
            decoder=dataclasses.replace(LOCAL, window=1),
            cross_attention=CrossAttentionConfig(k=1, encoder="all", pooling="min"),
            hash=HashConfig(sizes=()),
        ),
        PatcherConfig(rule="space"),
        None,
    ),
    "no windows, add": Case(
        dataclasses.replace(
            RELEASED,
            encoder=dataclasses.replace(LOCAL, window=None, layers=3),
            decoder=dataclasses.replace(LOCAL, window=40),
        ),
        PatcherConfig(variant="add", threshold=0.0, threshold_add=-0.1),
        EntropyModelConfig(TransformerConfig(8, 1, 2, hidden=16)),
    ),
    "strided by 4, at most 3": Case(RELEASED, PatcherConfig(rule="strided", size=4, max_patch_length=3), None),
    "no cross-attention": Case(
        dataclasses.replace(
            RELEASED,
            encoder=dataclasses.replace(LOCAL, layers=2),
            cross_attention=CrossAttentionConfig(k=3, encoder="none", decoder="none", pooling="mean"),
        ),
        PatcherConfig(rule="space"),
        None,
    ),
    "learned queries": Case(
        dataclasses.replace(
            RELEASED,
            encoder=dataclasses.replace(LOCAL, layers=2),
            cross_attention=CrossAttentionConfig(encoder="all", decoder="none", pooling="none"),
        ),
        PatcherConfig(rule="strided", size=3),
        None,
    ),
    "a patch a byte, no latent layers": Case(
        dataclasses.replace(RELEASED, global_model=dataclasses.replace(LATENT, layers=0)),
        PatcherConfig(rule="byte"),
        None,
    ),
}
FLAT = ByteTransformerConfig(TransformerConfig(16, 2, 4, kv_heads=2, hidden=24, window=7))


@functools.cache
def forward(config):
    return quick_jit(
        lambda p, ids, starts: build(config).apply({"params": p}, ids, Patches.from_starts(starts, ids.shape[1]))
    )


@functools.cache
def entropies_of(config):
    return quick_jit(lambda p, ids: next_byte_entropy(EntropyModel(config).apply({"params": p}, ids)))


def random_rows(seed, batch, length):
    """Rows of text-like bytes; in most of them a document ends somewhere."""
    draw = np.random.default_rng(seed)
    ids = draw.choice([*b"abcxyz019   ,.\n", 0, 0xC3, 0xA9, 0xFF], (batch, length)) + 4
    ids[:, 0] = BOS
    for row in range(batch - 1):
        place = draw.integers(1, length - 1)
        ids[row, place : place + 2] = EOS, BOS
    return np.int32(ids)


@dataclasses.dataclass
class Weights:
    """Random weights of a case, and a patcher whose threshold none of some entropies is near to."""

    params: dict
    entropy_params: dict | None
    patcher: PatcherConfig


def random_weights(case, seed, ids):
    """Weights whose patches in these rows are a few bytes long."""
    params = dense.random_params(abstract_params(case.config), seed)
    if case.entropy is None:
        return Weights(params, None, case.patcher)
    entropy_params = dense.random_params(abstract_params(case.entropy), 1000 + seed, std=0.7)
    found = np.asarray(entropies_of(case.entropy)(entropy_params, ids))
    patcher = case.patcher
    scores, forced = entropy_scores(found, patcher.variant, patcher.threshold_add, document_firsts(ids))
    free = np.sort(scores[~forced & np.isfinite(scores)])
    middle = free[int(0.55 * len(free)) : int(0.85 * len(free))]
    gap = np.diff(middle).argmax()  # rounding must not move a patch
    assert middle[gap + 1] - middle[gap] > 1e-3
    threshold = float(np.float32(middle[gap : gap + 2].mean()))
    return Weights(params, entropy_params, dataclasses.replace(patcher, threshold=threshold))


def parallel(case, weights, ids):
    """Starts and logits of whole rows."""
    entropies = None
    if case.entropy is not None:
        entropies = np.asarray(entropies_of(case.entropy)(weights.entropy_params, ids))
    starts = starts_of(weights.patcher, ids, entropies)
    return starts, np.asarray(forward(case.config)(weights.params, jnp.asarray(ids), starts))


class Reversed:
    """A tokenizer of the 256 bytes in reverse."""

    vocabulary_size = 256

    def encode(self, data):
        return 255 - np.frombuffer(data, np.uint8).astype(np.int32)

    def decode(self, ids):
        return (255 - np.asarray(ids)).astype(np.uint8).tobytes()
