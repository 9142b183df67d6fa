"""Finds how often the bodies of a program's loops run."""

import math
import re

from mm1_jax.rehearse.hlo import Computation, Instruction, Module


def trip_count(module: Module, loop: Instruction, computation: Computation) -> int | None:
    """Returns a loop's annotated trip count, or else that of its counter's start, step and bound.

    None if neither is known.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known.group(1))
    (condition,) = module.called(loop, "condition")
    compare, values = _comparison(module, condition)
    if compare is not None:
        for side, other in ((0, 1), (1, 0)):
            counter, bound = values[side], values[other]
            index = _tuple_index(counter, condition)
            limit = _constant(bound, condition)
            if limit is None and (passed := _tuple_index(bound, condition)) is not None:
                limit = _initial_value(loop, computation, passed)
            if index is None or limit is None:
                continue
            start = _initial_value(loop, computation, index) or 0
            step = _step(module, loop, index)
            inclusive = "direction=LE" in compare or "direction=GE" in compare
            return max(math.ceil((abs(limit - start) + inclusive) / abs(step or 1)), 0)
    return None


def _comparison(module: Module, condition: Computation) -> tuple[str | None, list[Instruction]]:
    """Returns the attributes and the operands of the comparison at the end of a condition."""
    root = condition.root
    if root.opcode == "fusion":
        (inner,) = module.called(root, "calls")
        if inner.root.opcode != "compare":
            return None, []
        numbers = {p.name: number for number, p in inner.parameters.items()}
        operands = [
            condition.by_name[root.operands[numbers[name]]]
            if name in numbers
            else inner.by_name[name]
            for name in inner.root.operands
        ]
        return inner.root.attributes, operands
    if root.opcode != "compare":
        return None, []
    return root.attributes, [condition.by_name[name] for name in root.operands]


def _initial_value(loop: Instruction, computation: Computation, index: int) -> int | None:
    """Returns the constant initial value of a loop's element `index`."""
    initial = computation.by_name.get(loop.operands[0])
    while initial is not None and initial.opcode in ("copy", "opt-barrier", "bitcast"):
        initial = computation.by_name.get(initial.operands[0])
    if initial is None or initial.opcode != "tuple":
        return None
    value = computation.by_name.get(initial.operands[index])
    return None if value is None else _constant(value, computation)


def _step(module: Module, loop: Instruction, index: int) -> int | None:
    """Returns the constant that an iteration adds to the counter."""
    (body,) = module.called(loop, "body")
    if body.root.opcode != "tuple" or index >= len(body.root.operands):
        return None
    value = body.by_name.get(body.root.operands[index])
    computation = body
    while value is not None and value.opcode in ("copy", "bitcast", "convert", "fusion"):
        if value.opcode == "fusion":
            (computation,) = module.called(value, "calls")
            value = computation.root
        else:
            value = computation.by_name.get(value.operands[0])
    if value is None or value.opcode not in ("add", "subtract"):
        return None
    for name in value.operands:
        constant = _constant(computation.by_name[name], computation)
        if constant is not None:
            return constant
    return None


def _tuple_index(i: Instruction, computation: Computation) -> int | None:
    while i.opcode in ("copy", "convert", "bitcast") and i.operands[0] in computation.by_name:
        i = computation.by_name[i.operands[0]]
    match = re.search(r"\bindex=(\d+)", i.attributes)
    return int(match.group(1)) if i.opcode == "get-tuple-element" and match else None


def _constant(i: Instruction, computation: Computation) -> int | None:
    while i.opcode in ("copy", "convert", "bitcast") and i.operands[0] in computation.by_name:
        i = computation.by_name[i.operands[0]]
    if i.opcode != "constant" or not re.fullmatch(r"-?\d+", i.operands[0]):
        return None
    return int(i.operands[0])
