"""The learning rate of each model of a study."""

from bltjax.config import ModelConfig, TransformerConfig
from bltjax.scaling.study import Study

RATE_WIDTH = 64  # the width for which Study.peak_rate is meant


def learning_rate_rule(study: Study, model: ModelConfig) -> float:
    """Peak learning rate of a model: one rule for all families, inverse to the width of its narrowest tower.

    For a BLT those are the local models. The default gives 4e-4 at a width of 1,280, the paper's rate for its 8B.
    """
    widths = [tower.width for tower in vars(model).values() if isinstance(tower, TransformerConfig)]
    return study.peak_rate * RATE_WIDTH / min(widths)
