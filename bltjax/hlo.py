"""What a compiled program does, counted from its HLO text: arithmetic, and talk between devices.

XLA's own count sees the body of a loop once and knows nothing of collectives. Here every computation counts as often as
it runs: a loop's trips are read from the program, of a conditional's branches the dearest counts.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from bltjax.kernels import PRODUCT_SCOPE, SPLASH_PRODUCTS

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
          "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8}  # fmt: skip
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # the text between the parentheses
    attributes: str


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one kind of collective sends along one set of mesh axes in one run of the program."""

    kind: str
    axes: tuple[str, ...]  # () where it is not known
    count: int  # times that it runs
    sent: float  # bytes that each device sends, by the cheapest algorithm on a ring


def dimensions(shape: str) -> tuple[int, ...]:
    """The dimensions of an array's shape, "f32[8,128]{1,0}" giving (8, 128)."""
    found = re.match(r"[a-z0-9]+\[([\d,]*)\]", shape)
    if found is None:
        raise ValueError(f"shape={shape!r}: is not that of one array.")
    return tuple(int(size) for size in found[1].split(",") if size)


def size_in_bytes(shape: str, space: str | None = None) -> float:
    """Bytes of an array or of all arrays of a tuple.

    Args:
      space: "main" counts only what lies in the device's main memory; a layout with S(n) lies elsewhere.
    """
    total = 0.0
    for kind, sizes, layout in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?", shape):
        if kind in _BYTES and not (space == "main" and re.search(r"S\(\d", layout)):
            total += _BYTES[kind] * math.prod(int(size) for size in sizes.split(",") if size)
    return total


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"unbalanced parentheses in {text[:120]!r}")


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if found is None:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(found[1], shape, rest[:opening], operands, arguments, rest[closing + 1 :])


def _thread(instruction: Instruction) -> tuple[str, ...] | None:
    """What the pieces have in common that one collective is cut into; None of all other instructions.

    The channel alone does not tell: all collectives of manual partitioning have the same.
    """
    channel = _attribute(instruction.attributes, "channel_id")
    if channel is None:
        return None
    chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
    return instruction.opcode, channel, chain[1] if chain else ""


def _starts(made: Mapping[str, Instruction]) -> bool:
    return any('custom_call_target="AsyncCollectiveStart"' in one.attributes for one in made.values())


def _attribute(text: str, name: str) -> str | None:
    found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", text)
    return None if found is None else found[1].strip("{}").replace("%", "")


def _window(attributes: str, name: str, count: int, default: str) -> list[str]:
    window = re.search(r"window=\{([^}]*)\}", attributes)
    found = re.search(rf"\b{name}=(\S+)", window[1]) if window else None
    return found[1].split("x") if found else [default] * count


