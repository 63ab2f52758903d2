"""One tower of layers, and how a model is computed."""

import dataclasses
from typing import Literal

from bltjax.config.checks import at_least, check_choices, require


def swiglu_width(width: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    """Hidden width of the SwiGLU feed-forward: 8/3 of the width, rounded up, as in the released code."""
    hidden = int(multiplier * int(2 * 4 * width / 3))
    return -(-hidden // multiple_of) * multiple_of


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How a model is computed; none of it changes what is computed beyond rounding."""

    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and products; parameters are float32
    unroll: bool = False  # write the layers of a stack out one by one instead of scanning over them
    remat: Literal["none", "full", "dots"] = "none"  # what a layer recomputes in the backward pass
    attention: Literal["auto", "reference", "splash", "cudnn"] = "auto"  # back end of bltjax.attention

    def __post_init__(self) -> None:
        check_choices(self, "compute.")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """One tower of Llama-style layers."""

    width: int
    layers: int
    heads: int
    kv_heads: int | None = None  # None: as many as heads (multi-head attention); fewer: grouped queries
    hidden: int | None = None  # feed-forward width; None: swiglu_width(width)
    window: int | None = None  # positions visible to a query, itself included; None: all earlier ones
    rope_theta: float = 500_000.0
    norm_epsilon: float = 1e-5
    init_std: float | None = None  # None: width ** -0.5 and hidden ** -0.5, as released
    # Divides that std: sqrt(2 (layers + 1)); in layer l, counted from 0, sqrt(2 (l + 1)); width / 4096.
    init_factor: Literal["none", "depth", "current_depth", "width"] = "none"

    def __post_init__(self) -> None:
        at_least(self, width=1, layers=0, heads=1, kv_heads=1, hidden=1, window=1)
        require(self.width % self.heads == 0, "heads", self.heads, f"must divide the width, {self.width}.")
        require(self.head_width % 2 == 0, "heads", self.heads, f"width {self.width} / heads must be even for rotary.")
        require(self.heads % self.key_heads == 0, "kv_heads", self.kv_heads, f"must divide heads, {self.heads}.")
        require(self.rope_theta > 1, "rope_theta", self.rope_theta, "must be greater than 1.")
        require(self.norm_epsilon > 0, "norm_epsilon", self.norm_epsilon, "must be positive.")
        require(self.init_std is None or self.init_std > 0, "init_std", self.init_std, "must be positive.")
        check_choices(self)

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def hidden_width(self) -> int:
        return swiglu_width(self.width) if self.hidden is None else self.hidden
