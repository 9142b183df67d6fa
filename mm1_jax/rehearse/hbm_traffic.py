"""Counts the bytes that instructions read from and write to the HBM of a chip."""

from collections.abc import Sequence

from mm1_jax.rehearse.hlo import Computation, Instruction, Module, Shape


def hbm_bytes(module: Module, i: Instruction, computation: Computation) -> float:
    """Returns the bytes that an instruction moves; slices and updates count their piece only."""
    if i.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _hbm(i.shapes)
    if i.opcode == "dynamic-update-slice":
        return 2 * _hbm(computation.shapes_of(i.operands[1]))
    if i.opcode == "scatter":
        return 3 * _hbm(computation.shapes_of(i.operands[-1]))
    if i.opcode != "fusion":
        return _hbm(i.shapes) + _hbm(computation.operand_shapes(i))
    (inner,) = module.called(i, "calls")
    total = _written(inner, inner.root)
    for number, operand in enumerate(i.operands):
        shapes = computation.shapes_of(operand)
        if _hbm(shapes):
            total += min(_read(inner, number), _hbm(shapes))
    return total


def _hbm(shapes: Sequence[Shape]) -> float:
    return sum((shape.num_bytes for shape in shapes if shape.in_hbm), 0.0)


def _read(inner: Computation, number: int) -> float:
    """Returns the bytes that a fusion reads of its operand `number`."""
    parameter = inner.parameters.get(number)
    if parameter is None:
        return 0.0
    users = [i for i in inner.instructions if parameter.name in i.operands]
    total = 0.0
    for user in users:
        if (
            user.opcode in ("dynamic-slice", "gather", "slice")
            and user.operands[0] == parameter.name
        ):
            total += sum((s.num_bytes for s in user.shapes), 0.0)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue
        else:
            return _hbm(parameter.shapes)
    return total


def _written(inner: Computation, root: Instruction) -> float:
    """Returns the bytes that a fusion writes."""
    if root.opcode == "tuple":
        values = [inner.by_name[name] for name in root.operands if name in inner.by_name]
        return sum((_written(inner, value) for value in values), 0.0)
    if not _hbm(root.shapes) or root.opcode == "parameter":
        return 0.0
    value = root
    while value.opcode in ("bitcast", "copy", "convert") and value.operands[0] in inner.by_name:
        value = inner.by_name[value.operands[0]]
    if value.opcode == "dynamic-update-slice":
        return sum((s.num_bytes for s in inner.shapes_of(value.operands[1])), 0.0)
    return _hbm(root.shapes)
