"""Baseline: a flat Transformer over bytes, at the same context in bytes."""

from bltjax.transformer import LanguageModel


class ByteTransformer(LanguageModel):
    """A flat language model over bytes; see `ByteTransformerConfig`."""
