"""Models of equal inference cost: patch size and model size grow together (BLT paper, Figure 1 and Table 2).

A class is what a byte of text costs a reference model in a forward pass, say a token model with its tokens as measured.
At a larger patch size the global model of a BLT is called less often, so that it may be larger at the same cost. The
rule by which it grows: everything else of the shape stays as it is; the global model's width is a multiple of the width
of its heads, and its heads, key heads and feed-forward follow in proportion. Of all widths and depths within the
tolerance of the class the one is taken whose width over depth is nearest to the shape's, and of those the nearest in
cost; beyond a factor of three it is another shape, and none fits. A flat byte model is fitted by its tower in the same
way. The paper does not say how it chose its shapes.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from bltjax.config import (
    BLTConfig,
    ByteTransformerConfig,
    EntropyModelConfig,
    ModelConfig,
    SpaceByteConfig,
    TransformerConfig,
)
from bltjax.flops import Accounting, flops_per_byte, non_embedding_parameters

TOLERANCE = 0.02  # of the class
MOST_ASPECT = 3.0  # times the shape's width over depth, or below it
Shape = BLTConfig | SpaceByteConfig | ByteTransformerConfig


@dataclasses.dataclass(frozen=True)
class InferenceClass:
    """What a byte costs in a forward pass.

    Attributes:
      flops_per_byte: forward, in the accounting.
      context_bytes: of a row, in which attention is counted.
      accounting: of all members. Rows are taken as full: what is padded is known only once a text is read.
    """

    flops_per_byte: float
    context_bytes: int
    accounting: Accounting = "paper"

    @classmethod
    def of(
        cls, model: ModelConfig, unit_bytes: float, context_bytes: int, accounting: Accounting = "paper"
    ) -> "InferenceClass":
        """The class of a reference model.

        Args:
          unit_bytes: bytes per token or patch as measured; 1 for models of bytes.
        """
        return cls(flops_per_byte(model, unit_bytes, context_bytes, accounting).forward, context_bytes, accounting)

    def forward(self, model: ModelConfig, unit_bytes: float, patcher: EntropyModelConfig | None = None) -> float:
        """Forward FLOPs per byte of a model, as the class counts them; `full` with those of what patches for it."""
        extras: dict[str, Any] = {} if self.accounting == "paper" else {"patcher": patcher}
        return flops_per_byte(model, unit_bytes, self.context_bytes, self.accounting, **extras).forward


@dataclasses.dataclass(frozen=True)
class Member:
    """A model fitted to a class.

    Attributes:
      model: the shape with `changes`.
      changes: dotted paths of its configuration and their values, as a variant of its preset has them.
      patch_size: mean bytes per patch that it is for; 1 of bytes.
      flops_per_byte: forward, as the class counts.
      deviation: by which these exceed the class, as a share.
      aspect: width over depth of the tower that grew, over that of the shape's; 1: as asked for.
    """

    model: Shape
    changes: Mapping[str, int]
    patch_size: float
    flops_per_byte: float
    deviation: float
    aspect: float

    def __str__(self) -> str:
        changed = ", ".join(f"{path} {value}" for path, value in self.changes.items()) or "the shape itself"
        return (
            f"{changed}: {self.flops_per_byte:.4g} forward FLOPs per byte ({self.deviation:+.2%} of the class), N "
            f"{non_embedding_parameters(self.model):,}, width over depth {self.aspect:.2f} times the shape's"
        )


def fitted(
    shape: Shape,
    patch_size: float,
    to: InferenceClass,
    tolerance: float = TOLERANCE,
    patcher: EntropyModelConfig | None = None,
    head_width: int | None = None,
) -> Member:
    """The member of a class that has the shape's local models, at a patch size.

    Args:
      shape: a BLT or SpaceByte, whose global model is resized, or a flat byte model, whose tower is.
      patch_size: mean bytes per patch; 1 for a flat byte model.
      tolerance: of the forward FLOPs per byte, as a share.
      patcher: the entropy model, whose inference the accounting `full` counts.
      head_width: of the heads of what is resized; None: the shape's.

    Raises:
      ValueError: where nothing of that shape lies in the class, with what comes nearest.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance}: is a share of the class: above 0, below 1.")
    if patcher is not None and to.accounting == "paper":
        raise ValueError("patcher: the paper's accounting has none; give the class accounting='full'.")
    part = "tower" if isinstance(shape, ByteTransformerConfig) else "global_model"
    own: TransformerConfig = getattr(shape, part)
    candidates = [
        _member(shape, part, tower, patch_size, to, patcher)
        for tower in _towers(shape, part, to, patch_size, patcher, head_width or own.head_width)
    ]
    shaped = [each for each in candidates if 1 / MOST_ASPECT <= each.aspect <= MOST_ASPECT]
    near = [each for each in shaped if abs(each.deviation) <= tolerance]
    if near:
        return min(near, key=lambda each: (round(abs(math.log(each.aspect)), 6), abs(each.deviation)))
    least = dataclasses.replace(shape, **{part: dataclasses.replace(own, layers=0)})
    rest, name = to.forward(least, patch_size, patcher), part.replace("_", " ")
    words = f"the class has {to.flops_per_byte:.4g} forward FLOPs per byte, all but the {name} takes {rest:.4g}"
    if not shaped:
        raise ValueError(f"shape: {words}, which leaves too little. Choose smaller local models or a larger class.")
    best = min(shaped, key=lambda each: abs(each.deviation))
    raise ValueError(
        f"tolerance={tolerance:g}: {words}; the nearest at patch size {patch_size:g} is {best}. Choose another shape, "
        "narrower heads (widths are multiples of theirs), or a larger tolerance."
    )


