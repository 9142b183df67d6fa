"""Rows of any number to and from the devices along the expert axis.

Legend: s devices along the axis (twice: from and to), Q rows, D model dim.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mm1_jax.parallel.sharding import current_platform, shard_axes


class Exchange(NamedTuple):
    """Device i sends device j `sizes[i, j]` rows, from its `starts[i, j]` on.

    They arrive at `landings[i, j]`, which grow with i.
    """

    starts: Int[Array, "s s"]
    landings: Int[Array, "s s"]
    sizes: Int[Array, "s s"]

    def back(self) -> "Exchange":
        """The same rows, returned to where they came from."""
        return Exchange(self.landings.T, self.starts.T, self.sizes.T)


def plan_exchange(sizes_ss: Int[Array, "s s"], buffer: int) -> Exchange:
    """Rows sorted by receiver, laid side by side there; what `buffer` rows do not hold stays."""
    starts_ss = jnp.cumsum(sizes_ss, axis=1) - sizes_ss
    landings_ss = jnp.cumsum(sizes_ss, axis=0) - sizes_ss
    return Exchange(starts_ss, landings_ss, jnp.clip(buffer - landings_ss, 0, sizes_ss))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def exchange(
    x_QD: Float[Array, "Q D"], plan: Exchange, num_rows: int
) -> Float[Array, "num_rows D"]:
    """What this device receives; rows that nothing arrives at are undefined.

    The choice of an implementation is here: CPU has no ragged exchange, so every device sends as
    many rows as it has to each other one.
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
    """The sender of each row that lands here, and which of its rows for this device it is.

    Where nothing lands, the latter is not below the number of rows that the sender sends.
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
