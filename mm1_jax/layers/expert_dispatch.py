"""Dispatch of tokens to expert slots and combination of the results.

A choice is a pair of a token and one of its experts. Each choice takes one slot, or none if it is
dropped or belongs to padding; each slot holds one choice or is empty. Dispatch and combination are
therefore row gathers, and so are their transposes. There are no scatters and no products with
one-hot tensors, whose size and work grow with the routing group. An empty slot holds the row of an
arbitrary token, has weight zero, and is never read.

Legend: B routing groups, T tokens per group, X experts per token, N tokens, R choices (in the order
N X), E experts, C expert capacity, Q slots, D model dim.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Routes(NamedTuple):
    """Experts of each token, best first, and their weights; padding is not routed."""

    experts: Int[Array, "B T X"]
    weights: Float[Array, "B T X"]
    is_real: Bool[Array, "B T"]


class Slots(NamedTuple):
    """Partial one-to-one map between choices and slots.

    Attributes:
        slot_NX: Slot of each choice; Q if it has none.
        choice_Q: Choice in each slot; R if it is empty.
    """

    slot_NX: Int[Array, "N X"]
    choice_Q: Int[Array, "Q"]


def capacity_slots(
    routes: Routes, num_experts: int, capacity: int
) -> tuple[Slots, Int[Array, "B"]]:
    """Assigns up to C choices per expert and group to slots, which are ordered E B C.

    All first choices of a group come before its second choices, and so on.

    Returns:
        The slots, and the number of dropped choices per group.
    """
    E, C = num_experts, capacity
    B, T, X = routes.experts.shape
    # Choices of a group in the order X T, in which they are given places.
    experts_BR = jnp.swapaxes(routes.experts, 1, 2).reshape(B, X * T)
    is_routed_BR = jnp.tile(routes.is_real, (1, X))
    wanted_BRE = jax.nn.one_hot(experts_BR, E, dtype=jnp.int32) * is_routed_BR[:, :, None]
    place_BR = jnp.sum(wanted_BRE * jnp.cumsum(wanted_BRE, axis=1), axis=2) - 1
    is_kept_BR = is_routed_BR & (place_BR < C)
    group_B1 = jnp.arange(B)[:, None]
    slot_BR = jnp.where(is_kept_BR, (experts_BR * B + group_B1) * C + place_BR, E * B * C)
    slot_NX = jnp.swapaxes(slot_BR.reshape(B, X, T), 1, 2).reshape(B * T, X)

    # The inverse map, computed as a product because scattering single numbers is slow on TPU. Each
    # slot sums at most one term. Choices are numbered from 1 and are exact in float32.
    choice_R = jnp.swapaxes(jnp.arange(T * X).reshape(T, X), 0, 1).reshape(-1)
    expert_BRE = jnp.where(is_kept_BR[:, :, None], wanted_BRE * (choice_R + 1)[None, :, None], 0)
    choice_EBC = jnp.einsum(
        "BRE,BRC->EBC",
        expert_BRE.astype(jnp.float32),
        jax.nn.one_hot(place_BR, C),
        precision=jax.lax.Precision.HIGHEST,
    ).astype(jnp.int32)
    choice_EBC = jnp.where(choice_EBC > 0, choice_EBC - 1 + T * X * group_B1[None], B * T * X)
    return Slots(slot_NX, choice_EBC.reshape(-1)), jnp.sum(is_routed_BR & ~is_kept_BR, axis=1)


@jax.custom_vjp
def to_slots(x_ND: Float[Array, "N D"], slots: Slots) -> Float[Array, "Q D"]:
    """Gathers the token row of each slot."""
    return _take(x_ND, slots.choice_Q // slots.slot_NX.shape[1])


@jax.custom_vjp
def from_slots(y_QD: Float[Array, "Q D"], slots: Slots) -> Float[Array, "N D"]:
    """Sums the slots of each token; zero for a token without slots."""
    # One gather per choice of a token, so the N x X rows are never materialized at once.
    y_ND = jnp.zeros((len(slots.slot_NX), y_QD.shape[1]), jnp.float32)
    for slot_N in slots.slot_NX.T:
        y_ND += jnp.where((slot_N < len(y_QD))[:, None], _take(y_QD, slot_N), 0)
    return y_ND.astype(y_QD.dtype)


def weights_of_slots(weights_NX: Float[Array, "N X"], slots: Slots) -> Float[Array, "Q"]:
    """Returns the weight of the choice in each slot; zero for an empty slot."""
    return weights_NX.reshape(-1).at[slots.choice_Q].get(mode="fill", fill_value=0)


def _take(x_ND: Array, index_M: Array) -> Array:
    # Clipping an index past the end needs no extra pass over the result.
    return x_ND.at[index_M].get(mode="clip")


def _to_slots_forward(x_ND: Array, slots: Slots) -> Any:
    return to_slots(x_ND, slots), slots


def _to_slots_backward(slots: Slots, grad_QD: Array) -> Any:
    return from_slots(grad_QD, slots), None


def _from_slots_forward(y_QD: Array, slots: Slots) -> Any:
    return from_slots(y_QD, slots), slots


def _from_slots_backward(slots: Slots, grad_ND: Array) -> Any:
    return to_slots(grad_ND, slots), None


to_slots.defvjp(_to_slots_forward, _to_slots_backward)
from_slots.defvjp(_from_slots_forward, _from_slots_backward)
