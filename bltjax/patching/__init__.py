"""From bytes to patches: pure functions with static shapes and no parameters."""

from bltjax.patching.bpe import bpe_starts, encode_delimited
from bltjax.patching.entropy import entropy_starts, next_byte_entropy
from bltjax.patching.patches import Patches, byte_documents, patch_documents
from bltjax.patching.rules import PREFIX_CONSISTENT, next_starts, starts_of, stream_starts
from bltjax.patching.space import space_starts
from bltjax.patching.strided import byte_starts, limit_patch_length, strided_starts

__all__ = [
    "PREFIX_CONSISTENT",
    "Patches",
    "bpe_starts",
    "byte_documents",
    "byte_starts",
    "encode_delimited",
    "entropy_starts",
    "limit_patch_length",
    "next_byte_entropy",
    "next_starts",
    "patch_documents",
    "space_starts",
    "starts_of",
    "stream_starts",
    "strided_starts",
]
