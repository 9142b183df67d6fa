"""Counts the element-wise operations and reductions of an instruction.

They take the vector unit at least their number over its rate. Not counted: moves between layouts
and lanes, since the unit has other ports for them, and masks, which are single bits.
"""

import math
import re

from mm1_jax.rehearse.hlo import Computation, Instruction, Module, Shape

# Operations of the vector unit for an operation on a vector, by opcode. A transcendental takes the
# place of four, since one unit beside the four adders of a lane computes them.
TRANSCENDENTAL = 4
_TRANSCENDENTALS = re.compile(
    "atan2|cbrt|cosine|divide|erf|exponential|exponential-minus-one|log|log-plus-one|logistic|power|"
    "remainder|rsqrt|sine|sqrt|tan|tanh"
)
_SIMPLE = re.compile(
    "abs|add|and|ceil|clamp|compare|convert|count-leading-zeros|floor|is-finite|maximum|minimum|"
    "multiply|negate|not|or|popcnt|reduce-precision|round-nearest-afz|round-nearest-even|select|"
    "shift-left|shift-right-arithmetic|shift-right-logical|sign|stochastic-convert|subtract|xor"
)


def vector_ops(module: Module, i: Instruction, computation: Computation) -> float:
    """Returns operations on 32-bit elements, with those that pad tiles; 16 bits count half."""
    if i.opcode == "fusion":
        inner = module.called(i, "calls")
        return sum((vector_ops(module, each, c) for c in inner for each in c.instructions), 0.0)
    if i.opcode in ("reduce", "reduce-window"):
        (region,) = module.called(i, "to_apply")
        each = sum(_weight(inner.opcode) for inner in region.instructions)
        if i.opcode == "reduce-window":
            window = re.search(r"window=\{size=([\dx]+)", i.attributes)
            taps = math.prod(map(int, window.group(1).split("x"))) if window else 1
            return each * taps * elements(i.shapes[:1])
        return each * elements(computation.shapes_of(i.operands[0]))
    weight = _weight(i.opcode)
    if not weight or not i.shapes[0].dims:
        return 0.0
    return weight * elements((*i.shapes, *computation.operand_shapes(i)))


def _weight(opcode: str) -> int:
    if _TRANSCENDENTALS.fullmatch(opcode):
        return TRANSCENDENTAL
    return 1 if _SIMPLE.fullmatch(opcode) else 0


def elements(shapes: tuple[Shape, ...]) -> float:
    """Returns the number of 32-bit elements of the largest of the arrays, but masks."""
    sizes = [shape.stored_size * shape.bits / 32 for shape in shapes if shape.dtype != "pred"]
    return max(sizes, default=0.0)
