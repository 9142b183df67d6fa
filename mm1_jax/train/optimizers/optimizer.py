"""The family of optimizers: clipping, decay, schedule, freezing and averages around a direction."""

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

# Dims that stack matrices of equal kind; what remains tells a matrix from a vector.
_STACKING_DIMS = ("layers", "expert")


class Optimizer(Configurable, abc.ABC):
    """The family: gradient, clipped by its global norm -> direction -> step of the scheduled size.

        parameter <- parameter - factor eta(t) (direction + weight_decay parameter)

    The decay is multiplied by the scheduled learning rate, as in `optax.adamw`.
    """

    @config_class
    class Config(Configurable.Config):
        # Peak; the experiment takes `mm1_learning_rate` of the decoder.
        learning_rate: NonNegative | None = derived(None)
        weight_decay: NonNegative = 0.0
        # "matrices" leaves out norm scales, biases and other vectors.
        decayed: Literal["all", "matrices"] = "all"
        warmup_steps: NonNegativeInt = 2000
        schedule: Schedule = Schedule.COSINE
        # Steps at the peak between warm-up and decay.
        stable_steps: NonNegativeInt = 0
        # Where cosine and linear reach their end; the experiment takes `trainer.max_steps`.
        decay_steps: NonNegativeInt | None = derived(None)
        # Learning rate at that end, as a fraction of the peak.
        final_fraction: NonNegative = 0.1
        # Largest global norm of the gradient of what is trained; None: no clipping.
        clip: Positive | None = 1.0
        # Rules of `parameter_paths`: these get no gradient, no decay and no moments.
        frozen: tuple[str, ...] = ()
        # Rule -> what the learning rate is multiplied by; the first rule that picks a parameter.
        learning_rate_factors: dict[str, Positive] = {}
        # Decay of the exponential average of parameters that is evaluated and saved as the model;
        # None: no average is kept.
        ema_decay: Decay | None = None
        # Dtypes of stored weights, all but norms and routers, and of the sum over micro-batches of
        # their gradients. The model computes in `model.dtype`, and the optimiser in float32.
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
        """Clipped gradient -> what is scaled by the learning rate, decay not included."""

    def learning_rate(self, step: Any) -> jax.Array:
        """The rate of update number `step`, from 0, where no factor applies."""
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
        """The update of a model with parameters (values or shapes) like these.

        Raises:
            ValueError: A rule picks no parameter, or none is left to train.
        """
        cfg = self._config
        paths = [_path(path) for path, _ in nnx.to_flat_state(params)]
        frozen = picked(cfg.frozen, paths, "optimizer.frozen")
        if len(frozen) == len(paths):
            raise ValueError(f"optimizer.frozen={cfg.frozen}: no parameter is left to train")
        trained = nnx.from_flat_state(
            [each for each in nnx.to_flat_state(params) if _path(each[0]) not in frozen]
        )
        return Update(
            self.transformation(trained),
            self.learning_rate,
            frozen=frozen,
            ema_decay=cfg.ema_decay,
            dtypes=_dtypes(params, cfg.parameters_dtype),
            accumulation_dtype=jnp.dtype(cfg.accumulation_dtype),
        )

    def transformation(self, params: nnx.State) -> optax.GradientTransformation:
        """The optimiser for parameters, all trained, with the logical names of `params`."""
        cfg = self._config
        clip = optax.identity() if cfg.clip is None else optax.clip_by_global_norm(cfg.clip)
        # The decay and the rate belong to the direction's tuple: it is that of `optax.adamw`.
        steps = optax.chain(
            _checked(self, self.direction(params)),
            optax.add_decayed_weights(
                cfg.weight_decay, decay_mask(params) if cfg.decayed == "matrices" else None
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

        return tree_of(params, lambda path, variable: factor(path))


def decay_mask(params: nnx.State) -> Any:
    """True for matrices, by their logical names: stacked norm scales have two dims and are none."""
    return tree_of(params, lambda path, variable: len(own_dims(variable)) >= 2)


def own_dims(variable: nnx.Variable) -> tuple[int, ...]:
    """The dims that are not there to stack parameters of a kind."""
    names = variable.get_metadata("out_sharding")
    return tuple(i for i, name in enumerate(names) if name not in _STACKING_DIMS)


def _path(path: Any) -> str:
    return "/".join(str(part) for part in path)


def tree_of(params: nnx.State, function: Any) -> Any:
    """Nested dicts of function(path, variable)."""
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
    """Compares the directions with the gradient at each update: a scalar would broadcast."""
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
                f"{name} makes {found.get(wrong[0], 'nothing')} for the parameter {wrong[0]}, "
                f"expected {expected.get(wrong[0], 'nothing')}, the shape of its gradient",
            )
        return updates, state

    return optax.GradientTransformation(direction.init, update)
