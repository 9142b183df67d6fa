"""Counts FLOPs of matrix products and kernels in an instruction, from the operands' shapes.

Of a kernel these are the products that its result needs; its code may run more (see `mosaic`).
"""

import enum
import functools
import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from mm1_jax.rehearse.hlo import Computation, Instruction, Module, Shape
from mm1_jax.rehearse.vector_ops import TRANSCENDENTAL


class Operands(enum.Enum):
    """Types of a product's operands that chips may multiply faster than bfloat16."""

    INT8 = "int8"
    FP8 = "fp8"


def matmul_flops(
    module: Module, i: Instruction, computation: Computation, of: Operands | None = None
) -> float:
    """Returns the FLOPs of a matrix product, or of those within a fusion.

    Args:
        of: Counts only products whose operands both are of this type.
    """
    if i.opcode == "fusion":
        inner = module.called(i, "calls")
        works = (matmul_flops(module, each, c, of) for c in inner for each in c.instructions)
        return sum(works, 0.0)
    is_dot = i.opcode == "dot" or (
        i.opcode == "custom-call" and i.call_target.startswith("__cublas$")
    )
    if not is_dot and i.opcode != "convolution":
        return 0.0
    if of is not None and _operands(i, computation) is not of:
        return 0.0
    return dot_flops(i, computation) if is_dot else convolution_flops(i, computation)


def _operands(i: Instruction, computation: Computation) -> Operands | None:
    dtypes = [s.dtype for name in i.operands[:2] for s in computation.shapes_of(name)]
    if all(dtype in ("s8", "u8") for dtype in dtypes):
        return Operands.INT8
    return Operands.FP8 if all(dtype.startswith("f8") for dtype in dtypes) else None


