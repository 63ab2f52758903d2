"""What a compiled program reads from main memory and writes to it, counted from its HLO text.

Every instruction that is not part of a fusion reads its operands and writes its result: an upper bound, since nothing
is taken to stay on the chip. Of an array that is sliced or looked up, what is taken counts, and of one that is updated
in place, the update: layers that are scanned read their own part of what all layers hold.
"""

import math
from collections.abc import Mapping

from bltjax.hlo import Instruction, Program, size_in_bytes

_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all")
_TAKEN = ("dynamic-slice", "slice", "gather")
_UPDATES = ("dynamic-update-slice", "scatter")  # write into the first operand


def memory_traffic(program: Program) -> float:
    """Bytes between the chip and its main memory in one run, on one device."""
    inside = {
        called
        for made in program.computations.values()
        for instruction in made.values()
        if instruction.opcode not in ("while", "conditional", "call")
        for called, _ in program.calls(instruction)
    }
    return math.fsum(
        runs * _moved(program, program.computations[name], instruction)
        for name, runs in program.runs.items()
        if runs and name not in inside
        for instruction in program.computations[name].values()
        if instruction.opcode not in _FREE and not instruction.opcode.endswith("-done")
    )


def _moved(program: Program, made: Mapping[str, Instruction], instruction: Instruction) -> float:
    given = [size_in_bytes(made[name].shape, "main") if name in made else 0.0 for name in instruction.operands]
    result = size_in_bytes(instruction.shape, "main")
    if instruction.opcode.endswith("-start"):  # what starts returns its operands too
        result = max(0.0, result - math.fsum(given))
    called = program.calls(instruction)
    if instruction.opcode.removesuffix("-start") == "fusion" and called:
        body = program.computations[called[0][0]]
        parameters = {int(one.arguments): one.name for one in body.values() if one.opcode == "parameter"}
        read = [min(size, _read(body, parameters[i])) for i, size in enumerate(given)]
        return math.fsum(read) + min(result, _written(body, body[list(body)[-1]]))
    body = {**made, instruction.name: instruction}
    return math.fsum(
        min(size, _read({name: body[name], instruction.name: instruction}, name)) if name in made else 0.0
        for name, size in zip(instruction.operands, given, strict=True)
    ) + min(result, _written(body, instruction))


def _read(body: Mapping[str, Instruction], name: str) -> float:
    """Bytes of an array that a computation needs."""
    total = 0.0
    for one in body.values():
        if name not in one.operands:
            continue
        if one.opcode == "bitcast":
            total += _read(body, one.name)
        elif one.operands[0] == name and one.opcode in _TAKEN:
            total += size_in_bytes(one.shape)
        elif one.operands[0] != name or one.opcode not in _UPDATES:
            return size_in_bytes(body[name].shape)
    return total


def _written(body: Mapping[str, Instruction], root: Instruction) -> float:
    """Bytes that an instruction's result changes."""
    if root.opcode == "tuple":
        return math.fsum(_written(body, body[name]) for name in root.operands)
    if root.opcode == "bitcast" and root.operands[0] in body:
        return _written(body, body[root.operands[0]])
    if root.opcode in _UPDATES:
        arrays = len(root.operands) // 2  # of a scatter: these, places in them, and what is added there
        updates = root.operands[arrays + 1 :] if root.opcode == "scatter" else root.operands[1:2]
        return math.fsum(size_in_bytes(body[name].shape) for name in updates if name in body)
    return size_in_bytes(root.shape)
