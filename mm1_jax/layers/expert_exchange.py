"""Ragged all-to-all exchange of rows among the devices along the expert axis.

Legend: s devices along the axis (twice: sender and receiver), Q rows, D model dim.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mm1_jax.parallel.sharding import current_platform, shard_axes


class Exchange(NamedTuple):
    """Plan in which device i sends `sizes[i, j]` rows to device j, from row `starts[i, j]`.

    They are written to device j from row `landings[i, j]`, which increases with i.
    """

    starts: Int[Array, "s s"]
    landings: Int[Array, "s s"]
    sizes: Int[Array, "s s"]

    def back(self) -> "Exchange":
        """Returns the plan that sends the same rows back to their senders."""
        return Exchange(self.landings.T, self.starts.T, self.sizes.T)


def plan_exchange(sizes_ss: Int[Array, "s s"], buffer: int) -> Exchange:
    """Plans an exchange of rows that each sender has sorted by receiver.

    A receiver stores the rows contiguously, by sender. Rows that exceed its `buffer` are not sent.
    """
    starts_ss = jnp.cumsum(sizes_ss, axis=1) - sizes_ss
    landings_ss = jnp.cumsum(sizes_ss, axis=0) - sizes_ss
    return Exchange(starts_ss, landings_ss, jnp.clip(buffer - landings_ss, 0, sizes_ss))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def exchange(
    x_QD: Float[Array, "Q D"], plan: Exchange, num_rows: int
) -> Float[Array, "num_rows D"]:
    """Exchanges rows and returns the rows this device receives; unfilled rows are undefined.

    TPU uses a ragged all-to-all. Other platforms lack one, so each device sends every other device
    as many rows as it holds.
    """
    axes = shard_axes("expert")
    me = jax.lax.axis_index(axes)
    starts, landings, sizes = plan
    if current_platform() == "tpu":
        output = jax.lax.empty((num_rows, x_QD.shape[1]), x_QD.dtype)
        send, receive = (starts[me], sizes[me], landings[me]), sizes[:, me]
        return jax.lax.ragged_all_to_all(x_QD, output, *send, receive, axis_name=axes)
    Q = len(x_QD)
    x_sQD = x_QD.at[starts[me][:, None] + jnp.arange(Q)[None]].get(mode="clip")
    x_sQD = jax.lax.all_to_all(x_sQD, axes, split_axis=0, concat_axis=0, tiled=True)
    sender, row = arrivals(plan, num_rows)
    return x_sQD.at[sender, row].get(mode="clip")


def arrivals(plan: Exchange, num_rows: int) -> tuple[Int[Array, "Q"], Int[Array, "Q"]]:
    """Returns the sender of each received row, and its index among the rows from that sender.

    For an unfilled row, the index is at least the number of rows that the sender sends.
    """
    me = jax.lax.axis_index(shard_axes("expert"))
    slot_Q = jnp.arange(num_rows)
    landings = plan.landings[:, me]
    sender_Q = jnp.maximum(jnp.sum(landings[None] <= slot_Q[:, None], axis=1) - 1, 0)
    return sender_Q, slot_Q - landings[sender_Q]


def _exchange_forward(x_QD: Array, plan: Exchange, num_rows: int) -> Any:
    return exchange(x_QD, plan, num_rows), (plan, len(x_QD))


def _exchange_backward(num_rows: int, residuals: Any, grad_QD: Array) -> Any:
    plan, num_sent = residuals
    return exchange(grad_QD, plan.back(), num_sent), None


exchange.defvjp(_exchange_forward, _exchange_backward)
