"""Attention implementations (XLA, TPU splash and rows, GPU Triton) and the choice among them.

The XLA implementations, of which CPUs have their own, write float32 logits of shape T x S per head
to memory; the fused kernels do not. The fused kernels support self-attention over whole rows:
packed documents, causal or not, or images without segment ids. This covers training and the prompts
of decoding. Cross-attention and attention to a KV cache use XLA. Prefix attention is supported by
the kernel for short rows only.

The fused kernels mask by index instead of by position. Documents are contiguous and positions
increase within each document, so "same segment and not later in the row" is equivalent to the rule
in `attention_mask`. In the fused kernels, padding (segment 0) attends to padding; the output at
padded positions is meaningless in either implementation.

Legend: B batch, T query positions, S key positions, N query heads, K kv heads, G query heads per kv
head, H head dim.
"""

import enum
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.gpu import attention as gpu_attention
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mm1_jax.layers import row_attention
from mm1_jax.layers.attention_mask import MASKED, Visibility
from mm1_jax.layers.cpu_attention import cpu_attention
from mm1_jax.parallel.rematerialisation import saved_name
from mm1_jax.parallel.sharding import (
    current_device_kind,
    current_placement,
    current_platform,
    dividing_spec,
)

# Names of intermediate values that a rematerialization policy may save. ATTENTION_OUTPUT also names
# the logsumexp of a fused kernel: if it is saved along with query, key and value, the backward pass
# does not rerun the forward kernel.
QUERY = saved_name("query")
KEY = saved_name("key")
VALUE = saved_name("value")
ATTENTION_OUTPUT = saved_name("attention_output")
ATTENTION_PROJECTION = saved_name("attention_projection")


class Kernel(enum.Enum):
    """Implementation of attention. On CPU the fused kernels are interpreted, for tests only."""

    AUTO = "auto"  # the fused kernel of the platform, or XLA if it has none
    XLA = "xla"
    SPLASH = "splash"  # TPU: jax's splash attention
    ROWS = "rows"  # TPU: our kernel for short rows of one document each, as of images
    TRITON = "triton"  # GPU: jax's Pallas flash attention, deprecated since jax 0.12


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    visibility: Visibility | None,
    kernel: Kernel = Kernel.XLA,
) -> Float[Array, "B T N H"]:
    """Computes attention, with the softmax in float32.

    Args:
        q_BTNH: Queries, already scaled by 1/sqrt(H).
        visibility: None lets every query attend to every key. A query that sees no key gets a
            finite but meaningless result.
        kernel: Must be XLA unless queries and keys are at the same positions.
    """
    kernel = resolve_kernel(kernel)
    has_prefix = visibility is not None and visibility.prefix_lengths is not None
    if kernel is Kernel.XLA or (has_prefix and kernel is not Kernel.ROWS):
        mask_BTS = None if visibility is None else visibility.mask()
        # The fewer passes over logits are not worth the copies of keys and values for one query.
        if current_platform() == "cpu" and q_BTNH.shape[1] > 1:
            return cpu_attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS, residual_name=ATTENTION_OUTPUT)
        y_BTNH = xla_attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS)
        return checkpoint_name(y_BTNH, ATTENTION_OUTPUT)
    if kernel is Kernel.ROWS:
        return _attention_of_rows(q_BTNH, k_BSKH, v_BSKH, visibility)
    return fused_attention(q_BTNH, k_BSKH, v_BSKH, visibility, kernel)


def resolve_kernel(kernel: Kernel) -> Kernel:
    """Resolves AUTO to the kernel of the platform being compiled for.

    AUTO leaves out ROWS, which has been compiled for TPUs and never run on one.
    """
    if kernel is not Kernel.AUTO:
        return kernel
    return {"tpu": Kernel.SPLASH, "gpu": Kernel.TRITON}.get(current_platform(), Kernel.XLA)


def rows_fit(shape: Sequence[int], num_kv_heads: int, dtype: DTypeLike) -> bool:
    """Returns whether the kernel for short rows supports queries of this shape, B T N H.

    It needs all queries of a row on one device, and heads that fill tiles of 128 lanes there.
    """
    _, T, N, H = shape
    if num_kv_heads != N:
        return False
    placement = current_placement()
    if placement is not None:
        names = ("images", "sequence", "activation_heads", None)
        _, sequence, heads, _ = dividing_spec(shape, names, placement)
        if placement.num_shards(sequence) > 1:
            return False
        N //= placement.num_shards(heads)
    return row_attention.fits(T, N, H, jnp.dtype(dtype).itemsize, current_device_kind())


