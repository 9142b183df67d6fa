"""Counts the work of a Pallas kernel from its code, which a TPU's custom call carries.

The code is a function of one step of the kernel's grid, in the Mosaic dialect of MLIR, and one
function per operand that maps a step to the block that it needs. Assumptions:

    grid        runs in order; a block moves when its index differs from the step before
    branches    on the first or last index of a grid dim run as often as they are met; branches on a
                loaded value are those of a block mask, which is causal or lets all blocks run;
                other branches always run
    products    fill whole tiles: 8 rows, 128 lanes, 128 contracted
"""

import base64
import functools
import importlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mm1_jax.rehearse.hlo import Instruction
from mm1_jax.rehearse.vector_ops import TRANSCENDENTAL

LANES, SUBLANES = 128, 8

_TRANSCENDENTAL = re.compile(
    r"math\.(exp|exp2|expm1|log|log2|log1p|tanh|rsqrt|sqrt|sin|cos|erf|powf)|arith\.divf|"
    r"tpu\.(reciprocal|erf)"
)
_VECTOR = re.compile(
    r"(arith|math)\.(?!constant|index_cast)|vector\.multi_reduction|tpu\.(reciprocal|erf)"
)


@dataclass(frozen=True)
class KernelWork:
    """Work of one call of a kernel.

    Attributes:
        flops: FLOPs of its matrix products.
        padded_flops: The same with the padding of tiles.
        vector_ops: Operations on 32-bit elements; 16 bits count half.
        moved: Bytes moved to or from each operand and result; None where its code does not tell.
    """

    flops: float = 0.0
    padded_flops: float = 0.0
    vector_ops: float = 0.0
    moved: tuple[float | None, ...] = ()

    def __add__(self, other: "KernelWork") -> "KernelWork":
        return KernelWork(
            self.flops + other.flops,
            self.padded_flops + other.padded_flops,
            self.vector_ops + other.vector_ops,
        )

    def __mul__(self, times: int | float) -> "KernelWork":
        return KernelWork(self.flops * times, self.padded_flops * times, self.vector_ops * times)


def kernel_work(i: Instruction, is_causal: bool) -> KernelWork | None:
    """Returns the work of a custom call; None if it carries no Mosaic code that jaxlib reads."""
    body = re.search(r'"custom_call_config": ?\{"body": ?"([\w+/=]+)"', i.attributes)
    return _work(body.group(1), is_causal) if body else None


@functools.lru_cache(maxsize=256)
def _work(body: str, is_causal: bool) -> KernelWork | None:
    try:
        # jaxlib alone, since importing jax takes longer than a prediction.
        ir = importlib.import_module("jaxlib.mlir.ir")
        passes = importlib.import_module("jaxlib.mlir.passmanager")
        dialect = importlib.import_module("jaxlib.mosaic.python.tpu")
    except ImportError:
        return None
    with ir.Context() as context:
        context.allow_unregistered_dialects = True
        dialect.register_dialect(context)
        try:
            module = ir.Module.parse(base64.b64decode(body))
            upgrade = "builtin.module(mosaic-serde{serialize=false})"
            passes.PassManager.parse(upgrade).run(module.operation)
        except (ValueError, ir.MLIRError):
            return None
        kernel = _Kernel(ir, module, is_causal)
        # A grid may have dims that only the running kernel knows, which are negative here.
        return kernel.work() if min(kernel.grid, default=1) > 0 else None


