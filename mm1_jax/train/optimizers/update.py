"""Update of the training state by a gradient: frozen parameters, storage dtypes, averaging."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from mm1_jax.layers.parameter_paths import map_with_paths, partition, union
from mm1_jax.train.train_state import TrainState


class Averaged(NamedTuple):
    """`TrainState.opt_state` if an average is kept; it then contains the trained weights.

    `TrainState.params` is then the average. Evaluation, saving and generation thus use the average
    without any special case.
    """

    weights: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Update:
    """Computes the next state from a state and a gradient.

    Attributes:
        transformation: Converts the gradient of the trained parameters to their update.
        learning_rate: Rate of an update, counted from 0, without factors.
        frozen: Paths of frozen parameters, which have no gradient and no moments.
        ema_decay: Decay of the average, average <- ema_decay average + (1 - ema_decay) weights,
            in float32 and starting from the initial weights; None keeps no average.
        dtypes: Dtype by path of parameters that are not stored in float32.
        accumulation_dtype: Dtype of gradient sums over micro-batches.
        limits: Smallest and largest value by path, to which an update clamps a parameter.
    """

    transformation: optax.GradientTransformation
    learning_rate: Callable[[Any], jax.Array]
    frozen: frozenset[str] = frozenset()
    ema_decay: float | None = None
    dtypes: dict[str, DTypeLike] = dataclasses.field(default_factory=dict)
    accumulation_dtype: DTypeLike = jnp.float32
    limits: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def first_state(self, params: Any) -> TrainState:
        """Creates the initial state from parameters of a new model or of another run."""
        weights = map_with_paths(
            lambda path, x: x.astype(self.dtypes[path]) if path in self.dtypes else x, params
        )
        trained, frozen = self.split(weights)
        opt_state = self.transformation.init(trained)
        if self.ema_decay is not None:
            opt_state = Averaged(trained, opt_state)
            average = jax.tree.map(lambda x: x.astype(jnp.float32), self.split(params)[0])
            weights = union(average, frozen)
        return TrainState(jnp.zeros((), jnp.int32), weights, opt_state)

    def split(self, params: Any) -> tuple[Any, Any]:
        """Splits a parameter tree into trained and frozen parameters."""
        frozen, trained = partition(params, self.frozen)
        return trained, frozen

    def weights(self, state: TrainState) -> tuple[Any, Any]:
        """Parameters of the next forward pass, trained and frozen."""
        trained, frozen = self.split(state.params)
        if self.ema_decay is not None:
            trained = state.opt_state.weights
        return trained, frozen

    def apply(self, state: TrainState, gradient: Any) -> tuple[Any, Any]:
        """Returns the next `params` and `opt_state`, given the gradient of the trained weights."""
        trained, frozen = self.weights(state)
        decay = self.ema_decay
        opt_state = state.opt_state if decay is None else state.opt_state.opt_state
        updates, opt_state = self.transformation.update(gradient, opt_state, trained)
        trained = map_with_paths(
            lambda path, x: jnp.clip(x, *self.limits[path]) if path in self.limits else x,
            optax.apply_updates(trained, updates),
        )
        if decay is None:
            return union(trained, frozen), opt_state
        average = jax.tree.map(
            lambda a, x: decay * a + (1 - decay) * x.astype(a.dtype),
            self.split(state.params)[0],
            trained,
        )
        return union(average, frozen), Averaged(trained, opt_state)
