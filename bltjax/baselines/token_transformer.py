"""Baseline: a flat Llama-style Transformer over the tokens of a byte-level BPE."""

from bltjax.transformer import LanguageModel


class TokenTransformer(LanguageModel):
    """A flat language model over BPE tokens; see `TokenTransformerConfig`."""
