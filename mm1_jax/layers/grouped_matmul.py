"""Grouped matrix products: rows sorted by expert, times the kernel of each expert.

Legend: N tokens, X experts per token, R choices, Q slots, E experts, D and F dims of a kernel.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import gmm
from jaxtyping import Array, Float, Int

from mm1_jax.layers.expert_dispatch import Slots
from mm1_jax.parallel.sharding import current_platform

# Maximum number of elements in gathered kernels: 64 MiB in float32.
MAX_GATHERED = 1 << 24
# Rows per tile of the TPU kernel.
TILE_ROWS = 512


def group_by_expert(
    experts_NX: Int[Array, "N X"], num_experts: int, block: int
) -> tuple[Slots, Int[Array, "E"]]:
    """Assigns choices to slots sorted by expert, then by choice.

    Args:
        experts_NX: Expert of each choice; `num_experts` means that it gets no slot.
        block: The slots of each expert are padded with empty ones to a multiple of this.

    Returns:
        The slots, and the number of slots per expert.
    """
    E, R = num_experts, experts_NX.size
    expert_R = experts_NX.reshape(-1)
    one_hot_RE = jax.nn.one_hot(expert_R, E, dtype=jnp.int32)
    counts_E = jnp.sum(one_hot_RE, axis=0)
    sizes_E = -(-counts_E // block) * block
    ends_E = jnp.cumsum(sizes_E)
    num_slots = num_rows(R, E, block)
    place_RE = (ends_E - sizes_E)[None] + jnp.cumsum(one_hot_RE, axis=0) - 1
    slot_R = jnp.where(expert_R < E, jnp.sum(place_RE * one_hot_RE, axis=1), num_slots)

    # Sorted choices, shifted by the empty slots of all earlier experts.
    slot_Q = jnp.arange(num_slots)
    expert_Q = jnp.minimum(expert_of(slot_Q, ends_E), E - 1)
    place_Q = slot_Q - (ends_E - sizes_E)[expert_Q]
    rank_Q = place_Q + (jnp.cumsum(counts_E) - counts_E)[expert_Q]
    choice_Q = jnp.argsort(slot_R)[jnp.clip(rank_Q, 0, R - 1)]
    choice_Q = jnp.where(place_Q < counts_E[expert_Q], choice_Q, R)
    return Slots(slot_R.reshape(experts_NX.shape), choice_Q), sizes_E


def expert_of(slot_Q: Int[Array, "Q"], ends_E: Int[Array, "E"]) -> Int[Array, "Q"]:
    """Returns the index of the range, of those ending at `ends_E`, that holds each slot.

    The index is E for a slot past the last range.
    """
    return jnp.sum(ends_E[None] <= slot_Q[:, None], axis=1)


def num_rows(num_choices: int, num_experts: int, block: int) -> int:
    """Returns a number of slots that suffices for any routing."""
    if block == 1:
        return (
            -(-num_choices // TILE_ROWS) * TILE_ROWS if current_platform() == "tpu" else num_choices
        )
    return (-(-num_choices // block) + num_experts) * block


def row_block(num_choices: int, num_experts: int) -> int:
    """Returns the block size for `grouped_matmul`: 1 on TPU, whose kernel takes any group size."""
    if current_platform() == "tpu":
        return 1
    # Large blocks give large matrix products, but each expert wastes half a block on average.
    share = max(num_choices // num_experts, 1)
    return min(max(1 << (share.bit_length() - 1), 8), 256)


def grouped_matmul(
    x_Q: Float[Array, "Q _"],
    kernel_EDF: Float[Array, "E D F"],
    sizes_E: Int[Array, "E"],
    block: int,
    output_first: bool = False,
) -> Float[Array, "Q _"]:
    """Multiplies the rows of each expert by the expert's kernel.

    Maps rows of dim D to dim F or, with `output_first`, rows of dim F to dim D.

    TPU uses a Pallas kernel (megablox), which leaves rows after those of the last expert undefined.
    Other platforms multiply in blocks. Small kernels are gathered, one per block, into one batched
    product; large ones are multiplied block by block. `jax.lax.ragged_dot` is not used because it
    lowers to a dense product with every expert.
    """
    if current_platform() == "tpu":
        # Tile side: 1024 two-byte elements fill the vector memory; never more than the dims need.
        side = min(2048 // x_Q.dtype.itemsize, -(-max(kernel_EDF.shape[1:]) // 128) * 128)
        tile = (TILE_ROWS, side, side)
        return gmm(x_Q, kernel_EDF, sizes_E, x_Q.dtype, tile, transpose_rhs=output_first)
    kernel_EIO = kernel_EDF.swapaxes(1, 2) if output_first else kernel_EDF
    (_, I, O), num_blocks = kernel_EIO.shape, len(x_Q) // block
    block_experts = expert_of(jnp.arange(num_blocks) * block, jnp.cumsum(sizes_E))
    block_experts = jnp.minimum(block_experts, len(sizes_E) - 1)
    x_blocks = x_Q.reshape(num_blocks, -1, I)
    if num_blocks * I * O <= MAX_GATHERED:
        y_blocks = jnp.einsum("nui,nio->nuo", x_blocks, kernel_EIO[block_experts])
    else:
        y_blocks = block_by_block(x_blocks, kernel_EIO, block_experts)
    return y_blocks.reshape(-1, O)


@jax.custom_vjp
def block_by_block(
    x_blocks: Float[Array, "blocks u D"],
    kernel_EDF: Float[Array, "E D F"],
    block_experts: Int[Array, "blocks"],
) -> Float[Array, "blocks u F"]:
    """Multiplies each block by the kernel of its expert, one kernel at a time.

    The gradient also reads one kernel at a time. It is written by hand because the one JAX derives
    from the loop passes over the kernels of all experts in every block.
    """
    return jax.lax.map(lambda block: block[0] @ kernel_EDF[block[1]], (x_blocks, block_experts))


def _block_by_block_forward(x_blocks: Array, kernel_EDF: Array, block_experts: Array) -> Any:
    inputs = (x_blocks, kernel_EDF, block_experts)
    return block_by_block(*inputs), inputs


def _block_by_block_backward(inputs: Any, y_grads: Array) -> tuple[Array, Array, None]:
    x_blocks, kernel_EDF, block_experts = inputs

    def add_block(grad_EDF: Array, block: Any) -> tuple[Array, Array]:
        x, y_grad, e = block
        grad_DF = jnp.matmul(x.T, y_grad, preferred_element_type=jnp.float32)
        return grad_EDF.at[e].add(grad_DF), y_grad @ kernel_EDF[e].T

    # Accumulate in float32, as a single product over all rows of an expert would.
    zeros_EDF = jnp.zeros(kernel_EDF.shape, jnp.float32)
    grad_EDF, x_grads = jax.lax.scan(add_block, zeros_EDF, (x_blocks, y_grads, block_experts))
    return x_grads, grad_EDF.astype(kernel_EDF.dtype), None


block_by_block.defvjp(_block_by_block_forward, _block_by_block_backward)
