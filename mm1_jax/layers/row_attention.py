"""TPU kernel of self-attention within short rows, such as the patches of an image.

All keys and values of a row lie in vector memory at once, so one kernel computes all gradients, and
none is summed in HBM. Operands keep the layout of their projections, BTNH with the last two dims
joined: neither rows nor heads are transposed, padded or sliced outside of the kernel.

Logits are computed as keys x queries. Maximum, sum, logsumexp and delta of the queries then lie
along the lanes, and no product needs probabilities to be transposed. A head of less than 128 dims
shares tiles of 128 lanes with other heads, whose lanes are zero in the queries. A head that spans
two tiles is wrapped into one, since products do not depend on the order of its dims.

Legend: B batch, T positions, S keys of one iteration, Q queries of one step, N heads, H head dim,
C = N * H.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from mm1_jax.layers.attention_mask import MASKED

_LANES = 128

# Bytes of vector memory that the kernel may use. A core of v5p has 64 MiB, one of v5e or v6e 128,
# and one of v4 or before 16.
_MEMORY = 56 * 2**20
_OLD_MEMORY = 14 * 2**20
_OLD = ("TPU v2", "TPU v3", "TPU v4", "TPU v4 lite")

# Limits of the logits that code without a loop computes: it grows with them, and so does the memory
# of intermediate values. Longer rows have blocks of queries of one of these sizes; each adds up the
# gradients of all keys, so few are best.
_MAX_QUERIES, _MAX_KEYS, _MAX_LOGITS = 640, 768, 2**20
_QUERY_BLOCKS = (512, 384, 256)


class _Blocks(NamedTuple):
    """Heads and queries of one step of the grid, and keys of one iteration within it."""

    num_heads: int
    queries: int
    keys: int
    head_dim: int

    @property
    def lanes(self) -> int:
        return self.num_heads * self.head_dim


def row_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTNH: Float[Array, "B T N H"],
    v_BTNH: Float[Array, "B T N H"],
    prefix_lengths_B: Int[Array, "B"] | None = None,
    *,
    residual_name: str,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Computes attention of every position to all of its row, with the softmax in float32.

    Args:
        q_BTNH: Queries, already scaled by 1/sqrt(H).
        prefix_lengths_B: None lets every position attend to its whole row; else to the prefix of
            its row and to positions that are not later than its own.
        residual_name: Name of output and logsumexp for rematerialization policies.
    """
    *_, N, H = q_BTNH.shape
    blocks = _blocks(q_BTNH.shape[1], N, H)
    joined = (x.reshape(*x.shape[:2], N * H) for x in (q_BTNH, k_BTNH, v_BTNH))
    y_BTC: Any = _attend(*joined, prefix_lengths_B, blocks, residual_name, interpret)
    return y_BTC.reshape(q_BTNH.shape)


def fits(length: int, num_heads: int, head_dim: int, num_bytes: int, device_kind: str = "") -> bool:
    """Returns whether the kernel supports such rows and heads.

    Args:
        num_bytes: Size of an element.
        device_kind: Kind of TPU, if known.
    """
    if num_heads % _heads_per_tile(head_dim) or (head_dim > _LANES and head_dim % _LANES):
        return False
    blocks = _blocks(length, num_heads, head_dim)
    # The backward pass: keys and values, their gradients, both twice for copies beside the
    # computation, as sums in float32, and the transposed keys; likewise queries, output and their
    # gradients, and a few intermediate values.
    per_key = blocks.lanes * (9 * num_bytes + 8)
    per_query = blocks.lanes * (8 * num_bytes + 16) + blocks.keys * (2 * num_bytes + 12)
    memory = _OLD_MEMORY if device_kind in _OLD else _MEMORY
    return length * per_key + blocks.queries * per_query <= memory


def _heads_per_tile(head_dim: int) -> int:
    """Returns the least number of heads that fill whole tiles of lanes."""
    return math.lcm(head_dim, _LANES) // head_dim


def _blocks(length: int, num_heads: int, head_dim: int) -> _Blocks:
    queries = keys = length
    if length > _MAX_QUERIES:
        queries = min(_QUERY_BLOCKS, key=lambda size: _up(length, size))
    if length > _MAX_KEYS:
        keys = _up(pl.cdiv(length, pl.cdiv(length, _MAX_KEYS)), _LANES)
    unit = _heads_per_tile(head_dim)
    limit = max(_MAX_LOGITS // (_up(queries, _LANES) * keys), unit)
    heads = max(n for n in range(unit, num_heads + 1, unit) if num_heads % n == 0 and n <= limit)
    return _Blocks(heads, queries, keys, head_dim)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q, k, v, prefix_lengths, blocks, residual_name, interpret):
    return _forward((q, k, v), prefix_lengths, blocks, interpret)[0]


