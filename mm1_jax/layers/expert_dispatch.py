"""Tokens to the slots of their experts and back.

A choice of a token takes a slot or, dropped or padding, none; a slot holds one choice or is empty.
So both ways are gathers of rows, and so is the transpose of either: no product with one-hot
tensors, whose size and work grow with the routing group, and no scatter. An empty slot holds some
token's row, has weight zero, and is never read.

Legend: B routing groups, T tokens of a group, X experts per token, N tokens, R choices (in the
order N X), E experts, C expert capacity, Q slots, D model dim.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Routes(NamedTuple):
    """The experts of every token, best first, and their weights; padding is sent to none."""

    experts: Int[Array, "B T X"]
    weights: Float[Array, "B T X"]
    is_real: Bool[Array, "B T"]


class Slots(NamedTuple):
    """A partial one-to-one map of choices to slots.

    Attributes:
        slot_NX: Slot of each choice; Q for one without.
        choice_Q: Choice of each slot; R for an empty one.
    """

    slot_NX: Int[Array, "N X"]
    choice_Q: Int[Array, "Q"]


def capacity_slots(
    routes: Routes, num_experts: int, capacity: int
) -> tuple[Slots, Int[Array, "B"]]:
    """Slots for C choices of each expert in each group, in the order E B C, and how many got none.

    All first choices of a group come before the second ones, and so on.
    """
    E, C = num_experts, capacity
    B, T, X = routes.experts.shape
    # Choices of a group as X T: the order in which places are given.
    experts_BR = jnp.swapaxes(routes.experts, 1, 2).reshape(B, X * T)
    is_routed_BR = jnp.tile(routes.is_real, (1, X))
    wanted_BRE = jax.nn.one_hot(experts_BR, E, dtype=jnp.int32) * is_routed_BR[:, :, None]
    place_BR = jnp.sum(wanted_BRE * jnp.cumsum(wanted_BRE, axis=1), axis=2) - 1
    is_kept_BR = is_routed_BR & (place_BR < C)
    group_B1 = jnp.arange(B)[:, None]
    slot_BR = jnp.where(is_kept_BR, (experts_BR * B + group_B1) * C + place_BR, E * B * C)
    slot_NX = jnp.swapaxes(slot_BR.reshape(B, X, T), 1, 2).reshape(B * T, X)

    # The inverse as a product, which has one term or none for each slot, because to scatter single
    # numbers is slow on TPU. Choices are counted from 1 and exact in float32.
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
    """The token of each slot."""
    return _take(x_ND, slots.choice_Q // slots.slot_NX.shape[1])


@jax.custom_vjp
def from_slots(y_QD: Float[Array, "Q D"], slots: Slots) -> Float[Array, "N D"]:
    """The sum of each token's slots; zero without any."""
    # One gather for each choice: the pairs are never laid out side by side.
    y_ND = jnp.zeros((len(slots.slot_NX), y_QD.shape[1]), jnp.float32)
    for slot_N in slots.slot_NX.T:
        y_ND += jnp.where((slot_N < len(y_QD))[:, None], _take(y_QD, slot_N), 0)
    return y_ND.astype(y_QD.dtype)


def weights_of_slots(weights_NX: Float[Array, "N X"], slots: Slots) -> Float[Array, "Q"]:
    """The weight of the choice in each slot; zero in an empty one."""
    return weights_NX.reshape(-1).at[slots.choice_Q].get(mode="fill", fill_value=0)


def _take(x_ND: Array, index_M: Array) -> Array:
    # An index past the end takes the last row, which costs no pass over the result.
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
