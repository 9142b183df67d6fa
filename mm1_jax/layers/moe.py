"""Sparse mixture-of-experts feed-forward layer with top-k routing (GShard, ST-MoE).

The router computes in float32 without a bias: a softmax over all experts, of which it selects the X
best and rescales their weights to sum to one. `Dropless` dispatch computes every choice. `Capacity`
dispatch gives each expert a fixed number of places per routing group, first choices before second
ones, and counts the choices it drops. Padding takes no place, does not enter the statistics, and
gets zero output. A routing group never spans more than one row. Each device routes its own tokens;
token rows are exchanged along the mesh axis over which the experts are split, and sent back.

Legend: B batch, T positions, N tokens, D model dim, F feed-forward dim, E experts, X experts per
token, C expert capacity, R choices, Q slots, s devices along the expert axis.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import normal
from jaxtyping import Array, Bool, Float, Int

from mm1_jax.config import REQUIRED, InstantiableConfig, Required, config_class, derived
from mm1_jax.field_types import NonNegative, Positive, PositiveInt
from mm1_jax.layers.expert_dispatch import (
    Routes,
    capacity_slots,
    from_slots,
    to_slots,
    weights_of_slots,
)
from mm1_jax.layers.expert_exchange import arrivals, exchange, plan_exchange
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.layers.grouped_matmul import group_by_expert, grouped_matmul, row_block
from mm1_jax.layers.linear import fan_in
from mm1_jax.layers.low_precision import LowPrecision, Product, einsum, instantiated
from mm1_jax.layers.module import Module, param
from mm1_jax.parallel.rematerialisation import saved_name
from mm1_jax.parallel.sharding import gather_shards, per_shard, shard_axes, sum_shards

# Names of values that a rematerialization policy may save: expert inputs and two projections.
EXPERT_INPUTS = saved_name("expert_inputs")
EXPERT_GATE = saved_name("expert_gate")
EXPERT_UP = saved_name("expert_up")


class RouterStatistics(NamedTuple):
    """Sums over the real (non-padding) tokens of a batch, for one layer or with a leading L.

    Attributes:
        load_balance: Sum over rows of E sum_e f_e P_e times the tokens of the row, where f_e is the
            share of tokens whose first choice is e and P_e is the mean probability of e. It is 1
            per token when balanced.
        z: Sum of the squared log-partition of the router logits.
        weight: Number of real tokens, the divisor that turns `load_balance` and `z` into means.
        expert_load: Number of choices per expert, including dropped ones.
        dropped: Number of dropped choices.
    """

    load_balance: Float[Array, "*L"]
    z: Float[Array, "*L"]
    weight: Float[Array, "*L"]
    expert_load: Float[Array, "*L E"]
    dropped: Float[Array, "*L"]


# Logical axes of `gate`, `up` and `down`; `down` has its output dim first, as in dense layers.
KERNEL_NAMES = (("expert", "embed", "mlp"),) * 3


class Experts(Module):
    """Kernels of E gated feed-forward layers."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        hidden_dim: Required[PositiveInt] = derived()
        num_experts: Required[PositiveInt] = derived()
        activation: Activation = Activation.SILU
        init_scale: NonNegative = 1.0
        # Precision of the three products and of their gradients; None is the dtype of x.
        low_precision: LowPrecision.Config | None = None

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        E, D, F = cfg.num_experts, cfg.input_dim, cfg.hidden_dim
        gate, up, down = KERNEL_NAMES
        self.gate = param(rngs, (E, D, F), gate, normal(cfg.init_scale * D**-0.5))
        self.up = param(rngs, (E, D, F), up, normal(cfg.init_scale * D**-0.5))
        self.down = param(rngs, (E, D, F), down, normal(cfg.init_scale * F**-0.5))
        self.activation = Activation(cfg.activation)
        self.low_precision = instantiated(cfg.low_precision)

    def kernels(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        return self.gate[...], self.up[...], self.down[...]


class Dropless(Module):
    """Dispatch that sorts choices by expert and multiplies ragged groups; exact for any routing.

    If experts are split over devices, each choice is sent to the device of its expert. Shapes are
    static, so each device allocates a receive buffer of fixed size.
    """

    @config_class
    class Config(Module.Config):
        # Size of the receive buffer in multiples of a device's balanced share. Choices that exceed
        # it are dropped and counted. None allocates for the worst case, so nothing is ever dropped.
        receive_factor: Positive | None = None

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.receive_factor = cfg.receive_factor

    def __call__(
        self, x_BTD: Float[Array, "B T D"], routes: Routes, experts: Experts
    ) -> tuple[Float[Array, "B T D"], Float[Array, ""]]:
        E = experts.gate.shape[0]

        def compute(x: Array, is_real: Array, choices: Array, weights: Array, *kernels: Array):
            x_ND, weights_NX = x.reshape(-1, x.shape[-1]), weights.reshape(-1, weights.shape[-1])
            experts_NX = jnp.where(is_real[..., None], choices, E).reshape(weights_NX.shape)
            args = x_ND, experts_NX, weights_NX, kernels, experts.activation, experts.low_precision
            if shard_axes("expert"):
                y_ND, is_dropped_NX = compute_across_devices(*args, self.receive_factor)
            else:
                y_ND, is_dropped_NX = compute_on_device(*args), jnp.zeros(experts_NX.shape, bool)
            dropped = jnp.sum(is_dropped_NX.reshape(choices.shape), axis=2)
            return sum_shards(y_ND.reshape(x.shape), "activation_mlp"), dropped

        row = ("batch", "sequence")
        names = ((*row, None), row, (*row, None), (*row, None), *KERNEL_NAMES)
        compute = per_shard(compute, names, ((*row, None), row))
        tokens = x_BTD, routes.is_real, routes.experts, routes.weights
        y_BTD, dropped_BT = compute(*tokens, *experts.kernels())
        return y_BTD, jnp.sum(dropped_BT, dtype=jnp.float32)


def compute_on_device(
    x_ND: Float[Array, "N D"],
    experts_NX: Int[Array, "N X"],
    weights_NX: Float[Array, "N X"],
    kernels: tuple[Array, ...],
    activation: Activation,
    low_precision: LowPrecision | None,
) -> Float[Array, "N D"]:
    """Applies the experts of this device to tokens on this device.

    No grouped product takes 8-bit operands. Low precision rounds them, for evaluation to compute
    what training does.
    """
    E = kernels[0].shape[0]
    block = row_block(experts_NX.size, E)
    slots, sizes_E = group_by_expert(experts_NX, E, block)
    x_QD = checkpoint_name(to_slots(x_ND, slots), EXPERT_INPUTS)
    weights_Q = weights_of_slots(weights_NX, slots)

    def multiply(x: Array, kernel: Array, output_first: bool = False) -> Array:
        if low_precision is not None and Product.FORWARD in low_precision.products:
            x = low_precision.rounded(x, axis=1)
            kernel = low_precision.rounded(kernel, axis=2 if output_first else 1)
        return grouped_matmul(x, kernel, sizes_E, block, output_first)

    return from_slots(gated_experts(x_QD, weights_Q, kernels, activation, multiply), slots)


def compute_across_devices(
    x_ND: Float[Array, "N D"],
    experts_NX: Int[Array, "N X"],
    weights_NX: Float[Array, "N X"],
    kernels: tuple[Array, ...],
    activation: Activation,
    low_precision: LowPrecision | None,
    receive_factor: float | None,
) -> tuple[Float[Array, "N D"], Bool[Array, "N X"]]:
    """Applies experts that are split over devices.

    Returns:
        The outputs, and a mask of the choices dropped because a receive buffer was full.
    """
    axes = shard_axes("expert")
    me, s = jax.lax.axis_index(axes), jax.lax.axis_size(axes)
    num_own = kernels[0].shape[0]
    (N, X), E = experts_NX.shape, s * num_own
    buffer = worst = s * N * min(X, num_own)
    if receive_factor is not None:
        buffer = min(worst, math.ceil(receive_factor * N * X))

    # Send each device the choices of its experts, as one contiguous run.
    slots, sizes_E = group_by_expert(experts_NX, E, block=1)
    sizes_sse = jax.lax.all_gather(sizes_E, axes).reshape(s, s, num_own)
    plan = plan_exchange(jnp.sum(sizes_sse, axis=2), buffer)
    receiver_NX = jnp.minimum(experts_NX // num_own, s - 1)
    is_sent_NX = slots.slot_NX - plan.starts[me][receiver_NX] < plan.sizes[me][receiver_NX]
    is_routed_NX = experts_NX < E
    slots = slots._replace(
        slot_NX=jnp.where(is_routed_NX & is_sent_NX, slots.slot_NX, len(slots.choice_Q))
    )
    x_QD: Array = exchange(to_slots(x_ND, slots), plan, buffer)

    # Received rows are sorted by sender, then by expert. Weights are small, hence all-gathered.
    sender_Q, row_Q = arrivals(plan, buffer)
    ends_se = jnp.cumsum(sizes_sse[:, me], axis=1)
    experts_Q = jnp.sum(ends_se[sender_Q] <= row_Q[:, None], axis=1)
    experts_Q = jnp.where(row_Q < plan.sizes[sender_Q, me], experts_Q, num_own)
    weights_sR = jax.lax.all_gather(weights_of_slots(weights_NX, slots), axes)
    weights_Q = weights_sR.at[sender_Q, plan.starts[sender_Q, me] + row_Q].get(mode="clip")

    y_QD = compute_on_device(
        x_QD, experts_Q[:, None], weights_Q[:, None], kernels, activation, low_precision
    )
    y_RD = exchange(y_QD, plan.back(), len(slots.choice_Q))
    return from_slots(y_RD, slots), is_routed_NX & ~is_sent_NX


class Capacity(Module):
    """Dispatch in which an expert takes at most C tokens per routing group (GShard).

    It drops the rest. Shapes are fixed; only the share of dropped choices depends on the routing.
    """

    @config_class
    class Config(Module.Config):
        # C = capacity_factor * group_size / E; 2.0 suffices for balanced top-2 routing.
        capacity_factor: Positive = 2.0
        min_capacity: PositiveInt = 4
        # Number of adjacent tokens of a row that compete for places; None is the whole row. Large
        # groups drop less at the same cost. If rows are split over devices, groups must not be.
        group_size: PositiveInt | None = None

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.capacity_factor = cfg.capacity_factor
        self.min_capacity = cfg.min_capacity
        self.group_size = cfg.group_size

    def __call__(
        self, x_BTD: Float[Array, "B T D"], routes: Routes, experts: Experts
    ) -> tuple[Float[Array, "B T D"], Float[Array, ""]]:
        B, T, _ = x_BTD.shape
        E, size = experts.gate.shape[0], self.group_size or T
        if T % size:
            raise ValueError(f"moe: dispatch.group_size={size} must divide the {T} tokens of a row")
        C = min(max(int(self.capacity_factor * size / E), self.min_capacity), size)

        def compute(x: Array, is_real: Array, choices: Array, weights: Array, *kernels: Array):
            tokens = x.reshape(-1, x.shape[-1])
            routes = Routes(*(a.reshape(-1, *a.shape[2:]) for a in (choices, weights, is_real)))
            slots, dropped = capacity_slots(routes, E, C)
            x_EQD = to_slots(tokens, slots).reshape(E, -1, x.shape[-1])
            weights_EQ = weights_of_slots(weights.reshape(len(tokens), -1), slots).reshape(E, -1)
            x_sEQD = checkpoint_name(to_experts(x_EQD), EXPERT_INPUTS)
            weights_sEQ = to_experts(weights_EQ)
            multiply = functools.partial(multiply_experts, experts.low_precision)
            y_sEQD = gated_experts(x_sEQD, weights_sEQ, kernels, experts.activation, multiply)
            y_QD = to_tokens(y_sEQD).reshape(-1, x.shape[-1])
            y = from_slots(y_QD, slots).reshape(x.shape)
            return sum_shards(y, "activation_mlp"), dropped.reshape(is_real.shape[:2])

        rows = ("batch", "sequence", None)
        names = ((*rows, None), rows, (*rows, None), (*rows, None), *KERNEL_NAMES)
        grouped = (
            a.reshape(B, T // size, size, *a.shape[2:])
            for a in (x_BTD, routes.is_real, routes.experts, routes.weights)
        )
        compute = per_shard(compute, names, ((*rows, None), rows[:2]))
        y, dropped = compute(*grouped, *experts.kernels())
        return y.reshape(x_BTD.shape), jnp.sum(dropped, dtype=jnp.float32)


def to_experts(x_EQ: Float[Array, "E Q *D"]) -> Float[Array, "s E_s Q *D"]:
    """Exchanges slots so that each device gets, from all s devices, the slots of its experts."""
    axes = shard_axes("expert")
    if not axes:
        return x_EQ[None]
    s = jax.lax.axis_size(axes)
    x_sEQ = x_EQ.reshape(s, -1, *x_EQ.shape[1:])
    return jax.lax.all_to_all(x_sEQ, axes, split_axis=0, concat_axis=0, tiled=True)


def to_tokens(y_sEQ: Float[Array, "s E_s Q *D"]) -> Float[Array, "E Q *D"]:
    """Inverts `to_experts`."""
    axes = shard_axes("expert")
    if axes:
        y_sEQ = jax.lax.all_to_all(y_sEQ, axes, split_axis=0, concat_axis=0, tiled=True)
    return y_sEQ.reshape(-1, *y_sEQ.shape[2:])


def multiply_experts(
    low_precision: LowPrecision | None,
    x_sEQ: Float[Array, "s E Q _"],
    kernel_EDF: Float[Array, "E D F"],
    output_first: bool = False,
) -> Array:
    """Multiplies the rows of each expert by its kernel, without concatenating devices."""
    subscripts = "sEQF,EDF->sEQD" if output_first else "sEQD,EDF->sEQF"
    return einsum(low_precision, subscripts, x_sEQ, kernel_EDF)


def gated_experts(
    x: Float[Array, "*Q D"],
    weights: Float[Array, "*Q"],
    kernels: tuple[Array, ...],
    activation: Activation,
    multiply: Callable[..., Array],
) -> Float[Array, "*Q D"]:
    """Computes weight * (activation(x gate) * (x up)) down.

    The weight is applied before the last product. Its gradient then does not need the experts'
    outputs, so the backward pass of a rematerialized layer skips that product.
    """
    gate, up, down = (gather_shards(kernel, "embed", 1) for kernel in kernels)
    gate_F = checkpoint_name(multiply(x, gate), EXPERT_GATE)
    up_F = checkpoint_name(multiply(x, up), EXPERT_UP)
    hidden = (activation(gate_F) * up_F).astype(jnp.float32) * weights[..., None]
    return multiply(hidden.astype(x.dtype), down, output_first=True)


class MoE(Module):
    """y = sum over the token's experts e of weight_e * expert_e(x)."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        hidden_dim: Required[PositiveInt] = derived()
        num_experts: Required[PositiveInt] = REQUIRED
        experts_per_token: PositiveInt = 2
        dispatch: InstantiableConfig = Dropless.default_config()
        experts: InstantiableConfig = Experts.default_config()

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        if not 1 <= cfg.experts_per_token <= cfg.num_experts:
            raise ValueError(
                f"moe: experts_per_token={cfg.experts_per_token} must be between 1 and "
                f"num_experts={cfg.num_experts}"
            )
        shape = (cfg.input_dim, cfg.num_experts)
        self.router = param(rngs, shape, ("embed", None), fan_in(1.0), keep_float32=True)
        self.experts = cfg.experts.set(
            input_dim=cfg.input_dim, hidden_dim=cfg.hidden_dim, num_experts=cfg.num_experts
        ).instantiate(rngs=rngs)
        self.dispatch = cfg.dispatch.instantiate(rngs=rngs)
        low_precision = getattr(self.experts, "low_precision", None)
        if isinstance(self.dispatch, Dropless) and low_precision is not None:
            raise ValueError(
                "moe: dispatch=Dropless multiplies groups of any size, for which there is no 8-bit "
                "product; expected dispatch=Capacity (model.decoder.moe.dispatch), or experts in "
                "the dtype of the model (model.decoder.moe.experts.low_precision.products=())"
            )
        self.dropless = Dropless.default_config().instantiate(rngs=rngs)
        self.experts_per_token = cfg.experts_per_token

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        segment_ids_BT: Int[Array, "B T"] | None = None,
        *,
        dropless: bool = False,
    ) -> tuple[Float[Array, "B T D"], RouterStatistics]:
        """Applies the routed experts to each token.

        Args:
            segment_ids_BT: 0 marks padding; None means that there is no padding.
            dropless: Drops nothing, regardless of `dispatch`; for evaluation and decoding.
        """
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones(x_BTD.shape[:2], jnp.int32)
        logits_BTE = router_logits(x_BTD, self.router[...])
        routes = route(logits_BTE, segment_ids_BT > 0, self.experts_per_token)
        dispatch = self.dropless if dropless else self.dispatch
        y_BTD, dropped = dispatch(x_BTD, routes, self.experts)
        return y_BTD, router_statistics(logits_BTE, routes, dropped)


def router_logits(
    x_BTD: Float[Array, "B T D"], kernel_DE: Float[Array, "D E"]
) -> Float[Array, "B T E"]:
    """Computes logits in float32, at full precision even where TPU or TF32 would round products."""
    return jnp.einsum(
        "BTD,DE->BTE",
        x_BTD.astype(jnp.float32),
        kernel_DE.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def route(
    logits_BTE: Float[Array, "B T E"], is_real_BT: Bool[Array, "B T"], experts_per_token: int
) -> Routes:
    """Selects the most probable experts per token, weighted by their renormalized probabilities."""
    probabilities_BTE = jax.nn.softmax(logits_BTE, axis=-1)
    remaining_BTE = probabilities_BTE
    experts, weights = [], []
    # Taking the maximum once per choice is cheaper than sorting all experts.
    for _ in range(experts_per_token):
        best_BT = jnp.argmax(remaining_BTE, axis=-1)
        is_best_BTE = jax.nn.one_hot(best_BT, logits_BTE.shape[-1], dtype=bool)
        experts.append(best_BT)
        weights.append(jnp.sum(jnp.where(is_best_BTE, probabilities_BTE, 0), axis=-1))
        remaining_BTE = jnp.where(is_best_BTE, -1, remaining_BTE)
    weights_BTX = jnp.stack(weights, axis=-1)
    weights_BTX /= jnp.sum(weights_BTX, axis=-1, keepdims=True)
    return Routes(jnp.stack(experts, axis=-1), weights_BTX, is_real_BT)


def router_statistics(
    logits_BTE: Float[Array, "B T E"], routes: Routes, dropped: Float[Array, ""]
) -> RouterStatistics:
    """Computes the sums over real tokens that the auxiliary losses and the run report need."""
    E = logits_BTE.shape[-1]
    real_BT = routes.is_real.astype(jnp.float32)
    tokens_B = jnp.sum(real_BT, axis=1)
    chosen_BTXE = jax.nn.one_hot(routes.experts, E) * real_BT[:, :, None, None]
    first_BE = jnp.sum(chosen_BTXE[:, :, 0], axis=1)
    probability_BE = jnp.sum(jax.nn.softmax(logits_BTE, axis=-1) * real_BT[:, :, None], axis=1)
    # (first / tokens) * (probability / tokens) * tokens; a row of only padding adds zero.
    balance_B = E * jnp.sum(first_BE * probability_BE, axis=1) / jnp.maximum(tokens_B, 1)
    return RouterStatistics(
        load_balance=jnp.sum(balance_B),
        z=jnp.sum(jax.nn.logsumexp(logits_BTE, axis=-1) ** 2 * real_BT),
        weight=jnp.sum(tokens_B),
        expert_load=jnp.sum(chosen_BTXE, axis=(0, 1, 2)),
        dropped=dropped,
    )