class _Kernel:
    def __init__(self, ir: Any, module: Any, is_causal: bool):
        self._ir, self._is_causal = ir, is_causal
        functions = {
            ir.StringAttr(op.attributes["sym_name"]).value: op.operation
            for op in module.body.operations
            if "sym_name" in op.attributes
        }
        # The kernel comes first; the others map grid indices to blocks.
        self._main = next(iter(functions.values()))
        self._functions = functions
        self.grid = self._integers("iteration_bounds")

    def work(self) -> KernelWork:
        block = self._main.regions[0].blocks[0]
        total = self._of_block(block) * math.prod(self.grid)
        moved = tuple(self._moved(block))
        return KernelWork(total.flops, total.padded_flops, total.vector_ops, moved)

    def _integers(self, name: str) -> list[int]:
        attributes = self._main.attributes
        if name not in attributes:
            return []
        value = attributes[name]
        is_array = isinstance(value, self._ir.DenseI64ArrayAttr)
        return list(value) if is_array else [self._ir.IntegerAttr(value).value]

    def _of_block(self, block: Any) -> KernelWork:
        total = KernelWork()
        for view in block.operations:
            op = view.operation
            if op.name == "scf.if":
                share = self._share(op.operands[0])
                branches = [self._of_block(r.blocks[0]) for r in op.regions if len(r.blocks)]
                for branch, times in zip(branches, (share, 1 - share), strict=False):
                    total += branch * times
            elif op.name == "scf.for":
                total += self._of_block(op.regions[0].blocks[0]) * self._trips(op)
            elif op.name == "tpu.matmul":
                total += self._product(op)
            elif _VECTOR.match(op.name):
                total += KernelWork(vector_ops=self._vector_ops(op))
            else:
                for region in op.regions:
                    for inner in region.blocks:
                        total += self._of_block(inner)
        return total

    def _product(self, op: Any) -> KernelWork:
        left, out = self._dims(op.operands[0].type), self._dims(op.results[0].type)
        numbers = str(op.attributes["dimension_numbers"])
        contracted = re.search(r"<\[([\d, ]*)\]", numbers)
        assert contracted is not None, numbers
        inner = math.prod(left[int(dim)] for dim in contracted.group(1).split(","))
        flops = 2.0 * math.prod(out) * inner
        padded = 2.0 * math.prod(_padded(out)) * _up(inner, LANES)
        return KernelWork(flops=flops, padded_flops=padded)

    def _vector_ops(self, op: Any) -> float:
        types = [value.type for value in (*op.operands, *op.results)]
        sizes = [
            math.prod(_padded(dims)) * self._bits(kind) / 32
            for kind in types
            if (dims := self._dims(kind)) and self._bits(kind) > 1
        ]
        weight = TRANSCENDENTAL if _TRANSCENDENTAL.fullmatch(op.name) else 1
        return weight * max(sizes, default=0.0)

    def _dims(self, kind: Any) -> list[int]:
        if isinstance(kind, self._ir.VectorType | self._ir.MemRefType):
            return list(kind.shape)
        return []

    def _bits(self, kind: Any) -> int:
        match = re.search(r"[a-z](\d+)", str(kind.element_type))
        return int(match.group(1)) if match else 32

    def _share(self, condition: Any) -> float:
        """Returns the share of grid steps that take a branch."""
        loads = [op for op in self._sources(condition) if op.name == "memref.load"]
        if loads:
            return self._mask_share(loads[0])
        for op in self._sources(condition):
            if op.name == "arith.cmpi":
                indices = [n for value in op.operands if (n := self._grid_index(value)) is not None]
                predicate = self._ir.IntegerAttr(op.attributes["predicate"]).value
                if len(indices) == 1 and predicate in (0, 1):
                    once = 1 / self.grid[indices[0]]
                    return once if predicate == 0 else 1 - once
        return 1.0

    def _mask_share(self, load: Any) -> float:
        """Returns the share of blocks that a mask lets run; its last dims are queries and keys."""
        dims = [
            self.grid[index]
            for value in load.operands
            for index in sorted(self._grid_indices([value]))
        ]
        return causal_share(*dims[-2:]) if self._is_causal and len(dims) >= 2 else 1.0

    def _sources(self, value: Any) -> Iterator[Any]:
        """Yields the operations that a value is computed by, the last first."""
        pending = [value]
        while pending:
            owner = pending.pop(0).owner
            if isinstance(owner, self._ir.Block):
                continue
            op = owner.operation
            yield op
            pending += list(op.operands)

    def _grid_index(self, value: Any) -> int | None:
        if not isinstance(value.owner, self._ir.Block):
            return None
        number = self._ir.BlockArgument(value).arg_number
        is_function = value.owner.owner.operation.name == "func.func"
        return number if is_function and number < len(self.grid) else None

    def _grid_indices(self, values: Sequence[Any]) -> set[int]:
        """Returns the dims of the grid that values depend on."""
        found: set[int] = set()
        for value in values:
            operands = [operand for op in self._sources(value) for operand in op.operands]
            indices = (self._grid_index(each) for each in (value, *operands))
            found |= {index for index in indices if index is not None}
        return found

    def _trips(self, loop: Any) -> int:
        low, high, step = (self._constant(value) for value in loop.operands[:3])
        if low is None or high is None or step is None:
            return 1
        return max(-(-(high - low) // step), 0)

    def _constant(self, value: Any) -> int | None:
        if isinstance(value.owner, self._ir.Block):
            return None
        op = value.owner.operation
        if op.name == "arith.addi":
            # The end of a loop is its start plus its length.
            start, length = (self._constant(operand) for operand in op.operands)
            return None if start is None or length is None else start + length
        if op.name != "arith.constant":
            return None
        return self._ir.IntegerAttr(op.attributes["value"]).value

    def _moved(self, block: Any) -> Iterator[float | None]:
        """Yields the bytes moved for each operand and result of the kernel."""
        (prefetched,) = self._integers("scalar_prefetch") or (0,)
        arguments = list(block.arguments)[len(self.grid) :]
        yield from (0.0 for _ in arguments[:prefetched])
        if "window_params" not in self._main.attributes:
            return
        for window, argument in zip(
            self._main.attributes["window_params"], arguments[prefetched:], strict=False
        ):
            function = re.search(r"transform_indices = @([\w.]+)", str(window))
            kind = argument.type
            if function is None or not isinstance(kind, self._ir.MemRefType):
                yield None
                continue
            (body,) = self._functions[function.group(1)].regions[0].blocks
            returned = list(body.operations)[-1].operation
            indices = self._grid_indices(returned.operands)
            sources = [op for value in returned.operands for op in self._sources(value)]
            loads = [op for op in sources if op.name == "memref.load"]
            steps = math.prod(self.grid[: max(indices, default=-1) + 1])
            share = self._mask_share(loads[0]) if loads else 1.0
            bits = self._bits(kind)
            size = math.prod(_padded(self._dims(kind), SUBLANES * 32 // max(bits, 8)))
            yield steps * share * size * bits / 8


def causal_share(num_query_blocks: int, num_key_blocks: int) -> float:
    """Returns the share of blocks of a causal mask in which any key precedes a query."""
    rows = (-(-(row + 1) * num_key_blocks // num_query_blocks) for row in range(num_query_blocks))
    return sum(rows) / (num_query_blocks * num_key_blocks)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _padded(dims: Sequence[int], sublanes: int = SUBLANES) -> list[int]:
    """Returns dims with the last two rounded up to a tile."""
    if len(dims) < 2:
        return [_up(dim, LANES) for dim in dims]
    # Fewer rows than a tile are stored in a smaller one.
    rows = min(sublanes, SUBLANES) if dims[-2] <= SUBLANES else sublanes
    return [*dims[:-2], _up(dims[-2], rows), _up(dims[-1], LANES)]
