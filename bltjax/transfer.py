"""Hyper-parameters that go from a small model to a wider and deeper one of its family: muP, and CompleteP.

The best learning rate of a model changes with its width and depth; under these rules that of a small *base* is meant to
be that of all. "width" is muP for Adam (Yang et al. 2022, arXiv 2203.03466, table 3), "width-depth" is CompleteP with
alpha = 1 besides (Dey et al. 2025, arXiv 2505.01618, table 1). Both are stated there with constants in the forward
pass. Here no forward pass changes: each constant goes into what a parameter begins with, and how AdamW moves it.

Say a model uses a matrix W only as a W, with a constant a, and AdamW moves it with rate r, decay w and epsilon e. Call
V = a W. The gradient of V is that of W divided by a, so AdamW's direction for V is that for W if its epsilon is e / a,
and from dW = -r (direction + w W) follows

    dV = a dW = -(a r) (direction + (w / a) V)

A model without the constant does the same with V: its std is a times that of W, its rate a r, its decay w / a, its
epsilon e / a (`Factors.folded`). This is exact but for clipping: the global norm is that of the gradients of V. Where
the limit scales all gradients alike for many steps, Adam forgets the scale.

Every parameter has one rule, by its own shape beside that of the base: m is its fan-in over the base's, o its fan-out
over the base's, L the layers of its stack over the base's. So each tower has multipliers of its own, and a matrix
between two towers follows the one it reads. By "width" L counts as 1.

- Look-up tables (bytes, tokens, hashed n-grams, positions, pads): rate as it is. They begin with the base's std, where
  the model's own falls with its width: times o^0.5.
- Matrices: rate / m. They begin with the fan-in std, std_base m^-0.5, which is the model's own unless a tower's
  `init_std` or `init_factor` says otherwise.
- Logits are divided by m: the output matrix begins with std_base / m, its rate / m. MEGABYTE's is its embedding once
  more, which is a table, so the division goes into the norm before it.
- A branch x + f(x) becomes x + f(x) / L: folded into its last matrix. A stack whose stream is doubled in each layer
  (BLT's cross-attention as released) weighs its branches 1, 1/2, 1/4, ... by itself, and one that pools anew in each
  layer has one: neither is divided.
- Attention is divided by head width, not by its root: folded into the query; no change where head widths are equal.
- Norm scales: rate as it is.
- Decay times the inverse of the rate's factor, so that rate x decay, what a step takes off, is everywhere the base's.
- Epsilon falls like the gradient: 1 / o, and 1 / L inside branches, before any constant is folded in.

The rate of the run is that of the base (`OptimConfig.transfer`); steps, batch and schedule are no part of the rule.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax

from bltjax import families
from bltjax.config import BLTConfig, ModelConfig, TransferConfig, TransformerConfig, family_of, to_dict
from bltjax.layers import matrix_std
from bltjax.sharding import parameter_axes, parameter_paths

Role = Literal["table", "joint", "query", "inner", "last", "output", "inner norm", "norm", "tied norm"]

_STACK = r"(?:(?:encoder|global_model|local_model|decoder)/)?layers"
_CROSS = r"(?:encoder|decoder)/cross_attention"

# By path: what a parameter is, and how many of its axes (after that of layers) are summed over.
RULES: Sequence[tuple[str, Role, int]] = (
    (r"(?:(?:byte|global|local|hash|position)_)?embedding/table", "table", 1),
    (r"(?:(?:global|local)_pad|encoder/first_query)/table", "table", 1),
    (rf"(?:{_STACK}/attention|{_CROSS})/query/kernel", "query", 1),
    (rf"(?:{_STACK}/attention|{_CROSS})/(?:key|value)/kernel", "inner", 1),
    (rf"(?:{_STACK}/attention|{_CROSS})/out/kernel", "last", 2),
    (rf"{_STACK}/feed_forward/(?:gate|up)/kernel", "inner", 1),
    (rf"{_STACK}/feed_forward/down/kernel", "last", 1),
    (rf"{_STACK}/(?:attention|feed_forward)_norm/scale", "inner norm", 0),
    (rf"{_CROSS}/(?:query|memory)_norm/scale", "inner norm", 0),
    (r"(?:(?:global_model|decoder)/)?norm/scale", "norm", 0),
    (r"local_model/norm/scale", "tied norm", 0),
    (r"(?:encoder|decoder)/patch_projection/kernel", "joint", 1),
    (r"global_model/input_projection/kernel", "joint", 1),
    (r"global_projection/kernel", "joint", 1),
    (r"patch_encoder/convolution_\d/kernel", "joint", 2),
    (r"(?:decoder/)?output/kernel", "output", 1),
)

# What a model may have otherwise than its base; k and the hash tables change how often a parameter is used, not widths.
FREE = ("width", "layers", "heads", "kv_heads", "hidden", "window", "k", "buckets", "context_bytes", "compute")


@dataclasses.dataclass(frozen=True)
class Factors:
    """What is multiplied for one parameter: the values it begins with, its rate, its weight decay, its epsilon."""

    initial: float = 1.0
    rate: float = 1.0
    decay: float = 1.0
    epsilon: float = 1.0

    def folded(self, constant: float) -> "Factors":
        """With a constant of the forward pass folded into the parameter."""
        return Factors(
            self.initial * constant, self.rate * constant, self.decay / constant, self.epsilon / constant
        )  # fmt: skip


def role_of(path: str) -> tuple[Role, int]:
    """What the parameter at `path` is, and the number of its axes that are summed over.

    Raises:
      ValueError: unless exactly one rule of `RULES` matches.
    """
    found: list[tuple[Role, int]] = [(role, inputs) for pattern, role, inputs in RULES if re.fullmatch(pattern, path)]
    if len(found) != 1:
        raise ValueError(f"parameter {path!r} matches {len(found)} rules of bltjax.transfer.RULES; it must match one.")
    return found[0]


def transfer_factors(transfer: TransferConfig, model: ModelConfig) -> Any:
    """The factors of every parameter of a model: a tree like its parameters, of `Factors`.

    Raises:
      ValueError: for a model that differs from the base in more than sizes.
    """
    check_transfer(transfer, model)
    shapes = _shapes(transfer.base)
    if isinstance(transfer.base, BLTConfig):
        # A base whose patches are as wide as its global model has no such projection; it would be of this shape.
        base = transfer.base
        shapes.setdefault("global_model/input_projection/kernel", (base.patch_width, base.global_model.width))

    def one(path: str, leaf: Any) -> Factors:
        if path not in shapes:
            raise ValueError(f"transfer.base: has no parameter {path!r}, from whose size the model's could be told.")
        return _factors(transfer, model, path, tuple(leaf.shape), shapes[path])

    params = families.abstract_params(model)
    tree = jax.tree.structure(params)
    return jax.tree.unflatten(tree, [one(path, leaf) for path, leaf in parameter_paths(params)])


def scaled(params: Any, factors: Any) -> Any:
    """Fresh parameters, multiplied by what they begin with."""
    return jax.tree.map(lambda p, by: p if by.initial == 1 else p * by.initial, params, factors)


def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in parameter_paths(families.abstract_params(model))}


def _factors(
    transfer: TransferConfig, model: ModelConfig, path: str, shape: tuple[int, ...], base: tuple[int, ...]
) -> Factors:
    role, inputs = role_of(path)
    stacked = parameter_axes(path)[0] == "layers"
    first = int(stacked)
    fan_in, base_in = math.prod(shape[first : first + inputs]), math.prod(base[first : first + inputs])
    m, o = fan_in / base_in, math.prod(shape[first + inputs :]) / math.prod(base[first + inputs :])
    depth = shape[0] / base[0] if stacked and transfer.rule == "width-depth" and not _is_bounded(model, path) else 1.0
    match role:
        case "table":
            return Factors(initial=o**0.5, epsilon=1 / o)
        case "norm":
            return Factors(epsilon=1 / o)
        case "tied norm":
            return Factors(epsilon=1 / o).folded(1 / o)
        case "inner norm":
            return Factors(epsilon=1 / o / depth)
    initial = 1.0 if not stacked else _initial(transfer, model, path, fan_in, base_in)
    matrix = Factors(initial, 1 / m, m, 1 / o / depth)
    match role:
        case "query":
            return matrix.folded((base[-1] / shape[-1]) ** 0.5)
        case "last":
            return matrix.folded(1 / depth)
        case "output":
            return dataclasses.replace(matrix, initial=m**-0.5)
    return matrix


def _initial(transfer: TransferConfig, model: ModelConfig, path: str, fan_in: int, base_in: int) -> float:
    """What brings a matrix of a tower to the std of the base's, scaled by fan-in."""
    own, base = _tower(model, path), _tower(transfer.base, path)
    if own.init_std is None and own.init_factor in ("none", "current_depth"):
        return 1.0  # is so by itself; what divides a layer by its number is the same in both
    if transfer.rule == "width":
        base = dataclasses.replace(base, layers=own.layers)
    return matrix_std(base, base_in) * (base_in / fan_in) ** 0.5 / matrix_std(own, fan_in)