class Program:
    """A compiled module, from `compiled.as_text()`."""

    def __init__(self, text: str, mesh: Mapping[str, int] | None = None) -> None:
        """
        Args:
          mesh: sizes of the mesh axes in order, to name those that a collective runs along.
        """
        self.mesh = dict(mesh or {})
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        # What a kernel says of itself stands on lines of its own, in the middle of an instruction.
        for line in text.replace('\n"', ' "').replace("\n}}", " }}").splitlines():
            if found := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
                if not line.startswith("HloModule"):
                    current = self.computations.setdefault(found[2], {})
                    self.entry = found[2] if found[1] else self.entry
            elif instruction := _instruction(line):
                current[instruction.name] = instruction
        if not self.entry:
            raise ValueError("text: holds no ENTRY computation; pass compiled.as_text().")
        self.runs = self._count_runs()

    def trips(self, loop: Instruction) -> int:
        """How often a loop's body runs.

        Raises:
          ValueError: where the program does not say.
        """
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(found[1])
        condition, body = (_attribute(loop.attributes, key) or "" for key in ("condition", "body"))
        for test in self.computations[condition].values():
            if test.opcode != "compare" or "direction=LT" not in test.attributes:
                continue
            counter, limit = (self.computations[condition][name] for name in test.operands)
            place, last = _attribute(counter.attributes, "index"), self._number(condition, limit.name)
            if place is None or last is None:
                break
            made = self.computations[body]
            after = made[list(made)[-1]].operands[int(place)]
            step = self._beyond(body, after, place)
            if step is not None:
                return -(-last // step)  # counters of lax.scan and of XLA's own loops begin at 0
        raise ValueError(f"while {loop.name}: how often it runs can't be read from its condition, {condition}.")

    def _number(self, computation: str, name: str) -> int | None:
        made = self.computations[computation].get(name)
        return int(made.arguments) if made and made.opcode == "constant" and made.arguments.isdigit() else None

    def _beyond(self, computation: str, name: str, place: str) -> int | None:
        """By how much a value exceeds the loop's counter at the start of the body; None where it can't be told."""
        made = self.computations[computation][name]
        if made.opcode == "get-tuple-element" and _attribute(made.attributes, "index") == place:
            return 0
        if made.opcode in ("copy", "bitcast"):
            return self._beyond(computation, made.operands[0], place)
        if made.opcode == "add":
            for one, other in (made.operands, made.operands[::-1]):
                number = self._number(computation, other)
                if number is not None and (more := self._beyond(computation, one, place)) is not None:
                    return number + more
        return None

    def calls(self, instruction: Instruction) -> list[tuple[str, int]]:
        """The computations that an instruction runs, and how often."""
        text = instruction.attributes
        if instruction.opcode == "while":
            trips = self.trips(instruction)
            return [(str(_attribute(text, "body")), trips)]
        names = []
        for key in ("calls", "to_apply", "called_computations", "branch_computations", "true_computation",
                    "false_computation"):  # fmt: skip
            if value := _attribute(text, key):
                names += [name.strip() for name in value.split(",")]
        return [(name, 1) for name in names if name in self.computations]

    def _count_runs(self) -> dict[str, float]:
        runs: dict[str, float] = {}
        order: list[str] = []

        def visit(name: str) -> None:
            if name not in runs:
                runs[name] = 0.0
                for instruction in self.computations[name].values():
                    for called, _ in self.calls(instruction):
                        visit(called)
                order.append(name)

        visit(self.entry)
        runs[self.entry] = 1.0
        for name in reversed(order):
            for instruction in self.computations[name].values():
                calls = self.calls(instruction)
                if instruction.opcode == "conditional":
                    calls = [max(calls, key=lambda call: self._flops_of(call[0]))]
                for called, times in calls:
                    runs[called] += runs[name] * times
        return runs

    @property
    def flops(self) -> float:
        """Floating point operations of all matrix products and convolutions in one run, on one device."""
        return math.fsum(
            runs * self._own_flops(name, instruction)
            for name, runs in self.runs.items()
            for instruction in self.computations[name].values()
        )

    def _flops_of(self, name: str) -> float:
        return math.fsum(
            self._own_flops(name, instruction) + sum(times * self._flops_of(c) for c, times in self.calls(instruction))
            for instruction in self.computations[name].values()
        )

    def _own_flops(self, computation: str, instruction: Instruction) -> float:
        if 'custom_call_target="tpu_custom_call"' in instruction.attributes:
            return _kernel_flops(instruction)
        if 'custom_call_target="__cudnn$' in instruction.attributes:
            return _cudnn_flops(instruction, dimensions(self.computations[computation][instruction.operands[0]].shape))
        summed = _summed(instruction)
        if summed is None and instruction.opcode != "convolution":
            return 0.0
        made = self.computations[computation]
        left, right = (dimensions(made[name].shape) for name in instruction.operands[:2])
        if summed is not None:
            out = dimensions(instruction.shape.lstrip("("))  # a library returns its scratch too, after the product
            return 2.0 * math.prod(out) * math.prod(left[axis] for axis in summed)
        return _convolution_flops(instruction, left, right)

    @functools.cached_property
    def traffic(self) -> list[Traffic]:
        """What devices send each other in one run, by kind and mesh axes, the most first."""
        found: dict[tuple[str, tuple[str, ...]], list[float]] = {}
        # On TPUs what starts in one fusion goes on in others and ends in a last one; all of them hold the collective.
        starting = {name for name, made in self.computations.items() if _starts(made)}
        started = {_thread(one) for name in starting for one in self.computations[name].values()} - {None}
        for name, runs in self.runs.items():
            for instruction in self.computations[name].values():
                kind = instruction.opcode.removesuffix("-start")
                if kind in COLLECTIVES and runs and (name in starting or _thread(instruction) not in started):
                    axes, devices = self._group(instruction)
                    total = found.setdefault((kind, axes), [0, 0.0])
                    total[0] += runs
                    total[1] += runs * self._sent(kind, instruction, name, devices)
        made = [Traffic(kind, axes, int(count), sent) for (kind, axes), (count, sent) in found.items()]
        return sorted(made, key=lambda one: -one.sent)

    def _sent(self, kind: str, instruction: Instruction, computation: str, devices: int) -> float:
        made = self.computations[computation]
        given = sum(size_in_bytes(made[name].shape) for name in instruction.operands if name in made)
        if kind == "all-gather":
            return given * (devices - 1)
        share = (devices - 1) / devices if devices else 1.0
        return given * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)

    def _group(self, instruction: Instruction) -> tuple[tuple[str, ...], int]:
        """The mesh axes along which a collective runs, and how many devices take part in one."""
        text = instruction.attributes
        if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
            sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
            axes = tuple(name for name in re.findall(r"'(\w+)'", found[2]) if sizes[name] > 1)
            devices = math.prod(sizes[axis] for axis in axes)
            if sizes == self.mesh:
                return axes, devices
            ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
            last = np.moveaxis(ids, [list(sizes).index(axis) for axis in axes], range(-len(axes), 0))
            return self._axes(last.reshape(-1, devices).tolist()), devices
        if found := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
            pairs = [tuple(map(int, pair)) for pair in re.findall(r"(\d+),(\d+)", found[1])]
            return self._axes([pair for pair in pairs if pair[0] != pair[1]]), 0
        groups = _replica_groups(text)
        return self._axes(groups), len(groups[0]) if groups else math.prod(self.mesh.values())

    def _axes(self, groups: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """Axes along which the coordinates within a group differ."""
        if not self.mesh:
            return ()
        if not groups:
            return tuple(name for name, size in self.mesh.items() if size > 1)
        places = np.stack(np.unravel_index(np.arange(math.prod(self.mesh.values())), tuple(self.mesh.values())), axis=1)
        differ = np.any([np.ptp(places[list(group)], axis=0) > 0 for group in groups], axis=0)
        return tuple(name for name, other in zip(self.mesh, differ, strict=True) if other)


def _kernel_flops(instruction: Instruction) -> float:
    """FLOPs of a kernel of attention: the scopes around it say what one of its products takes."""
    text = instruction.attributes
    cost, kernel = re.search(rf"{PRODUCT_SCOPE}(\d+)", text), re.search(r"splash_m[hq]a_(fwd|dq|dkv)", text)
    if cost is None or kernel is None:
        raise ValueError(f"{instruction.name}: what this kernel computes can't be told.")
    return float(cost[1]) * SPLASH_PRODUCTS[kernel[1]]


def _cudnn_flops(instruction: Instruction, queries: tuple[int, ...]) -> float:
    """FLOPs of cuDNN's attention: it computes all scores, whatever a mask hides."""
    text = instruction.attributes
    kernel = re.search(r'"__cudnn\$fmha\w*?(Backward)?"', text)
    scores = re.search(r'"intermediate_tensor_shape":.*?"dimensions":\s*\[(.*?)\]', text)
    if kernel is None or scores is None:
        raise ValueError(f"{instruction.name}: what this call of cuDNN computes can't be told.")
    products = 5 if kernel[1] else 2  # scores, sums; backward the scores again and two gradients of each
    return 2.0 * products * math.prod(int(size) for size in re.findall(r"\d+", scores[1])) * queries[-1]


def _summed(instruction: Instruction) -> list[int] | None:
    """Axes of the left operand over which a matrix product sums, XLA's own or cuBLAS's; None for anything else."""
    text = instruction.attributes
    if instruction.opcode == "dot":
        axes = _attribute(text, "lhs_contracting_dims") or ""
    elif found := re.search(r'custom_call_target="__cublas\$.*"lhs_contracting_dimensions":\[(.*?)\]', text):
        axes = found[1]
    else:
        return None
    return [int(axis) for axis in re.findall(r"\d+", axes)]


def _replica_groups(text: str) -> list[list[int]]:
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        sizes = [int(size) for size in found[3].split(",")]
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        if found[4]:
            ids = ids.transpose([int(axis) for axis in found[4].split(",")])
        return ids.reshape(int(found[1]), int(found[2])).tolist()
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return [[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found[1])]
    return []


def _convolution_flops(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Multiplications that a convolution does with real numbers: those with padding or dilation holes are left out.

    On TPUs matrix products are convolutions whose batch axes are windows over a dilated axis.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"convolution {instruction.name} has no dim_labels.")
    ours, kernel, out = labels[1], labels[2], labels[3]
    made = dimensions(instruction.shape)
    spatial = sorted(set(ours) - {"b", "f"})
    text, count = instruction.attributes, len(spatial)
    strides = _window(text, "stride", count, "1")
    pads = _window(text, "pad", count, "0_0")
    dilations = _window(text, "lhs_dilate", count, "1")
    kernel_dilations = _window(text, "rhs_dilate", count, "1")
    pairs = 1
    for i, label in enumerate(spatial):
        size, dilation = left[ours.index(label)], int(dilations[i])
        places = (
            np.arange(made[out.index(label)])[:, None] * int(strides[i])
            + np.arange(right[kernel.index(label)])[None, :] * int(kernel_dilations[i])
            - int(pads[i].split("_")[0])
        )
        inside = (places >= 0) & (places <= (size - 1) * dilation) & (places % dilation == 0)
        pairs *= int(np.count_nonzero(inside))
    groups = int(_attribute(text, "batch_group_count") or 1)
    features = right[kernel.index("i")] * right[kernel.index("o")]
    return 2.0 * left[ours.index("b")] // groups * features * pairs


def by_axis(traffic: Sequence[Traffic]) -> dict[tuple[str, ...], float]:
    """Bytes that each device sends, by the mesh axes that they cross."""
    ordered = sorted(traffic, key=lambda one: one.axes)
    return {
        axes: math.fsum(one.sent for one in ones) for axes, ones in itertools.groupby(ordered, lambda one: one.axes)
    }
