"""Parses optimized, scheduled HLO text into the computations and instructions of a module.

The compiler's own cost analysis does not suffice: it counts the body of a loop once and ignores the
interconnect. Attributes may be JSON with newlines, and operands come with or without types.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

# Bits of element types without a number in their name.
_BITS = {"pred": 8, "token": 0, "opaque": 0}


@dataclass(frozen=True)
class Shape:
    """An array: element type, dims, and whether it lies in HBM or in the host's memory.

    Attributes:
        stored_dims: Dims in memory, the slowest first, padded to whole tiles; `dims` by default.
    """

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool
    on_host: bool = False
    stored_dims: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def stored_size(self) -> int:
        """Number of elements including those that pad tiles."""
        return self.size if self.stored_dims is None else math.prod(self.stored_dims)

    @property
    def bits(self) -> int:
        return _bits(self.dtype)

    @property
    def num_bytes(self) -> float:
        return self.size * self.bits / 8

    @property
    def stored_bytes(self) -> float:
        return self.stored_size * self.bits / 8


@dataclass(frozen=True)
class Instruction:
    """One instruction of a computation; `shapes` are its results, with tuples flattened."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def called(self, *names: str) -> tuple[str, ...]:
        """Returns the names of the computations in the attributes of these names."""
        found: list[str] = []
        for name in names:
            for text in re.findall(rf"\b{name}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes):
                found += re.findall(r"[\w.\-]+", text)
        return tuple(found)

    @functools.cached_property
    def call_target(self) -> str:
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match.group(1) if match else ""


@dataclass
class Computation:
    name: str
    instructions: list[Instruction]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(i.operands[0]): i for i in self.instructions if i.opcode == "parameter"}

    def operand_shapes(self, instruction: Instruction) -> list[Shape]:
        return [s for name in instruction.operands for s in self.shapes_of(name)]

    def shapes_of(self, name: str) -> tuple[Shape, ...]:
        return self.by_name[name].shapes if name in self.by_name else ()


@dataclass
class Module:
    """All computations of a module, by name.

    Attributes:
        num_devices: Number of devices that it was compiled for, within one slice.
    """

    computations: dict[str, Computation]
    entry: str
    num_devices: int

    def called(self, instruction: Instruction, *names: str) -> list[Computation]:
        """Returns the computations in the attributes of these names."""
        return [self.computations[name] for name in instruction.called(*names)]


def parse(text: str) -> Module:
    """Parses the text of an optimized module.

    Raises:
        ValueError: The text is not that of a module.
    """
    header = re.search(r"^HloModule .*$", text, re.MULTILINE)
    if header is None:
        raise ValueError(
            "this is not HLO text: no line begins with HloModule; give what as_text() of a "
            "compiled JAX function returns"
        )
    num_devices = 1
    for name in ("num_partitions", "replica_count"):
        match = re.search(rf"\b{name}=(\d+)", header.group())
        num_devices *= int(match.group(1)) if match else 1
    computations: dict[str, Computation] = {}
    entry = None
    for name, is_entry, statements in _computations(text):
        computations[name] = Computation(name, [_instruction(s) for s in statements])
        entry = name if is_entry else entry
    if entry is None:
        raise ValueError("this HLO text has no ENTRY computation")
    return Module(computations, entry, num_devices)


_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*")
_END = re.compile(r"\}(, execution_thread=\"\w+\")?")
_STATEMENT = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")


def _computations(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    """Yields each computation's name, whether it is the entry, and its statements.

    JSON inside a statement may span lines, some of which begin with `}`. So only a line with just a
    brace, and perhaps an execution thread, ends a computation.
    """
    statements: list[str] | None = None
    name, is_entry = "", False
    for line in text.splitlines():
        if statements is None:
            match = _HEADER.fullmatch(line)
            if match and " = " not in line.partition("(")[0]:
                name, is_entry, statements = match.group(2), bool(match.group(1)), []
        elif _END.fullmatch(line):
            yield name, is_entry, statements
            statements = None
        elif _STATEMENT.match(line):
            statements.append(line)
        elif statements:
            statements[-1] += "\n" + line


def _instruction(statement: str) -> Instruction:
    match = _STATEMENT.match(statement)
    assert match is not None
    rest = statement[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes = tuple(_shapes(rest[:end]))
    rest = rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    opcode = rest[:opening]
    if opcode in ("parameter", "constant"):
        operands: tuple[str, ...] = (inside,)
    else:
        operands = tuple(_operand_names(inside))
    return Instruction(
        match.group(2), shapes, opcode, operands, rest[closing + 1 :], bool(match.group(1))
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in the HLO text: {text[:80]}")


def _operand_names(text: str) -> Iterator[str]:
    """Yields the names of operands, which may follow their types."""
    depth, start = 0, 0
    text = re.sub(r"/\*.*?\*/", "", text) + ","
    for place, letter in enumerate(text):
        depth += letter in "([{"
        depth -= letter in ")]}"
        if letter == "," and depth == 0:
            operand = text[start:place].strip()
            start = place + 1
            if operand:
                yield operand.split(" ")[-1].removeprefix("%")


_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^}]*\})?")


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in _SHAPE.findall(text):
        sizes = tuple(int(dim.removeprefix("<=")) for dim in dims.split(",") if dim)
        space = re.search(r"S\((\d+)\)", layout)
        memory = space.group(1) if space else "0"
        stored = _stored_dims(sizes, layout)
        yield Shape(dtype, sizes, memory == "0", memory == "5", stored)


def _stored_dims(dims: tuple[int, ...], layout: str) -> tuple[int, ...] | None:
    """Returns dims in the order of memory, rounded up to the first tile of a layout.

    >>> _stored_dims((24, 2305, 16, 80), "{3,1,2,0:T(8,128)(2,1)}")
    (24, 16, 2312, 128)
    """
    match = re.match(r"\{([\d,]*):.*?T\(([\d,]+)\)", layout)
    if match is None or not dims:
        return None
    order, tile = ([int(n) for n in text.split(",") if n] for text in match.groups())
    stored = [dims[dim] for dim in reversed(order)]
    stored = [1] * (len(tile) - len(stored)) + stored
    first = len(stored) - len(tile)
    padded = (-(-n // t) * t for n, t in zip(stored[first:], tile, strict=True))
    return (*stored[:first], *padded)


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    match = re.match(r"[a-z]+(\d+)", dtype)
    return int(match.group(1)) if match else 0