def _attend_forward(q, k, v, prefix_lengths, blocks, residual_name, interpret):
    results = _forward((q, k, v), prefix_lengths, blocks, interpret)
    out, logsumexp = (checkpoint_name(x, residual_name) for x in results)
    return out, (q, k, v, prefix_lengths, out, logsumexp)


def _attend_backward(blocks, residual_name, interpret, residuals, gradient):
    q, k, v, prefix_lengths, *results = residuals
    operands = (q, k, v, *results, gradient)
    return *_backward(operands, prefix_lengths, blocks, interpret), None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(operands, prefix_lengths, blocks, interpret):
    q, _, v = operands
    num_rows, length, lanes = q.shape
    logsumexp = jax.ShapeDtypeStruct(
        (num_rows, lanes // blocks.lanes, blocks.num_heads, length), jnp.float32
    )
    of_queries, of_keys, of_each_query = _specs(length, blocks)
    return _call(
        _forward_kernel,
        operands,
        prefix_lengths,
        blocks,
        interpret,
        num_products=2,
        in_specs=[of_queries, of_keys, of_keys],
        out_shape=[q, logsumexp],
        out_specs=[of_queries, of_each_query],
        scratch_shapes=[pltpu.VMEM((blocks.lanes, length), v.dtype)],
    )


def _backward(operands, prefix_lengths, blocks, interpret):
    q, k, v, *_ = operands
    length = q.shape[1]
    of_queries, of_keys, of_each_query = _specs(length, blocks)
    sums = pltpu.VMEM((length, blocks.lanes), jnp.float32)
    return _call(
        _backward_kernel,
        operands,
        prefix_lengths,
        blocks,
        interpret,
        num_products=5,
        in_specs=[of_queries, of_keys, of_keys, of_queries, of_each_query, of_queries],
        out_shape=[q, k, v],
        out_specs=[of_queries, of_keys, of_keys],
        scratch_shapes=[pltpu.VMEM((blocks.lanes, length), k.dtype), sums, sums],
    )


def _specs(length: int, blocks: _Blocks) -> tuple[pl.BlockSpec, ...]:
    """Returns the blocks of queries, of keys, and of one number per query and head."""

    def spec(shape: tuple[int, ...], index: Callable[..., tuple]) -> pl.BlockSpec:
        # The scalars that Pallas passes after the indices are not needed.
        return pl.BlockSpec(shape, lambda row, heads, query, *_: index(row, heads, query))

    return (
        spec((1, blocks.queries, blocks.lanes), lambda row, heads, query: (row, query, heads)),
        spec((1, length, blocks.lanes), lambda row, heads, query: (row, 0, heads)),
        spec(
            (1, 1, blocks.num_heads, blocks.queries),
            lambda row, heads, query: (row, heads, 0, query),
        ),
    )


def _call(
    kernel: Callable[..., None],
    operands: Sequence[jax.Array],
    prefix_lengths: jax.Array | None,
    blocks: _Blocks,
    interpret: bool,
    *,
    num_products: int,
    in_specs: list[pl.BlockSpec],
    out_shape: list[Any],
    out_specs: list[pl.BlockSpec],
    scratch_shapes: list[Any],
) -> Any:
    num_rows, length, lanes = operands[0].shape
    logits = num_rows * length**2 * lanes // blocks.head_dim
    out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out_shape]
    prefetched = () if prefix_lengths is None else (prefix_lengths,)
    return pl.pallas_call(
        functools.partial(kernel, *[None] * (1 - len(prefetched)), blocks=blocks),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetched),
            grid=(num_rows, lanes // blocks.lanes, pl.cdiv(length, blocks.queries)),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=scratch_shapes,
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=_MEMORY,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * num_products * logits * blocks.head_dim,
            transcendentals=logits,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*operands, *out_shape)),
        ),
        interpret=interpret,
        name=kernel.__name__.replace("_kernel", "").replace("_", "row_attention_", 1),
    )(*prefetched, *operands)


