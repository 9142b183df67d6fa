"""Sparse feed-forward layer: a router sends every token to its top experts (GShard, ST-MoE).

The router works in float32 without a bias: softmax over all experts, the X best, their weights
scaled to sum to one. Two forms of dispatch: `Dropless` computes every choice; `Capacity` gives each
expert a fixed number of places per row, first choices before second ones, and counts what it drops.
Padding takes no place, adds nothing to the statistics and gets zero output; no routing group
reaches beyond one row.

Legend: B batch, T positions, D model dim, F feed-forward dim, E experts, X experts per token,
C expert capacity, R pairs of token and chosen expert, Q slots of the buffer of sorted pairs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import normal
from jaxtyping import Array, Bool, Float, Int

from mm1_jax.config import REQUIRED, InstantiableConfig, Required, config_class
from mm1_jax.layers.expert_dispatch import (
    Routes,
    capacity_slots,
    from_slots,
    to_slots,
    weights_of_slots,
)
from mm1_jax.layers.feed_forward import Activation
from mm1_jax.layers.linear import fan_in
from mm1_jax.layers.module import Module, param
from mm1_jax.sharding import gather_shards, per_shard, shard_axes, sum_shards

# Names of what a rematerialisation policy may keep: the experts' rows, and two products.
EXPERT_INPUTS = "expert_inputs"
EXPERT_GATE = "expert_gate"
EXPERT_UP = "expert_up"

# Gathered kernels hold at most as many numbers: 64 MiB in float32.
MAX_GATHERED = 1 << 24


class RouterStatistics(NamedTuple):
    """Sums over the real tokens of a batch, of one layer or with a leading L.

    Attributes:
        load_balance: E sum_e f_e P_e of each row times its tokens, where f_e is the share of tokens
            whose first choice is e and P_e the mean probability of e: 1 a token when balanced.
        z: Squared log-partition of the router logits.
        weight: Number of real tokens, which turns the two above into means.
        expert_load: Choices that fell on each expert, dropped ones included.
        dropped: Choices that found no place.
    """

    load_balance: Float[Array, "*L"]
    z: Float[Array, "*L"]
    weight: Float[Array, "*L"]
    expert_load: Float[Array, "*L E"]
    dropped: Float[Array, "*L"]


# Of the kernels `gate`, `up` and `down`.
KERNEL_NAMES = (("expert", "embed", "mlp"), ("expert", "embed", "mlp"), ("expert", "mlp", "embed"))


class Experts(Module):
    """Kernels of E gated feed-forward layers."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[int] = REQUIRED
        hidden_dim: Required[int] = REQUIRED
        num_experts: Required[int] = REQUIRED
        activation: Activation = Activation.SILU
        init_scale: float = 1.0

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        E, D, F = cfg.num_experts, cfg.input_dim, cfg.hidden_dim
        gate, up, down = KERNEL_NAMES
        self.gate = param(rngs, (E, D, F), gate, normal(cfg.init_scale * D**-0.5))
        self.up = param(rngs, (E, D, F), up, normal(cfg.init_scale * D**-0.5))
        self.down = param(rngs, (E, F, D), down, normal(cfg.init_scale * F**-0.5))
        self.activation = Activation(cfg.activation)

    def kernels(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        return self.gate[...], self.up[...], self.down[...]


class Dropless(Module):
    """Sorts the choices by expert and multiplies the groups as they come: exact for any routing."""

    def __init__(self, cfg: Module.Config, *, rngs: nnx.Rngs):
        pass

    def __call__(
        self, x_BTD: Float[Array, "B T D"], routes: Routes, experts: Experts
    ) -> tuple[Float[Array, "B T D"], Float[Array, ""]]:
        B, T, D = x_BTD.shape
        E, X = experts.gate.shape[0], routes.experts.shape[-1]
        groups = group_by_expert(routes, E)
        # A slot without a choice reads past the end: zeros.
        x_QD = x_BTD.reshape(B * T, D).at[groups.source_Q // X].get(mode="fill", fill_value=0)
        gate_QF = grouped_matmul(x_QD, experts.gate[...], groups.block_experts)
        up_QF = grouped_matmul(x_QD, experts.up[...], groups.block_experts)
        hidden_QF = experts.activation(gate_QF) * up_QF
        y_QD = grouped_matmul(hidden_QF, experts.down[...], groups.block_experts)
        y_RD = y_QD.at[groups.slot_R].get(mode="fill", fill_value=0)
        y_BTXD = y_RD.reshape(B, T, X, D)
        y_BTD = jnp.einsum("BTXD,BTX->BTD", y_BTXD, routes.weights.astype(y_RD.dtype))
        return y_BTD, jnp.zeros((), jnp.float32)


class Groups(NamedTuple):
    """Where the routed pairs lie in a buffer of whole blocks, each block of one expert.

    Attributes:
        slot_R: Slot of each pair; one past the end for padding.
        source_Q: Pair of each slot; one past the end for a slot without any.
        block_experts: Expert of each block.
    """

    slot_R: Int[Array, "R"]
    source_Q: Int[Array, "Q"]
    block_experts: Int[Array, "blocks"]


def group_by_expert(routes: Routes, num_experts: int) -> Groups:
    """Lays the pairs of one expert side by side, in order, each expert from a block's start."""
    E, R = num_experts, routes.experts.size
    is_routed_R = jnp.repeat(routes.is_real.reshape(-1), routes.experts.shape[-1])
    expert_R = jnp.where(is_routed_R, routes.experts.reshape(-1), E)
    block = _block_size(R, E)
    num_blocks = -(-R // block) + E
    one_hot_RE = jax.nn.one_hot(expert_R, E, dtype=jnp.int32)
    counts_E = jnp.sum(one_hot_RE, axis=0)
    ends_E = jnp.cumsum(-(-counts_E // block) * block)
    starts_E = ends_E - -(-counts_E // block) * block
    place_RE = starts_E[None] + jnp.cumsum(one_hot_RE, axis=0) - 1
    slot_R = jnp.where(is_routed_R, jnp.sum(place_RE * one_hot_RE, axis=1), num_blocks * block)
    source_Q = jnp.full(num_blocks * block, R).at[slot_R].set(jnp.arange(R), mode="drop")
    block_starts = jnp.arange(num_blocks) * block
    block_experts = jnp.sum(ends_E[None] <= block_starts[:, None], axis=1)
    return Groups(slot_R, source_Q, jnp.minimum(block_experts, E - 1))


def _block_size(num_pairs: int, num_experts: int) -> int:
    # Large blocks make large matrix products, but each expert wastes half a block on average.
    share = max(num_pairs // num_experts, 1)
    return min(max(1 << (share.bit_length() - 1), 8), 256)


def grouped_matmul(
    x_QD: Float[Array, "Q D"],
    kernel_EDF: Float[Array, "E D F"],
    block_experts: Int[Array, "blocks"],
) -> Float[Array, "Q F"]:
    """Multiplies each block of rows by its expert's kernel. The choice of a kernel belongs here.

    Small kernels are gathered, one for each block, into one batched product; large ones are taken
    block by block. `jax.lax.ragged_dot` serves neither on CPU: it lowers to a dense product with
    every expert there, which is several times slower and makes E copies of the rows.
    """
    num_blocks, (_, D, F) = len(block_experts), kernel_EDF.shape
    x_blocks = x_QD.reshape(num_blocks, -1, D)
    if num_blocks * D * F <= MAX_GATHERED:
        y_blocks = jnp.einsum("nud,ndf->nuf", x_blocks, kernel_EDF[block_experts])
    else:
        y_blocks = block_by_block(x_blocks, kernel_EDF, block_experts)
    return y_blocks.reshape(-1, F)


@jax.custom_vjp
def block_by_block(
    x_blocks: Float[Array, "blocks u D"],
    kernel_EDF: Float[Array, "E D F"],
    block_experts: Int[Array, "blocks"],
) -> Float[Array, "blocks u F"]:
    """Products that read one kernel at a time.

    So does their gradient, which is written out: the one that JAX derives from the loop passes over
    the kernels of all experts in every block.
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

    # In float32, in which one product over all rows of an expert would be summed too.
    zeros_EDF = jnp.zeros(kernel_EDF.shape, jnp.float32)
    grad_EDF, x_grads = jax.lax.scan(add_block, zeros_EDF, (x_blocks, y_grads, block_experts))
    return x_grads, grad_EDF.astype(kernel_EDF.dtype), None


block_by_block.defvjp(_block_by_block_forward, _block_by_block_backward)


class Capacity(Module):
    """Each expert takes at most C tokens of a routing group and drops the rest (GShard).

    Its products have fixed shapes: nothing but the drop share depends on the routing.
    """

    @config_class
    class Config(Module.Config):
        # C = capacity_factor group_size / E: 2.0 is enough for balanced top-2.
        capacity_factor: float = 2.0
        min_capacity: int = 4
        # Tokens that compete for places, neighbours in a row; None is a row. Large groups drop less
        # at the same cost; a row that is split over devices needs groups that are not.
        group_size: int | None = None

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
            raise ValueError(
                f"moe: dispatch.group_size is {size}, which must divide the {T} tokens of a row"
            )
        C = min(max(int(self.capacity_factor * size / E), self.min_capacity), size)

        def compute(x: Array, is_real: Array, choices: Array, weights: Array, *kernels: Array):
            tokens = x.reshape(-1, x.shape[-1])
            routes = Routes(*(a.reshape(-1, *a.shape[2:]) for a in (choices, weights, is_real)))
            slots, dropped = capacity_slots(routes, E, C)
            x_EQD = to_slots(tokens, slots).reshape(E, -1, x.shape[-1])
            weights_EQ = weights_of_slots(weights.reshape(len(tokens), -1), slots).reshape(E, -1)
            x_sEQD = checkpoint_name(to_experts(x_EQD), EXPERT_INPUTS)
            weights_sEQ = to_experts(weights_EQ)
            y_sEQD = gated(x_sEQD, weights_sEQ, kernels, experts.activation, every_expert)
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
    """What all s devices along the expert axis have for the experts of this one."""
    axes = shard_axes("expert")
    if not axes:
        return x_EQ[None]
    s = jax.lax.axis_size(axes)
    x_sEQ = x_EQ.reshape(s, -1, *x_EQ.shape[1:])
    return jax.lax.all_to_all(x_sEQ, axes, split_axis=0, concat_axis=0, tiled=True)


def to_tokens(y_sEQ: Float[Array, "s E_s Q *D"]) -> Float[Array, "E Q *D"]:
    """The way back of `to_experts`."""
    axes = shard_axes("expert")
    if axes:
        y_sEQ = jax.lax.all_to_all(y_sEQ, axes, split_axis=0, concat_axis=0, tiled=True)
    return y_sEQ.reshape(-1, *y_sEQ.shape[2:])


def every_expert(x_sEQD: Float[Array, "s E Q D"], kernel_EDF: Float[Array, "E D F"]) -> Array:
    """Each expert's rows by its kernel. Rows of different devices are never laid side by side."""
    return jnp.einsum("sEQD,EDF->sEQF", x_sEQD, kernel_EDF)


def gated(
    x: Float[Array, "*Q D"],
    weights: Float[Array, "*Q"],
    kernels: tuple[Array, ...],
    activation: Activation,
    multiply: Callable[[Array, Array], Array],
) -> Float[Array, "*Q D"]:
    """The experts' layer: weight (activation(x gate) * (x up)) down.

    The weight enters before the last product: then the gradient of the weight needs no output of
    the experts, and a layer that is recomputed for the backward pass skips that product.
    """
    gate, up, down = (
        gather_shards(kernel, "embed", dim) for kernel, dim in zip(kernels, (1, 1, 2), strict=True)
    )
    gate_F = checkpoint_name(multiply(x, gate), EXPERT_GATE)
    up_F = checkpoint_name(multiply(x, up), EXPERT_UP)
    hidden = (activation(gate_F) * up_F).astype(jnp.float32) * weights[..., None]
    return multiply(hidden.astype(x.dtype), down)


class MoE(Module):
    """y = sum over a token's experts of weight_e * expert_e(x)."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[int] = REQUIRED
        hidden_dim: Required[int] = REQUIRED
        num_experts: Required[int] = REQUIRED
        experts_per_token: int = 2
        dispatch: InstantiableConfig = Dropless.default_config()
        experts: InstantiableConfig = Experts.default_config()

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        if not 1 <= cfg.experts_per_token <= cfg.num_experts:
            raise ValueError(
                f"moe: experts_per_token is {cfg.experts_per_token}; it must lie between 1 and "
                f"num_experts, which is {cfg.num_experts}"
            )
        shape = (cfg.input_dim, cfg.num_experts)
        self.router = param(rngs, shape, ("embed", None), fan_in(1.0), keep_float32=True)
        self.experts = cfg.experts.set(
            input_dim=cfg.input_dim, hidden_dim=cfg.hidden_dim, num_experts=cfg.num_experts
        ).instantiate(rngs=rngs)
        self.dispatch = cfg.dispatch.instantiate(rngs=rngs)
        self.dropless = Dropless.default_config().instantiate(rngs=rngs)
        self.experts_per_token = cfg.experts_per_token

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        segment_ids_BT: Int[Array, "B T"] | None = None,
        *,
        dropless: bool = False,
    ) -> tuple[Float[Array, "B T D"], RouterStatistics]:
        """Sends x through its experts.

        Args:
            segment_ids_BT: 0 is padding; None means that there is none.
            dropless: Drop nothing, whatever the dispatch: for evaluation and decoding.
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
    """In float32, at full precision also where float32 products are rounded (TPU, TF32)."""
    return jnp.einsum(
        "BTD,DE->BTE",
        x_BTD.astype(jnp.float32),
        kernel_DE.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def route(
    logits_BTE: Float[Array, "B T E"], is_real_BT: Bool[Array, "B T"], experts_per_token: int
) -> Routes:
    """The most probable experts of each token, weighted by probabilities scaled to sum to one."""
    probabilities_BTE = jax.nn.softmax(logits_BTE, axis=-1)
    remaining_BTE = probabilities_BTE
    experts, weights = [], []
    # A maximum for each choice is cheaper than a sort of all experts.
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
    """What the auxiliary losses and the report need, as sums over real tokens."""
    E = logits_BTE.shape[-1]
    real_BT = routes.is_real.astype(jnp.float32)
    tokens_B = jnp.sum(real_BT, axis=1)
    chosen_BTXE = jax.nn.one_hot(routes.experts, E) * real_BT[:, :, None, None]
    first_BE = jnp.sum(chosen_BTXE[:, :, 0], axis=1)
    probability_BE = jnp.sum(jax.nn.softmax(logits_BTE, axis=-1) * real_BT[:, :, None], axis=1)
    # (first / tokens) (probability / tokens) tokens; a row of padding only adds nothing.
    balance_B = E * jnp.sum(first_BE * probability_BE, axis=1) / jnp.maximum(tokens_B, 1)
    return RouterStatistics(
        load_balance=jnp.sum(balance_B),
        z=jnp.sum(jax.nn.logsumexp(logits_BTE, axis=-1) ** 2 * real_BT),
        weight=jnp.sum(tokens_B),
        expert_load=jnp.sum(chosen_BTXE, axis=(0, 1, 2)),
        dropped=dropped,
    )
