"""Counts the bytes that instructions read from and write to the HBM of a chip.

Arrays count with the padding of their tiles, which moves as well. Each byte counts once: products
that read an operand again for every block of the result move more.
"""

from collections.abc import Iterator, Mapping, Sequence

from mm1_jax.rehearse.hlo import Computation, Instruction, Module, Shape
from mm1_jax.rehearse.transfers import SENT

_SLICES = ("dynamic-slice", "gather", "slice")
_UPDATES = ("dynamic-update-slice", "scatter")
# Custom calls that mark the pieces of a collective within fusions.
_MARKS = ("AsyncCollectiveStart", "AsyncCollectiveDone")


def hbm_bytes(module: Module, i: Instruction, computation: Computation) -> float:
    """Returns the bytes that an instruction moves; slices and updates count their piece only.

    A fusion updates arrays in place. What it only passes on, or hands to a collective that it
    carries a piece of, does not count.
    """
    if i.opcode in _SLICES:
        return 2 * stored_in_hbm(i.shapes)
    if i.opcode == "dynamic-update-slice":
        return 2 * stored_in_hbm(computation.shapes_of(i.operands[1]))
    if i.opcode == "scatter":
        return 3 * stored_in_hbm(computation.shapes_of(i.operands[-1]))
    if i.opcode != "fusion":
        operands = [s for name in dict.fromkeys(i.operands) for s in computation.shapes_of(name)]
        return stored_in_hbm(i.shapes) + stored_in_hbm(operands)
    (inner,) = module.called(i, "calls")
    results = _results(inner)
    total = 0.0
    for shape, value in zip(i.shapes, results, strict=len(results) == len(i.shapes)):
        if shape.in_hbm:
            total += min(_written(module, inner, value), shape.stored_bytes)
    names = {p.name: operand for p, operand in _parameters(inner, i)}
    for parameter, operand in _parameters(inner, i):
        held = stored_in_hbm(computation.shapes_of(operand))
        if held:
            pieces = dict(_pieces_read(module, inner, parameter, names))
            total += min(sum(pieces.values()), held)
    return total


def stored_in_hbm(shapes: Sequence[Shape]) -> float:
    """Returns the bytes of those of the arrays that lie in HBM."""
    return sum((shape.stored_bytes for shape in shapes if shape.in_hbm), 0.0)


def _stored(shapes: Sequence[Shape]) -> float:
    return sum((shape.stored_bytes for shape in shapes), 0.0)


def _results(inner: Computation) -> list[Instruction]:
    root = inner.root
    if root.opcode != "tuple":
        return [root]
    return [inner.by_name[name] for name in root.operands]


def _parameters(inner: Computation, fusion: Instruction) -> Iterator[tuple[Instruction, str]]:
    """Yields each parameter of a fusion with the name of its operand."""
    for number, operand in enumerate(fusion.operands):
        if number in inner.parameters:
            yield inner.parameters[number], operand


def _pieces_read(
    module: Module, inner: Computation, value: Instruction, names: Mapping[str, str]
) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yields the pieces that a fusion reads of `value`, each with a key, and their bytes.

    Equal pieces have equal keys, also in fusions within fusions.

    Args:
        names: Parameter of this computation -> name outside of the outermost fusion.
    """
    for user in inner.instructions:
        if value.name not in user.operands or _is_passed_on(user):
            continue
        is_first = user.operands[0] == value.name
        if user.opcode == "bitcast":
            yield from _pieces_read(module, inner, user, names)
        elif user.opcode == "fusion":
            (nested,) = module.called(user, "calls")
            outside = {p.name: names.get(o, o) for p, o in _parameters(nested, user)}
            for parameter, operand in _parameters(nested, user):
                if operand == value.name:
                    yield from _pieces_read(module, nested, parameter, outside)
        elif user.opcode in _SLICES and is_first:
            bounds = user.attributes.partition("slice={")[2].partition("}")[0]
            indices = [names.get(name, name) for name in user.operands[1:]]
            yield (user.opcode, bounds, *indices), _stored(user.shapes)
        elif user.opcode in _UPDATES and is_first:
            continue
        else:
            yield ("all",), _stored(value.shapes)


def _is_passed_on(user: Instruction) -> bool:
    opcode = user.opcode.removesuffix("-start").removesuffix("-done")
    return opcode in SENT or opcode == "tuple" or user.call_target in _MARKS


def _written(module: Module, inner: Computation, value: Instruction) -> float:
    """Returns the bytes that a fusion writes of one of its results."""
    whole = _stored(value.shapes)
    index = 0
    if value.opcode == "get-tuple-element":
        index = int(value.attributes.partition("index=")[2].partition(",")[0])
        value = inner.by_name[value.operands[0]]
    while value.opcode in ("bitcast", "copy", "convert") and value.operands[0] in inner.by_name:
        value = inner.by_name[value.operands[0]]
    if value.opcode == "parameter" or _is_passed_on(value):
        return 0.0
    if value.opcode == "fusion":
        (nested,) = module.called(value, "calls")
        return _written(module, nested, _results(nested)[index])
    if value.opcode in _UPDATES:
        return _stored(inner.shapes_of(value.operands[1 if "slice" in value.opcode else -1]))
    return whole
