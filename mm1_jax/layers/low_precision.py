"""Matrix products of 8-bit operands, scaled by the largest magnitude per row and per column.

    y = (q(x / s) q(kernel / t)) s t
    s = max |x| / limit per row, t = max |kernel| / limit per column

Rows and columns run along the dims that the product sums over, and q rounds to the nearest 8-bit
value. Scales are computed from the values of every step (dynamic quantization), as by AQT
(arXiv 2105.03536), so there is nothing to calibrate and no state. Parameters stay in their dtype.

Gradients pass through q unchanged. The gradient of x multiplies the 8-bit kernel of the forward
pass; its scales t multiply the gradient of y instead, so the kernel is rounded, and gathered from
its shards, in 8 bits only. The gradient of the kernel is computed in the dtype of x by default,
since it is summed over many positions and enters the weights.
"""

import enum
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from mm1_jax.config import Configurable, config_class
from mm1_jax.parallel.chips import CHIPS
from mm1_jax.parallel.parallelism import short_name
from mm1_jax.parallel.sharding import current_device_kind, current_platform

# The largest magnitude counts as at least this, so that a row of zeros has a scale.
_SMALLEST = 1e-30
_INT32_MAX = 2**31 - 1


class Precision(enum.Enum):
    """8-bit type of operands.

    INT8 sums in int32. FP8 sums in float32; it has e4m3 values with 3 bits of mantissa, and e5m2
    gradients with 2 (arXiv 2209.05433).
    """

    INT8 = "int8"
    FP8 = "fp8"


class Product(enum.Enum):
    """One of the three products of a linear map in training."""

    FORWARD = "forward"
    INPUT_GRADIENT = "input_gradient"
    KERNEL_GRADIENT = "kernel_gradient"