def dot_flops(i: Instruction, computation: Computation) -> float:
    """Returns 2 x elements of the result x elements of the contracted dims."""
    left = computation.shapes_of(i.operands[0])
    match = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([\d,"]*)[\]}]', i.attributes)
    if not left or match is None:
        return 0.0
    dims = [int(dim) for dim in match.group(1).replace('"', "").split(",") if dim]
    return 2.0 * i.shapes[0].size * math.prod(left[0].dims[dim] for dim in dims)


def convolution_flops(i: Instruction, computation: Computation) -> float:
    """Returns 2 FLOPs per multiplication with an input element; padding and holes do not count.

    TPUs run every matrix product as a convolution, with batch dims as dilated spatial dims.
    """
    left, right = (computation.shapes_of(name)[0].dims for name in i.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    assert labels is not None, i.name
    left_labels, right_labels, out_labels = labels.groups()
    window = _window(i.attributes)
    result = i.shapes[0].dims
    feature_groups, batch_groups = (
        int(match.group(1)) if (match := re.search(rf"{name}=(\d+)", i.attributes)) else 1
        for name in ("feature_group_count", "batch_group_count")
    )
    products = (
        left[left_labels.index("f")]
        / feature_groups
        * result[out_labels.index("f")]
        * left[left_labels.index("b")]
        / batch_groups
    )
    for dim in range(len(left_labels) - 2):
        products *= _num_products(
            num_inputs=left[left_labels.index(str(dim))],
            num_taps=right[right_labels.index(str(dim))],
            num_outputs=result[out_labels.index(str(dim))],
            **{name: values[dim] for name, values in window.items() if dim < len(values)},
        )
    return 2.0 * products


def _window(attributes: str) -> dict[str, list]:
    match = re.search(r"window=\{([^}]*)\}", attributes)
    entries = dict(part.split("=") for part in match.group(1).split()) if match else {}
    window: dict[str, list] = {
        name: [int(value) for value in entries[name].split("x")]
        for name in ("stride", "lhs_dilate", "rhs_dilate")
        if name in entries
    }
    if "pad" in entries:
        window["pad"] = [int(value.split("_")[0]) for value in entries["pad"].split("x")]
    return window


@functools.lru_cache(maxsize=4096)
def _num_products(
    num_inputs: int,
    num_taps: int,
    num_outputs: int,
    stride: int = 1,
    pad: int = 0,
    lhs_dilate: int = 1,
    rhs_dilate: int = 1,
) -> int:
    """Counts the pairs of output and window tap that meet an input element."""
    if num_taps == 1 and pad == 0 and lhs_dilate == 1:
        return num_outputs
    outputs, last = np.arange(num_outputs) * stride, (num_inputs - 1) * lhs_dilate
    met = 0
    for tap in range(num_taps):
        places = outputs + (tap * rhs_dilate - pad)
        is_inside = (places >= 0) & (places <= last) & (places % lhs_dilate == 0)
        met += int(np.count_nonzero(is_inside))
    return met


# Vector operations of attention per pair of a query and a key: two to mask it, four passes of the
# softmax, of which one takes an exponential, and the conversion of the result.
ATTENTION_OPS = 10


def kernel_estimate(i: Instruction, name: str) -> float:
    """Returns a number of the cost estimate by a kernel's author; 0 if there is none."""
    pattern = rf'"cost_estimate":\s*\{{[^}}]*"{name}":\s*"?(\d+)'
    match = re.search(pattern, i.attributes)
    return float(match.group(1)) if match else 0.0


def kernel_flops(i: Instruction, computation: Computation) -> float | None:
    """Returns the FLOPs of a kernel: its author's estimate if given, else ours; None if unknown."""
    if estimate := kernel_estimate(i, "flops"):
        return estimate
    count = _known_kernel(i)
    return None if count is None else count(i, computation)[0]


def kernel_vector_ops(i: Instruction, computation: Computation) -> float:
    """Returns the vector operations of a kernel whose code is unknown, as far as known."""
    if estimate := kernel_estimate(i, "transcendentals"):
        return estimate * TRANSCENDENTAL
    count = _known_kernel(i)
    return 0.0 if count is None else count(i, computation)[1] * ATTENTION_OPS


def is_causal(i: Instruction, computation: Computation) -> bool:
    """Tells whether a call of splash attention has a causal mask.

    The kernel computes causal masks from query indices. These are an additional integer operand
    beside the segment ids, of which there are two or none, so an odd number of integer operands
    means a causal mask.
    """
    if "splash_m" not in i.name:
        return False
    operands = computation.operand_shapes(i)
    return sum(s.dtype == "s32" for s in operands[_first_array(operands) :]) % 2 == 1


def _first_array(operands: Sequence[Shape]) -> int:
    """Returns the index of the queries, which follow the block mask."""
    is_array = [s.dtype in ("bf16", "f32", "f16") and len(s.dims) >= 3 for s in operands]
    return is_array.index(True)


# Returns the FLOPs and the pairs of a query and a key of a call.
_Count = Callable[[Instruction, Computation], tuple[float, float]]


def _known_kernel(i: Instruction) -> _Count | None:
    op_name = re.search(r'op_name="([^"]*)"', i.attributes)
    text = f"{i.name} {op_name.group(1) if op_name else ''}"
    return next((count for name, count in _KERNELS.items() if name in text), None)


def _splash(num_products: Callable[[Instruction, int], int]) -> _Count:
    def count(i: Instruction, computation: Computation) -> tuple[float, float]:
        """Counts the products of queries with keys: all, or half of them under a causal mask."""
        operands = computation.operand_shapes(i)
        first = _first_array(operands)
        query, key = operands[first], operands[first + 1]
        shared = 2 if is_causal(i, computation) else 1
        pairs = math.prod(query.dims[:-1]) * key.dims[-2] / shared
        return 2.0 * pairs * query.dims[-1] * num_products(i, len(query.dims)), pairs

    return count


def _products_backward(i: Instruction, query_rank: int) -> int:
    # Five products if the kernel also computes the queries' gradient, an output with an additional
    # dim for blocks of keys; else four.
    return 5 if any(len(s.dims) > query_rank for s in i.shapes) else 4


def _mha(num_products: int, num_passes: int) -> _Count:
    """Returns a counter for jax's GPU attention; causal attention runs in a scope "causal"."""

    def count(i: Instruction, computation: Computation) -> tuple[float, float]:
        queries, keys = (s for name in i.operands[:2] for s in computation.shapes_of(name))
        shared = 2 if "/causal/" in i.attributes else 1
        products = math.prod(queries.dims) * keys.dims[1] / shared
        return 2.0 * num_products * products, num_passes * products / queries.dims[-1]

    return count


# Part of a kernel's name -> its counter, for kernels without an estimate.
_KERNELS: dict[str, _Count] = {
    "splash_mha_fwd": _splash(lambda i, rank: 2),
    "splash_mqa_fwd": _splash(lambda i, rank: 2),
    "splash_mha_dq": _splash(lambda i, rank: 3),
    "splash_mqa_dq": _splash(lambda i, rank: 3),
    "splash_mha_dkv": _splash(_products_backward),
    "splash_mqa_dkv": _splash(_products_backward),
    "mha_forward": _mha(2, 1),
    # Two passes in one call: four products for keys and values, three for queries.
    "mha_backward": _mha(7, 2),
    # Sums over the head dim.
    "mha_preprocess_backward": lambda i, computation: (0.0, 0.0),
}