def _tower(model: ModelConfig, path: str) -> TransformerConfig:
    """Of whose matrices the parameter at `path` is one."""
    name = path.partition("/")[0]
    return getattr(model, "tower" if name == "layers" else name)


def _is_bounded(model: ModelConfig, path: str) -> bool:
    """Whether the branches of a stack need no division by their number: see the top of this file."""
    if not isinstance(model, BLTConfig):
        return False
    cross, doubles = model.cross_attention, model.cross_attention.residual == "double"
    if path.startswith("decoder/"):
        return doubles and cross.decoder == "all"
    return path.startswith("encoder/cross_attention/") and (doubles or cross.encoder == "all_repool")


def check_transfer(transfer: TransferConfig, model: ModelConfig) -> None:
    """Refuses a base that differs from a model in more than sizes (ValueError)."""
    base = transfer.base
    if type(base) is not type(model):
        raise ValueError(f"transfer.base: is a {family_of(base)} model, this one a {family_of(model)}; name one alike.")
    theirs, own = (dict(_settings(to_dict(each))) for each in (base, model))
    wrong = [
        f"{name}: {theirs.get(name)!r}, not {own.get(name)!r}"
        for name in {**theirs, **own}
        if theirs.get(name) != own.get(name)
    ]
    if wrong:
        raise ValueError(f"transfer.base: must differ in sizes alone ({', '.join(FREE)}); it has {'; '.join(wrong)}.")


def _settings(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if name in FREE:
            continue
        if isinstance(value, dict):
            yield from _settings(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value