class LowPrecision(Configurable):
    """Precision of the products of a linear map, and those products that have it."""

    @config_class
    class Config(Configurable.Config):
        precision: Precision = Precision.INT8
        # The other products have the dtype of the model; () leaves all of them as they are.
        products: tuple[Product, ...] = (Product.FORWARD, Product.INPUT_GRADIENT)

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        self.precision = Precision(cfg.precision)
        self.products = frozenset(map(Product, cfg.products))

    # Modules hold it as a static attribute, so equal ones must share a compiled program.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, LowPrecision) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        return self.precision, self.products

    def einsum(self, subscripts: str, x: Float[Array, "..."], kernel: Float[Array, "..."]) -> Array:
        """Computes `jnp.einsum(subscripts, x, kernel)`.

        Args:
            subscripts: "rows,kernel->outputs", where `...` stands for leading dims of x. Every
                letter of x is in the kernel or the outputs, and the other way around.
        """
        self._check_chip()
        rows = "uvwxyz"[: x.ndim + 3 - len(subscripts.partition(",")[0])]
        return _einsum(self, subscripts.replace("...", rows), x, kernel)

    def rounded(self, x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
        """Rounds an operand as a product over `axis` does, for kernels without 8-bit operands."""
        values, scale = quantize(x, (axis,), self.value_dtype)
        return (values.astype(jnp.float32) * scale).astype(x.dtype)

    def _check_chip(self) -> None:
        """Raises ValueError if this type is no faster on the chip that is compiled for."""
        kind = short_name(current_device_kind())
        if current_platform() == "cpu":
            _warn_of_cpu(self.precision)
        elif kind in CHIPS and CHIPS[kind].peak(self.precision.value) is None:
            able = [name for name, chip in CHIPS.items() if chip.peak(self.precision.value)]
            raise ValueError(
                f"low_precision.precision={self.precision.value}: {kind} multiplies this type no "
                f"faster than bfloat16, only {', '.join(able)} do; choose another precision, or "
                "none (--config.model.decoder.low_precision=None)"
            )

    @property
    def value_dtype(self) -> DTypeLike:
        """Type of inputs and kernels."""
        return jnp.int8 if self.precision is Precision.INT8 else jnp.float8_e4m3fn

    @property
    def gradient_dtype(self) -> DTypeLike:
        return jnp.int8 if self.precision is Precision.INT8 else jnp.float8_e5m2


def instantiated(cfg: LowPrecision.Config | None) -> LowPrecision | None:
    """Returns None if no product is in 8 bits."""
    return None if cfg is None or not cfg.products else cfg.instantiate()


def einsum(
    low_precision: LowPrecision | None, subscripts: str, x: Array, kernel: Array
) -> Shaped[Array, "..."]:
    """Computes `jnp.einsum(subscripts, x, kernel)`, in 8 bits if `low_precision` is given."""
    if low_precision is None:
        return jnp.einsum(subscripts, x, kernel)
    return low_precision.einsum(subscripts, x, kernel)


@functools.cache
def _warn_of_cpu(precision: Precision) -> None:
    logging.warning(
        "low_precision: a CPU computes %s products as accelerators do, but no faster than float32",
        precision.value,
    )


class Quantized(NamedTuple):
    """8-bit values; values * scale is the array that they stand for."""

    values: Array
    scale: Float[Array, "..."]


def quantize(x: Float[Array, "..."], axes: tuple[int, ...], dtype: DTypeLike) -> Quantized:
    """Rounds x to 8 bits, with one scale for all elements along `axes`.

    A non-finite element makes its scale non-finite, so the product shows it.
    """
    if jnp.dtype(dtype) == jnp.int8:
        # The sum of all products must fit into int32; below 133,000 of them, the limit is 127.
        terms = math.prod(x.shape[axis] for axis in axes)
        limit = float(min(127, math.isqrt(_INT32_MAX // max(terms, 1))))
    else:
        limit = float(jnp.finfo(dtype).max)
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True).astype(jnp.float32)
    largest = jnp.maximum(largest, _SMALLEST)
    values = x.astype(jnp.float32) * (limit / largest)
    if jnp.dtype(dtype) == jnp.int8:
        values = jnp.round(values)
    return Quantized(values.astype(dtype), largest * (1 / limit))


class _Letters(NamedTuple):
    """Letters of the dims of x, kernel and y."""

    x: str
    kernel: str
    y: str


def _letters(subscripts: str) -> _Letters:
    operands, _, y = subscripts.partition("->")
    x, _, kernel = operands.partition(",")
    return _Letters(x, kernel, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _einsum(rule: LowPrecision, subscripts: str, x: Array, kernel: Array) -> Array:
    return _forward(rule, subscripts, x, kernel)[0]


def _forward(rule: LowPrecision, subscripts: str, x: Array, kernel: Array) -> tuple[Array, Any]:
    names = _letters(subscripts)
    # Unused, and not computed, if neither product is in 8 bits.
    q_kernel = quantize(kernel, _outside(names.kernel, names.y), rule.value_dtype)
    if Product.FORWARD in rule.products:
        q_x = quantize(x, _outside(names.x, names.y), rule.value_dtype)
        y = _dot(names.x, q_x, names.kernel, q_kernel, names.y, x.dtype)
    else:
        y = jnp.einsum(subscripts, x, kernel)
    # The backward pass needs the kernel in one of its forms.
    return y, (x, q_kernel if Product.INPUT_GRADIENT in rule.products else kernel)


def _backward(rule: LowPrecision, subscripts: str, saved: Any, g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    names = _letters(subscripts)
    if Product.INPUT_GRADIENT in rule.products:
        # Sums over the columns of the kernel, so their scales go into the other factor.
        scaled = g.astype(jnp.float32) * _aligned(kernel.scale, names.kernel, names.y)
        q_g = quantize(scaled, _outside(names.y, names.x), rule.gradient_dtype)
        unscaled = Quantized(kernel.values, jnp.ones((1,) * kernel.values.ndim, jnp.float32))
        dx = _dot(names.y, q_g, names.kernel, unscaled, names.x, x.dtype)
        kernel_dtype = x.dtype
    else:
        dx = jnp.einsum(f"{names.y},{names.kernel}->{names.x}", g, kernel)
        kernel_dtype = kernel.dtype
    if Product.KERNEL_GRADIENT in rule.products:
        q_x = quantize(x, _outside(names.x, names.kernel), rule.value_dtype)
        q_g = quantize(g, _outside(names.y, names.kernel), rule.gradient_dtype)
        return dx, _dot(names.x, q_x, names.y, q_g, names.kernel, kernel_dtype)
    return dx, jnp.einsum(f"{names.x},{names.y}->{names.kernel}", x, g).astype(kernel_dtype)


_einsum.defvjp(_forward, _backward)


def _outside(letters: str, others: str) -> tuple[int, ...]:
    return tuple(axis for axis, letter in enumerate(letters) if letter not in others)


def _dot(
    a_letters: str, a: Quantized, b_letters: str, b: Quantized, y_letters: str, dtype: DTypeLike
) -> Array:
    """Multiplies 8-bit values, then the sums by both scales, in float32."""
    # `jnp.einsum` has no product of the two types of fp8.
    summed = [letter for letter in a_letters if letter in b_letters and letter not in y_letters]
    shared = [letter for letter in a_letters if letter in b_letters and letter in y_letters]

    def axes(letters: list[str]) -> tuple[list[int], list[int]]:
        return [a_letters.index(x) for x in letters], [b_letters.index(x) for x in letters]

    total = jnp.int32 if a.values.dtype == jnp.int8 else jnp.float32
    sums = jax.lax.dot_general(
        a.values, b.values, (axes(summed), axes(shared)), preferred_element_type=total
    )
    own = [x for letters in (a_letters, b_letters) for x in letters if x not in {*summed, *shared}]
    order = [*shared, *own]
    sums = sums.transpose([order.index(letter) for letter in y_letters]).astype(jnp.float32)
    for letters, scale in ((a_letters, a.scale), (b_letters, b.scale)):
        sums = sums * _aligned(scale, letters, y_letters)
    return sums.astype(dtype)


def _aligned(scale: Float[Array, "..."], letters: str, y_letters: str) -> Float[Array, "..."]:
    """Transposes scales, of dim 1 where a product sums, so that they broadcast to its result."""
    kept = [letter for letter in y_letters if letter in letters]
    scale = scale.squeeze(_outside(letters, y_letters))
    remaining = [letter for letter in letters if letter in kept]
    scale = scale.transpose([remaining.index(letter) for letter in kept])
    return jnp.expand_dims(scale, _outside(y_letters, letters))