def row_length(length: int, kernel: Kernel) -> int:
    """Returns the padded row length that a kernel computes for rows of `length` positions.

    A kernel pads rows itself if needed. Rows that are padded up front, with segment id 0, are not
    copied again in every layer.
    """
    if resolve_kernel(kernel) in (Kernel.XLA, Kernel.ROWS):
        return length
    placement, shards = current_placement(), 1
    if placement is not None:
        (sequence,) = dividing_spec((length,), ("sequence",), placement)
        shards = placement.num_shards(sequence)
    return _padded_length(length, shards)


def xla_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask_BTS: Bool[Array, "B T S"] | None,
) -> Float[Array, "B T N H"]:
    """Reference implementation for any shapes and platform; materializes T x S logits."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    logits_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    if mask_BTS is not None:
        logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS, MASKED)
    weights_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH).reshape(B, T, N, H)


def _attention_of_rows(
    q_BTNH: Float[Array, "B T N H"],
    k_BTNH: Float[Array, "B T N H"],
    v_BTNH: Float[Array, "B T N H"],
    visibility: Visibility | None,
) -> Float[Array, "B T N H"]:
    """Runs the kernel for short rows per shard: rows over the image axes, heads over theirs."""
    prefix_lengths = None if visibility is None else visibility.prefix_lengths
    is_supported = visibility is None or (
        visibility.query_segment_ids is None and prefix_lengths is not None
    )
    if not is_supported or not rows_fit(q_BTNH.shape, k_BTNH.shape[2], q_BTNH.dtype):
        raise ValueError(
            f"attention: kernel=Kernel.ROWS does not support queries of shape {q_BTNH.shape} with "
            f"{k_BTNH.shape[2]} kv heads; it needs whole rows without segment ids that fit into "
            "vector memory, and as many kv heads as query heads, in tiles of 128 lanes; use "
            "Kernel.AUTO"
        )
    run: Any = functools.partial(
        row_attention.row_attention,
        residual_name=ATTENTION_OUTPUT,
        interpret=current_platform() == "cpu",
    )
    placement = current_placement()
    if placement is not None:
        names = ("images", None, "activation_heads", None)
        heads = dividing_spec(q_BTNH.shape, names, placement)
        run = jax.shard_map(
            run,
            mesh=placement.mesh,
            in_specs=(heads, heads, heads, PartitionSpec(heads[0])),
            out_specs=heads,
            # A Pallas call does not declare the mesh axes over which its results vary.
            check_vma=False,
        )
    return run(q_BTNH, k_BTNH, v_BTNH, prefix_lengths)


def fused_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    visibility: Visibility | None,
    kernel: Kernel,
) -> Float[Array, "B T N H"]:
    """Runs a fused kernel per shard; the compiler cannot partition it and would replicate it.

    Rows are split over the batch axes (over the image axes if not causal), heads over the head
    axes, and queries over the sequence axes, while every shard holds all keys. Dims that do not
    divide, such as the batch of a single prompt, are not split.
    """
    assert visibility is None or visibility.prefix_lengths is None, "splash masks no prefix"
    T, K = k_BTKH.shape[1:3]
    causal = visibility is not None and visibility.causal
    segment_ids = None if visibility is None else visibility.query_segment_ids
    interpret = current_platform() == "cpu"

    placement = current_placement()
    rows, sequence, heads, sequence_shards, head_shards = None, None, None, 1, 1
    if placement is not None:
        names = ("batch" if causal else "images", "sequence", "activation_heads", None)
        rows, sequence, heads, _ = dividing_spec(q_BTNH.shape, names, placement)
        sequence_shards = placement.num_shards(sequence)
        head_shards = placement.num_shards(heads)

    length = _padded_length(T, sequence_shards)
    if length != T:
        if segment_ids is None:
            segment_ids = jnp.ones(q_BTNH.shape[:2], jnp.int32)
        q_BTNH, k_BTKH, v_BTKH, segment_ids = (
            jnp.pad(x, [(0, 0), (0, length - T)] + [(0, 0)] * (x.ndim - 2))
            for x in (q_BTNH, k_BTKH, v_BTKH, segment_ids)
        )
    # Each shard of query heads needs its own kv heads; they are repeated if shards share one.
    repeats = head_shards // math.gcd(head_shards, K)
    if repeats > 1:
        k_BTKH, v_BTKH = (jnp.repeat(x, repeats, axis=2) for x in (k_BTKH, v_BTKH))

    if kernel is Kernel.SPLASH:
        splash = _splash_kernel(
            length, q_BTNH.shape[2] // head_shards, causal, sequence_shards, interpret
        )
        run: Any = _splash
    else:
        if sequence_shards > 1:
            raise ValueError(
                "attention: the GPU kernel cannot split queries over the sequence axes "
                f"{sequence!r}; set parallelism.seq=1, or kernel=Kernel.XLA"
            )
        splash, run = None, functools.partial(_triton, causal=causal, interpret=interpret)

    if placement is not None:
        mesh = placement.mesh
        splash_spec = splash and splash.manual_sharding_spec(
            NamedSharding(mesh, PartitionSpec(None, sequence))
        )
        query, key = (PartitionSpec(rows, axes, heads, None) for axes in (sequence, None))
        run = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(
                splash_spec,
                *(query, key, key),
                *(PartitionSpec(rows, sequence), PartitionSpec(rows, None)),
            ),
            out_specs=query,
            # A Pallas call does not declare the mesh axes over which its results vary.
            check_vma=False,
        )
    return run(splash, q_BTNH, k_BTKH, v_BTKH, segment_ids, segment_ids)[:, :T]


def _padded_length(length: int, shards: int) -> int:
    """Rounds up to a length that divides into large blocks on every shard."""
    unit = shards * (128 if length <= 1024 * shards else 512)
    return -(-length // unit) * unit


def _block(length: int, limit: int) -> int:
    # The length is padded, so at least 128 divides it.
    return next(size for size in range(limit, 0, -128) if length % size == 0)


def _splash_kernel(
    length: int, num_heads: int, causal: bool, sequence_shards: int, interpret: bool
) -> Any:
    """Builds splash attention for the heads of one shard and rows of this padded length."""
    shape = (length, length)
    mask = splash_attention_mask.FullMask(shape)
    if causal:
        mask = splash_attention_mask.CausalMask(shape, shard_count=sequence_shards)
    query, key = _block(length // sequence_shards, 1024), _block(length, 1024)
    compute = _block(key, 512)
    blocks = splash_attention_kernel.BlockSizes(
        block_q=query,
        block_kv=key,
        block_kv_compute=compute,
        block_q_dkv=query,
        block_kv_dkv=key,
        block_kv_dkv_compute=compute,
        use_fused_bwd_kernel=True,
    )
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * num_heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=sequence_shards,
        residual_checkpoint_name=ATTENTION_OUTPUT,
        interpret=interpret,
    )


def _splash(
    kernel: Any,
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query_segment_ids: Int[Array, "B T"] | None,
    key_segment_ids: Int[Array, "B S"] | None,
) -> Float[Array, "B T N H"]:
    segment_ids = None
    if query_segment_ids is not None and key_segment_ids is not None:
        segment_ids = splash_attention_kernel.SegmentIds(query_segment_ids, key_segment_ids)
    heads_first = (x.swapaxes(1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
    return jax.vmap(kernel)(*heads_first, segment_ids).swapaxes(1, 2)


def _triton(
    _: None,
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None,
    key_segment_ids: Int[Array, "B T"] | None,
    *,
    causal: bool,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    # This kernel does not support grouped kv heads.
    groups = q_BTNH.shape[2] // k_BTKH.shape[2]
    k_BTNH, v_BTNH = (jnp.repeat(x, groups, axis=2) for x in (k_BTKH, v_BTKH))
    return _triton_call(q_BTNH, k_BTNH, v_BTNH, segment_ids, causal, interpret)


# Uses the kernel's own backward pass, and names its residuals for rematerialization policies.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _triton_call(q, k, v, segment_ids, causal, interpret):
    options = _triton_options(q, causal, interpret, False)
    with _causality_scope(causal):
        return gpu_attention.mha(q, k, v, segment_ids, *options)


def _triton_forward(q, k, v, segment_ids, causal, interpret):
    options = _triton_options(q, causal, interpret, True)
    with _causality_scope(causal):
        residuals: Any = gpu_attention.mha(q, k, v, segment_ids, *options)
    out, logsumexp = (checkpoint_name(x, ATTENTION_OUTPUT) for x in residuals)
    return out, (q, k, v, segment_ids, out, logsumexp)


def _triton_backward(causal, interpret, residuals, gradient):
    options = _triton_options(gradient, causal, interpret, False)
    backward: Any = gpu_attention.mha.bwd
    with _causality_scope(causal):
        return backward(*options, residuals, gradient)


_triton_call.defvjp(_triton_forward, _triton_backward)


def _causality_scope(causal: bool):
    # `rehearse` reads this scope to count FLOPs: a causal kernel does half of the work, and nothing
    # else in the compiled program tells the two apart.
    return jax.named_scope("causal" if causal else "full")


def _triton_options(q: jax.Array, causal: bool, interpret: bool, residuals: bool) -> tuple:
    # The backward kernel holds four tiles at once, so float32 needs smaller tiles.
    backward = 64 if q.dtype.itemsize == 2 else 32
    blocks = gpu_attention.BlockSizes(
        block_q=128,
        block_k=_block(q.shape[1], 128),
        block_q_dkv=backward,
        block_kv_dkv=backward,
        block_q_dq=backward,
        block_kv_dq=backward,
    )
    scale, backward_pass, num_warps, num_stages, grid, debug = 1.0, "triton", None, 2, None, False
    schedule = (num_warps, num_stages, grid)
    return (scale, causal, blocks, backward_pass, *schedule, interpret, debug, residuals)
