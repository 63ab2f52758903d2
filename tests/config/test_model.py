import dataclasses
from functools import partial

import pytest

from bltjax.config import (
    BLTConfig,
    ByteTransformerConfig,
    CrossAttentionConfig,
    EntropyModelConfig,
    HashConfig,
    LanguageModelConfig,
    MegabyteConfig,
    SpaceByteConfig,
    TokenTransformerConfig,
    TransformerConfig,
)

tower = partial(TransformerConfig, width=16, layers=1, heads=2)
megabyte = partial(MegabyteConfig, global_model=tower(), local_model=tower(), patch_bytes=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
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
        (lambda: CrossAttentionConfig(encoder="none", pooling="none"), r"cross_attention\.pooling='none': does not go"),
        (lambda: CrossAttentionConfig(encoder="all_repool", pooling="none"), r"encoder='all_repool', which pools"),
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
        (lambda: megabyte(patch_bytes=0), "patch_bytes=0"),
        (lambda: megabyte(patch_bytes=3), "patch_bytes=3: must divide the width of the global model, 16"),
        (lambda: megabyte(context_bytes=0), "context_bytes=0"),
        (lambda: megabyte(cross_patch_bytes=5), "cross_patch_bytes=5: must not exceed patch_bytes, 4"),
        (lambda: megabyte(patch_encoder="conv"), "patch_encoder='conv': choose one of 'embedding', 'convolution'"),
        (lambda: megabyte(local_model=tower(window=4)), r"local_model\.window=4: must be None"),
        (lambda: megabyte(patch_bytes=1, inference="strided"), "patch_bytes=1: must be even"),
        (lambda: SpaceByteConfig(tower(), tower(), tower(width=32)), r"decoder\.width=32: .* 16"),
        (lambda: SpaceByteConfig(tower(), tower(width=8), tower()), r"global_model\.width=8: must be at least"),
    ],
)
def test_a_refused_value_is_named(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_input_projection_only_where_the_widths_differ():
    local = tower(width=16)
    same = BLTConfig(local, tower(width=48), local, CrossAttentionConfig(k=3))
    assert same.patch_width == 48 and not same.has_input_projection
    assert dataclasses.replace(same, cross_attention=CrossAttentionConfig(k=2)).has_input_projection
