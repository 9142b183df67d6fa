"""Base class of optimizers: clipping, decay, schedule, freezing and averaging."""

import abc
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mm1_jax.config import Configurable, config_class, derived
from mm1_jax.field_types import Decay, NonNegative, NonNegativeInt, Positive
from mm1_jax.layers.module import ContractError
from mm1_jax.layers.parameter_paths import picked, picks
from mm1_jax.train.optimizers.learning_rate import Schedule, fraction_of_peak
from mm1_jax.train.optimizers.update import Update

# Dims that stack parameters of the same kind. The other dims tell matrices from vectors.
_STACKING_DIMS = ("layers", "expert")


class Optimizer(Configurable, abc.ABC):
    """Base class of optimizers; a subclass computes the direction from the clipped gradient.

        parameter <- parameter - factor eta(t) (direction + weight_decay parameter)

    As in `optax.adamw`, the decay is multiplied by the scheduled learning rate eta(t).
    """

    @config_class
    class Config(Configurable.Config):
        # Peak learning rate; the experiment defaults to `mm1_learning_rate` of the decoder.
        learning_rate: NonNegative | None = derived(None)
        # File of a law (`python -m mm1_jax fit_learning_rate`) that gives `learning_rate`.
        learning_rate_law: str | None = None
        weight_decay: NonNegative = 0.0
        # "matrices" excludes norm scales, biases and other vectors from weight decay;
        # "matrices_but_positions" also excludes tables of learned positions.
        decayed: Literal["all", "matrices", "matrices_but_positions"] = "all"
        warmup_steps: NonNegativeInt = 2000
        schedule: Schedule = Schedule.COSINE
        # Number of steps at the peak between warm-up and decay.
        stable_steps: NonNegativeInt = 0
        # Step at which cosine and linear decay end; the experiment defaults to `trainer.max_steps`.
        decay_steps: NonNegativeInt | None = derived(None)
        # Learning rate at the end of the decay, as a fraction of the peak.
        final_fraction: NonNegative = 0.1
        # Maximum global norm of the gradient of trained parameters; None disables clipping.
        clip: Positive | None = 1.0
        # Rules (see `parameter_paths`) for frozen parameters: no gradient, decay or moments.
        frozen: tuple[str, ...] = ()
        # Learning rate multipliers by rule; the first rule that picks a parameter applies.
        learning_rate_factors: dict[str, Positive] = {}
        # Decay of the exponential moving average of parameters, which is then evaluated and saved
        # as the model; None keeps no average.
        ema_decay: Decay | None = None
        # Storage dtype of the parameters, except norms and routers, and dtype of gradient sums over
        # micro-batches. The model computes in `model.dtype`, the optimizer in float32.
        parameters_dtype: Literal["float32", "bfloat16"] = "float32"
        accumulation_dtype: Literal["float32", "bfloat16"] = "float32"

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        for name in ("learning_rate", "decay_steps"):
            if getattr(cfg, name) is None:
                raise ValueError(
                    f"optimizer.{name} is None: set it, or let the experiment set it from the model"
                )
        self._schedule = Schedule(cfg.schedule)
        stable_steps, decay_steps = cfg.stable_steps, cfg.decay_steps or 0
        if cfg.warmup_steps > decay_steps:
            raise ValueError(
                f"optimizer.warmup_steps={cfg.warmup_steps}: expected 0 to "
                f"decay_steps={decay_steps}; warm up for fewer steps, or train longer"
            )
        if stable_steps > decay_steps - cfg.warmup_steps:
            raise ValueError(
                f"optimizer.stable_steps={stable_steps}: expected 0 to decay_steps - warmup_steps "
                f"= {decay_steps - cfg.warmup_steps}"
            )

    @abc.abstractmethod
    def direction(self, params: nnx.State) -> optax.GradientTransformation:
        """Returns the transformation from clipped gradient to direction, without decay or rate."""

    def learning_rate(self, step: Any) -> jax.Array:
        """Returns the rate of update `step`, counted from 0, without factors."""
        cfg = self._config
        return cfg.learning_rate * fraction_of_peak(
            self._schedule,
            step,
            warmup_steps=cfg.warmup_steps,
            stable_steps=cfg.stable_steps,
            decay_steps=cfg.decay_steps,
            final_fraction=cfg.final_fraction,
        )

    def update(self, params: nnx.State) -> Update:
        """Creates the update for a model with these parameters (values or shapes).

        Raises:
            ValueError: A rule picks no parameter, or no parameter is left to train.
        """
        cfg = self._config
        flat = nnx.to_flat_state(params)
        paths = [_path(path) for path, _ in flat]
        frozen = picked(cfg.frozen, paths, "optimizer.frozen")
        # Adapted models mark what they freeze (see `layers.lora`).
        frozen |= {_path(path) for path, x in flat if x.get_metadata("is_frozen", False)}
        if len(frozen) == len(paths):
            raise ValueError(f"optimizer.frozen={cfg.frozen}: no parameter is left to train")
        trained = nnx.from_flat_state([each for each in flat if _path(each[0]) not in frozen])
        return Update(
            self.transformation(trained),
            self.learning_rate,
            frozen=frozen,
            ema_decay=cfg.ema_decay,
            dtypes=_dtypes(params, cfg.parameters_dtype),
            accumulation_dtype=jnp.dtype(cfg.accumulation_dtype),
            limits={
                _path(path): x.get_metadata("limits")
                for path, x in flat
                if x.get_metadata("limits", None) is not None
            },
        )

    def transformation(self, params: nnx.State) -> optax.GradientTransformation:
        """Returns the optax transformation for `params`, all of which are trained."""
        cfg = self._config
        clip = optax.identity() if cfg.clip is None else optax.clip_by_global_norm(cfg.clip)
        # This nesting of states is that of `optax.adamw`.
        steps = optax.chain(
            _checked(self, self.direction(params)),
            optax.add_decayed_weights(
                cfg.weight_decay,
                None
                if cfg.decayed == "all"
                else decay_mask(params, positions=cfg.decayed == "matrices"),
            ),
            optax.scale_by_learning_rate(self.learning_rate),
        )
        if not cfg.learning_rate_factors:
            return optax.chain(clip, steps)
        return optax.chain(clip, steps, _scale_by(self._factors(params)))

    def _factors(self, params: nnx.State) -> Any:
        factors = self._config.learning_rate_factors
        paths = [_path(path) for path, _ in nnx.to_flat_state(params)]
        for rule in factors:
            picked([rule], paths, "optimizer.learning_rate_factors")

        def factor(path: str) -> float:
            return next((f for rule, f in factors.items() if picks(rule, path)), 1.0)

        return map_variables(params, lambda path, variable: factor(path))


