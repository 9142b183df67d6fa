"""AdamW with warm-up and cosine decay, and MM1's law for the learning rate (MM1, section 3)."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mm1_jax.config import Configurable, config_class

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


class Optimizer(Configurable):
    """Decoupled AdamW on float32 parameters, after clipping the gradient by its global norm.

    update = -eta(t) * (m / (sqrt(v) + eps) + weight_decay * parameter)

    The decay is multiplied by the scheduled learning rate, as in `optax.adamw`. MM1's rule "lambda
    is a tenth of the peak rate eta" is for a decay that is multiplied by the schedule without its
    peak, so here it is `weight_decay=0.1` at every size; 0.1 eta itself would switch the decay off.
    """

    @config_class
    class Config(Configurable.Config):
        # Peak; None: by the experiment, from `mm1_learning_rate`.
        learning_rate: float | None = None
        weight_decay: float = 0.1
        # "matrices" leaves out norm scales, biases and other vectors.
        decayed: Literal["all", "matrices"] = "all"
        warmup_steps: int = 2000
        # Where the cosine reaches its end; None: by the experiment, `trainer.max_steps`.
        decay_steps: int | None = None
        # Learning rate at the end, as a fraction of the peak.
        final_fraction: float = 0.1
        b1: float = 0.9
        b2: float = 0.95
        eps: float = 1e-8
        # Largest global norm of the gradient; None: no clipping.
        clip: float | None = 1.0

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        for name in ("learning_rate", "decay_steps"):
            if getattr(cfg, name) is None:
                raise ValueError(
                    f"optimizer.{name} is None: set it, or let the experiment set it from the model"
                )
        if cfg.decayed not in ("all", "matrices"):
            raise ValueError(f"optimizer.decayed={cfg.decayed!r}: expected 'all' or 'matrices'")
        if not 0 <= cfg.warmup_steps <= (cfg.decay_steps or 0):
            raise ValueError(
                f"optimizer.warmup_steps={cfg.warmup_steps}: expected 0 to "
                f"decay_steps={cfg.decay_steps}; warm up for fewer steps, or train longer"
            )

    def learning_rate(self, step: Any) -> jax.Array:
        """The rate of update number `step`, from 0: linear up to the peak, then a cosine down.

        Update `warmup_steps - 1` has the peak, update `decay_steps - 1` the final fraction of it.
        """
        cfg = self._config
        done = jnp.asarray(step, jnp.float32) + 1
        warmup = done / max(cfg.warmup_steps, 1)
        progress = (done - cfg.warmup_steps) / max(cfg.decay_steps - cfg.warmup_steps, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
        decayed = cfg.final_fraction + (1 - cfg.final_fraction) * cosine
        return cfg.learning_rate * jnp.where(done <= cfg.warmup_steps, warmup, decayed)

    def transformation(self, params: nnx.State) -> optax.GradientTransformation:
        """The optimiser for parameters (values or shapes) with the logical names of `params`."""
        cfg = self._config
        mask = decay_mask(params) if cfg.decayed == "matrices" else None
        return optax.chain(
            optax.identity() if cfg.clip is None else optax.clip_by_global_norm(cfg.clip),
            optax.adamw(
                self.learning_rate,
                b1=cfg.b1,
                b2=cfg.b2,
                eps=cfg.eps,
                weight_decay=cfg.weight_decay,
                mask=mask,
            ),
        )


def decay_mask(params: nnx.State) -> Any:
    """True for matrices, by their logical names: stacked norm scales have two dims and are none."""
    mask = []
    for path, variable in nnx.to_flat_state(params):
        names = variable.get_metadata("out_sharding")
        is_matrix = sum(name not in _STACKING_DIMS for name in names) >= 2
        mask.append((path, variable.replace(is_matrix)))
    return nnx.to_pure_dict(nnx.from_flat_state(mask))