class _Head:
    """One head of a step, in the lanes of joined heads.

    Attributes:
        dims: Its lanes.
        tiles: Tiles that hold them, and which lanes of each are the head's; None is all.
    """

    def __init__(self, index: int, head_dim: int):
        start, end = index * head_dim, (index + 1) * head_dim
        self.dims = slice(start, end)
        if head_dim % _LANES == 0:
            self.tiles: list[tuple[slice, Any]] = [(self.dims, None)]
            return
        lanes = jax.lax.broadcasted_iota(jnp.int32, (1, _LANES), 1)
        self.tiles = []
        for first in range(start // _LANES * _LANES, end, _LANES):
            mask = (lanes >= start - first) & (lanes < end - first)
            self.tiles.append((slice(first, first + _LANES), mask))

    def load(self, read: Callable[[slice], jax.Array]) -> jax.Array:
        """Returns the head wrapped into one tile; other lanes hold other heads."""
        (first, _), *others = self.tiles
        tile = read(first)
        for lanes, mask in others:
            tile = jnp.where(mask, read(lanes), tile)
        return tile

    def load_alone(self, read: Callable[[slice], jax.Array]) -> jax.Array:
        """Returns the head wrapped into one tile; other lanes are zero."""
        tile: Any = 0
        for lanes, mask in self.tiles:
            tile = read(lanes) if mask is None else jnp.where(mask, read(lanes), tile)
        return tile

    def add(self, sums: Any, keys: Any, tile: jax.Array) -> None:
        """Adds a tile whose other lanes are zero."""
        for lanes, mask in self.tiles:
            part = tile if len(self.tiles) == 1 else jnp.where(mask, tile, 0)
            sums[keys, lanes] += part


def _forward_kernel(prefix_ref, q_ref, k_ref, v_ref, out_ref, lse_ref, v_T_ref, *, blocks):
    @pl.when(pl.program_id(2) == 0)
    def _():
        v_T_ref[...] = v_ref[0].T

    visible_1Q = _num_visible(prefix_ref, blocks.queries)
    outs = []
    for n in range(blocks.num_heads):
        head = _Head(n, blocks.head_dim)
        q_QH = head.load_alone(lambda lanes: q_ref[0, :, lanes])

        def attend(first, keys, carry, head=head, q_QH=q_QH):
            k_SH = head.load(lambda lanes: k_ref[0, keys, lanes])
            logits_SQ = _logits(k_SH, q_QH, first, visible_1Q)
            top_1Q = jnp.max(logits_SQ, axis=0, keepdims=True)
            top_1Q = top_1Q if carry is None else jnp.maximum(carry[0], top_1Q)
            weights_SQ = jnp.exp(logits_SQ - top_1Q)
            total_1Q = jnp.sum(weights_SQ, axis=0, keepdims=True)
            out_HQ = _dot(v_T_ref[head.dims, keys], weights_SQ.astype(v_T_ref.dtype))
            if carry is not None:
                decay_1Q = jnp.exp(carry[0] - top_1Q)
                total_1Q += carry[1] * decay_1Q
                out_HQ += carry[2] * decay_1Q
            return top_1Q, total_1Q, out_HQ

        row = (1, blocks.queries)
        initial = (
            jnp.full(row, MASKED, jnp.float32),
            jnp.zeros(row, jnp.float32),
            jnp.zeros((blocks.head_dim, blocks.queries), jnp.float32),
        )
        top_1Q, total_1Q, out_HQ = _over_keys(attend, k_ref.shape[1], blocks.keys, initial)
        outs.append((out_HQ * (1 / total_1Q)).astype(out_ref.dtype))
        lse_ref[0, 0, n : n + 1] = top_1Q + jnp.log(total_1Q)
    out_ref[0] = jnp.concatenate(outs).T


def _backward_kernel(
    prefix_ref,
    q_ref,
    k_ref,
    v_ref,
    out_ref,
    lse_ref,
    dout_ref,
    dq_ref,
    dk_ref,
    dv_ref,
    k_T_ref,
    dk_sums,
    dv_sums,
    *,
    blocks,
):
    step, length = pl.program_id(2), k_ref.shape[1]

    @pl.when(step == 0)
    def _():
        k_T_ref[...] = k_ref[0].T
        dk_sums[...] = jnp.zeros_like(dk_sums)
        dv_sums[...] = jnp.zeros_like(dv_sums)

    def existing(x, axis):
        """Returns x with zeros instead of the undefined values of queries past the last."""
        if length % blocks.queries == 0:
            return x
        shape = [size if dim == axis else 1 for dim, size in enumerate(x.shape)]
        queries = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        return jnp.where(queries < length - step * blocks.queries, x, 0)

    q, dout, lse = existing(q_ref[0], 0), existing(dout_ref[0], 0), existing(lse_ref[0, 0], 1)
    out = existing(out_ref[0], 0)
    products_T = (dout.astype(jnp.float32) * out.astype(jnp.float32)).T
    visible_1Q = _num_visible(prefix_ref, blocks.queries)
    dqs = []
    for n in range(blocks.num_heads):
        head = _Head(n, blocks.head_dim)
        q_QH, dout_QH = (head.load_alone(lambda lanes, x=x: x[:, lanes]) for x in (q, dout))
        delta_1Q = jnp.sum(products_T[head.dims], axis=0, keepdims=True)
        lse_1Q = lse[n : n + 1]

        def differentiate(
            first,
            keys,
            dq_HQ,
            head=head,
            q_QH=q_QH,
            dout_QH=dout_QH,
            lse_1Q=lse_1Q,
            delta_1Q=delta_1Q,
        ):
            k_SH, v_SH = (
                head.load(lambda lanes, ref=ref: ref[0, keys, lanes]) for ref in (k_ref, v_ref)
            )
            weights_SQ = jnp.exp(_logits(k_SH, q_QH, first, visible_1Q) - lse_1Q)
            head.add(dv_sums, keys, _dot(weights_SQ.astype(v_SH.dtype), dout_QH))
            dlogits_SQ = weights_SQ * (_dot(v_SH, dout_QH, transpose=True) - delta_1Q)
            dlogits_SQ = dlogits_SQ.astype(q.dtype)
            head.add(dk_sums, keys, _dot(dlogits_SQ, q_QH))
            part_HQ = _dot(k_T_ref[head.dims, keys], dlogits_SQ)
            return part_HQ if dq_HQ is None else dq_HQ + part_HQ

        initial = jnp.zeros((blocks.head_dim, blocks.queries), jnp.float32)
        dq_HQ = _over_keys(differentiate, length, blocks.keys, initial)
        dqs.append(dq_HQ.astype(dq_ref.dtype))
    dq_ref[0] = jnp.concatenate(dqs).T

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        dk_ref[0] = dk_sums[...].astype(dk_ref.dtype)
        dv_ref[0] = dv_sums[...].astype(dv_ref.dtype)


def _dot(x: jax.Array, y: jax.Array, *, transpose: bool = False) -> jax.Array:
    """Returns x y, or x y^T, in float32."""
    contracted = ((1,), (1 if transpose else 0,))
    return jax.lax.dot_general(x, y, (contracted, ((), ())), preferred_element_type=jnp.float32)


def _num_visible(prefix_ref: Any, num_queries: int) -> jax.Array | None:
    """Returns the number of leading keys that each query of a step attends to; None is all."""
    if prefix_ref is None:
        return None
    queries = jax.lax.broadcasted_iota(jnp.int32, (1, num_queries), 1)
    queries += pl.program_id(2) * num_queries
    return jnp.maximum(queries + 1, prefix_ref[pl.program_id(0)])


def _logits(
    k_SH: jax.Array, q_QH: jax.Array, first_key: Any, visible_1Q: jax.Array | None
) -> jax.Array:
    logits_SQ = _dot(k_SH, q_QH, transpose=True)
    if visible_1Q is None:
        return logits_SQ
    keys_SQ = first_key + jax.lax.broadcasted_iota(jnp.int32, logits_SQ.shape, 0)
    return jnp.where(keys_SQ < visible_1Q, logits_SQ, MASKED)


def _over_keys(
    body: Callable[[Any, Any, Any], Any], num_keys: int, block: int, initial: Any
) -> Any:
    """Runs `body` for each block of keys, in a loop so that the code does not grow.

    Args:
        body: (first key, its block of keys, result of the block before) -> result. The latter is
            `initial` for the first block, or None if that is the only one.
    """
    if block == num_keys:
        return body(0, pl.ds(0, block), None)

    def run_block(n: Any, carry: Any) -> Any:
        first = pl.multiple_of(n * block, _LANES)
        return body(first, pl.ds(first, block), carry)

    carry = jax.lax.fori_loop(0, num_keys // block, run_block, initial)
    first = num_keys // block * block
    return carry if first == num_keys else body(first, pl.ds(first, num_keys - first), carry)