def decay_mask(params: nnx.State, *, positions: bool = True) -> Any:
    """Returns True for matrices, recognized by logical names; stacked norm scales are vectors.

    Biases are never decayed: those of queries, keys and values have two dims, heads and head dim.

    Args:
        positions: Whether tables of learned positions count as matrices.
    """

    def is_decayed(path: str, variable: nnx.Variable) -> bool:
        name = path.rpartition("/")[2]
        is_left_out = name == "bias" or (name == "positions" and not positions)
        return len(own_dims(variable)) >= 2 and not is_left_out

    return map_variables(params, is_decayed)


def own_dims(variable: nnx.Variable) -> tuple[int, ...]:
    """Returns the dims that do not stack parameters of the same kind."""
    names = variable.get_metadata("out_sharding")
    return tuple(i for i, name in enumerate(names) if name not in _STACKING_DIMS)


def _path(path: Any) -> str:
    return "/".join(str(part) for part in path)


def map_variables(params: nnx.State, function: Any) -> Any:
    """Maps `function(path, variable)` over parameters; returns nested dicts."""
    flat = nnx.to_flat_state(params)
    return nnx.to_pure_dict(
        nnx.from_flat_state([(path, x.replace(function(_path(path), x))) for path, x in flat])
    )


def _dtypes(params: nnx.State, dtype: str) -> dict[str, Any]:
    if dtype == "float32":
        return {}
    return {
        _path(path): jnp.dtype(dtype)
        for path, x in nnx.to_flat_state(params)
        if not x.get_metadata("keep_float32", False)
    }


def _scale_by(factors: Any) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda x, factor: factor * x, updates, factors)
    )


def _checked(optimizer: Optimizer, direction: Any) -> optax.GradientTransformation:
    """Checks that directions have the shapes of the gradient; a scalar would broadcast."""
    name = f"{type(optimizer).__name__}.direction"
    if not (callable(getattr(direction, "init", None)) and hasattr(direction, "update")):
        raise ContractError(
            type(optimizer),
            f"{name} returned {direction!r}, expected an optax.GradientTransformation",
        )

    def shapes(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path): f"{jnp.result_type(x)}{list(jnp.shape(x))}"
            for path, x in leaves
        }

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        expected = shapes(updates)
        updates, state = direction.update(updates, state, params)
        found = shapes(updates)
        wrong = [path for path in [*expected, *found] if expected.get(path) != found.get(path)]
        if wrong:
            raise ContractError(
                type(optimizer),
                f"{name} returned {found.get(wrong[0], 'nothing')} for the parameter {wrong[0]}, "
                f"expected {expected.get(wrong[0], 'nothing')}, the shape of its gradient",
            )
        return updates, state

    return optax.GradientTransformation(direction.init, update)
