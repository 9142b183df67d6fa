"""Optimisers, what they have in common, and MM1's law for the learning rate (MM1, section 3)."""

import abc
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mm1_jax.config import Configurable, config_class
from mm1_jax.field_types import Decay, NonNegative, NonNegativeInt, Positive, PositiveInt
from mm1_jax.layers.module import ContractError
from mm1_jax.layers.parameter_paths import picked, picks
from mm1_jax.train.adafactor import Matrix, scale_by_adafactor
from mm1_jax.train.schedule import Schedule, fraction_of_peak
from mm1_jax.train.update import Update

# Dims that stack matrices of equal kind; what remains tells a matrix from a vector.
_STACKING_DIMS = ("layers", "expert")


def mm1_learning_rate(num_parameters: int | float) -> float:
    """Peak learning rate for a decoder of N non-embedding parameters: exp(-0.4214 ln N - 0.5535).

    A regression over grid searches at 9M, 85M, 302M and 1.2B. For an MoE, N is that of its dense
    parent.
    """
    if num_parameters < 1:
        raise ValueError(f"num_parameters={num_parameters}: a learning rate needs at least 1")
    return math.exp(-0.4214 * math.log(num_parameters) - 0.5535)


class Optimizer(Configurable, abc.ABC):
    """The family: gradient, clipped by its global norm -> direction -> step of the scheduled size.

        parameter <- parameter - factor eta(t) (direction + weight_decay parameter)

    The decay is multiplied by the scheduled learning rate, as in `optax.adamw`.
    """

    @config_class
    class Config(Configurable.Config):
        # Peak; None: by the experiment, from `mm1_learning_rate`.
        learning_rate: NonNegative | None = None
        weight_decay: NonNegative = 0.0
        # "matrices" leaves out norm scales, biases and other vectors.
        decayed: Literal["all", "matrices"] = "all"
        warmup_steps: NonNegativeInt = 2000
        schedule: Schedule = Schedule.COSINE
        # Steps at the peak between warm-up and decay.
        stable_steps: NonNegativeInt = 0
        # Where cosine and linear reach their end; None: by the experiment, `trainer.max_steps`.
        decay_steps: NonNegativeInt | None = None
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
        """What a step does to a model with parameters (values or shapes) like these.

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

        return _tree(params, lambda path, variable: factor(path))


class AdamW(Optimizer):
    """direction = m / (sqrt(v) + eps), from moments of the gradient, corrected for their start.

    MM1's rule "lambda is a tenth of the peak rate eta" is for a decay that is multiplied by the
    schedule without its peak, so here it is `weight_decay=0.1` at every size; 0.1 eta itself would
    switch the decay off.
    """

    @config_class
    class Config(Optimizer.Config):
        weight_decay: NonNegative = 0.1
        b1: Decay = 0.9
        b2: Decay = 0.95
        eps: Positive = 1e-8
        # Dtype of the stored m and v; they are computed in float32.
        moments_dtype: Literal["float32", "bfloat16"] = "float32"

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        # Half a unit of bfloat16's last place is 1/512 at worst: smaller changes round to none.
        if cfg.moments_dtype == "bfloat16" and 1 - max(cfg.b1, cfg.b2) < 0.02:
            raise ValueError(
                f"optimizer.moments_dtype='bfloat16' with b1={cfg.b1}, b2={cfg.b2}: a moment that "
                "changes by less than 2% a step is lost in rounding; take float32, or 0.98 at most"
            )

    def direction(self, params: nnx.State) -> optax.GradientTransformation:
        cfg = self._config
        # Left to optax, moments are of the type of the parameters.
        adam = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)
        return _stored_in(adam, cfg.moments_dtype)


class Adafactor(Optimizer):
    """AdaFactor, with which MM1 is fine-tuned: a row and a column of second moments for a matrix.

    `direction` is that of `scale_by_adafactor`; there is no momentum. The paper names the peak rate
    and no more, so the rest are the defaults of the AdaFactor paper.
    """

    @config_class
    class Config(Optimizer.Config):
        # Matrices with a smaller dim keep all their second moments.
        min_factored_dim: PositiveInt = 128
        decay_exponent: Positive = 0.8
        # Largest root mean square of the direction of a matrix; None: not clipped.
        update_clip: Positive | None = 1.0
        # Multiply by the root mean square of the matrix: the rate is then a relative change.
        relative: bool = True

    def direction(self, params: nnx.State) -> optax.GradientTransformation:
        cfg = self._config

        def matrix(path: str, variable: nnx.Variable) -> Matrix:
            shape = variable.get_value().shape
            return Matrix.of(shape, _own_dims(variable), cfg.min_factored_dim)

        return scale_by_adafactor(
            _tree(params, matrix),
            decay_exponent=cfg.decay_exponent,
            update_clip=cfg.update_clip,
            relative=cfg.relative,
        )


def decay_mask(params: nnx.State) -> Any:
    """True for matrices, by their logical names: stacked norm scales have two dims and are none."""
    return _tree(params, lambda path, variable: len(_own_dims(variable)) >= 2)


def _own_dims(variable: nnx.Variable) -> tuple[int, ...]:
    """The dims that are not there to stack parameters of a kind."""
    names = variable.get_metadata("out_sharding")
    return tuple(i for i, name in enumerate(names) if name not in _STACKING_DIMS)


def _path(path: Any) -> str:
    return "/".join(str(part) for part in path)


def _tree(params: nnx.State, function: Any) -> Any:
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
    """The same, with the directions compared with the gradient: a scalar would broadcast."""
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


def _stored_in(
    transformation: optax.GradientTransformation, dtype: str
) -> optax.GradientTransformation:
    """The same, with the floating-point part of its state rounded to `dtype` between steps."""

    def cast(state: Any, dtype: str) -> Any:
        return jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
        )

    def init(params: Any) -> Any:
        return cast(transformation.init(params), dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = transformation.update(updates, cast(state, "float32"), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)
