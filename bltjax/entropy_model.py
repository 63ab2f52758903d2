"""The small byte model whose uncertainty sets the patches (BLT paper section 2.3)."""

from bltjax.transformer import LanguageModel


class EntropyModel(LanguageModel):
    """A flat language model over bytes with a short window; see `EntropyModelConfig`."""