def _member(
    shape: Shape, part: str, tower: TransformerConfig, patch_size: float, to: InferenceClass,
    patcher: EntropyModelConfig | None,
) -> Member:  # fmt: skip
    own: TransformerConfig = getattr(shape, part)
    model = dataclasses.replace(shape, **{part: tower})
    forward = to.forward(model, patch_size, patcher)
    fields = ("width", "layers", "heads", "kv_heads", "hidden")
    changes = {f"{part}.{name}": getattr(tower, name) for name in fields if getattr(tower, name) != getattr(own, name)}
    aspect = tower.width / tower.layers / (own.width / own.layers)
    return Member(model, changes, patch_size, forward, forward / to.flops_per_byte - 1, aspect)


def _towers(
    shape: Shape, part: str, to: InferenceClass, patch_size: float, patcher: EntropyModelConfig | None, head_width: int
) -> Iterator[TransformerConfig]:
    """Widths from the least on, each at the two depths around the class."""
    own: TransformerConfig = getattr(shape, part)

    def cost(tower: TransformerConfig, layers: int) -> float:
        sized = dataclasses.replace(tower, layers=layers)
        return to.forward(dataclasses.replace(shape, **{part: sized}), patch_size, patcher)

    group = own.heads // own.key_heads
    least = shape.encoder.width if isinstance(shape, SpaceByteConfig) else 1  # whose global model may not be narrower
    heads = group * math.ceil(least / (head_width * group))
    while True:
        width = heads * head_width
        hidden = None if own.hidden is None else max(8, 8 * round(own.hidden / own.width * width / 8))
        tower = dataclasses.replace(
            own, width=width, heads=heads, kv_heads=None if own.kv_heads is None else heads // group, hidden=hidden
        )
        none, one = cost(tower, 0), cost(tower, 1)
        depth = (to.flops_per_byte - none) / (one - none)  # every layer costs the same
        if depth < 0.5 or width / math.ceil(depth) > MOST_ASPECT * own.width / own.layers:
            return  # wider towers are too dear, or too flat
        for layers in {max(1, math.floor(depth)), math.ceil(depth)}:
            yield dataclasses.replace(tower, layers=layers)
        heads += group
