"""Cross entropy per position from logits, and its sums per corpus.

Legend: B batch rows, T target positions, V vocabulary, C corpora, b rows of a shard.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mm1_jax.batch import Batch
from mm1_jax.parallel.sharding import gather_all_shards, per_shard


def token_losses(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Returns the cross entropy and the log of the softmax normalizer per position, in float32."""
    logits_BTV = logits.astype(jnp.float32)
    log_normalizer_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_logit_BT = jnp.take_along_axis(logits_BTV, targets[..., None], axis=-1)[..., 0]
    return log_normalizer_BT - target_logit_BT, log_normalizer_BT


def chunked_token_losses(
    output_layer: Any,
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    chunk_length: int | None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Computes `token_losses` with logits for only `chunk_length` positions at a time.

    With a vocabulary of 32,000, the float32 logits of a row of 4096 positions take 0.5 GB, and
    their gradient as much again. Chunked logits are recomputed in the backward pass instead, which
    costs one more product with the output layer.

    On a mesh, each device loops over its own rows, or its own part of them. It gathers the output
    layer once before the loop and accumulates its gradient locally. Left to the compiler, every
    chunk would gather and reduce again.

    Args:
        output_layer: Module whose `attend(hidden)` returns the logits.
        chunk_length: None computes all logits at once.

    Raises:
        ValueError: `chunk_length` does not divide the row.
    """
    length = targets.shape[1]
    if chunk_length is None or chunk_length >= length:
        return token_losses(output_layer.attend(hidden), targets)
    if chunk_length < 1 or length % chunk_length:
        raise ValueError(
            f"loss.chunk_length={chunk_length}: must divide the {length} positions of a row"
        )
    graphdef, state = nnx.split(output_layer)
    variables, structure = jax.tree.flatten(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    names = [variable.get_metadata("out_sharding") for variable in variables]

    def losses(
        hidden: Array, targets: Array, *shards: Array
    ) -> tuple[Float[Array, "b T"], Float[Array, "b T"]]:
        whole = [
            variable.replace(gather_all_shards(shard, dims))
            for variable, shard, dims in zip(variables, shards, names, strict=True)
        ]
        layer: Any = nnx.merge(graphdef, jax.tree.unflatten(structure, whole))
        own_length = targets.shape[1]
        size = min(chunk_length, own_length)
        if own_length % size:
            raise ValueError(
                f"loss.chunk_length={chunk_length}: must divide the {own_length} positions of a "
                "row on each device; change it, or parallelism.seq"
            )

        @jax.checkpoint
        def chunk_losses(start: Array) -> tuple[Array, Array]:
            part = jax.lax.dynamic_slice_in_dim(hidden, start, size, axis=1)
            part_targets = jax.lax.dynamic_slice_in_dim(targets, start, size, axis=1)
            return token_losses(layer.attend(part), part_targets)

        chunks = jax.lax.map(chunk_losses, jnp.arange(0, own_length, size))
        cross_entropy, log_normalizer = (
            jnp.moveaxis(x, 0, 1).reshape(targets.shape) for x in chunks
        )
        return cross_entropy, log_normalizer

    row = ("batch", "sequence")
    run = per_shard(losses, ((*row, None), row, *names), (row, row), along=row)
    return run(hidden, targets, *(variable.get_value() for variable in variables))


def corpus_sums(
    cross_entropy: Float[Array, "B T"], batch: Batch, num_corpora: int
) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
    """Returns the sum of cross entropy over scored targets, and their number, per corpus."""
    corpus_C = jnp.arange(num_corpora)
    scored_CBT = batch.loss_mask[None] & (batch.corpus_ids[None] == corpus_C[:, None, None])
    return (
        jnp.sum(jnp.where(scored_CBT, cross_entropy[None], 0.0), axis=(1, 2)),
        jnp.sum(scored_CBT, axis=(1, 2), dtype=jnp.float32),
    )
