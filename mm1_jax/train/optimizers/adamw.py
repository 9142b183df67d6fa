"""AdamW (arXiv 1711.05101), the optimizer of MM1 pre-training."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mm1_jax.config import config_class
from mm1_jax.field_types import Decay, NonNegative, Positive
from mm1_jax.train.optimizers.optimizer import Optimizer


class AdamW(Optimizer):
    """direction = m / (sqrt(v) + eps), with bias-corrected moments m and v of the gradient.

    MM1 sets the decay lambda to a tenth of the peak rate eta, for a decay that is multiplied by the
    schedule without its peak. Here the decay is multiplied by the full rate, so the rule becomes
    `weight_decay=0.1` at every model size. A weight decay of 0.1 eta would disable it in effect.
    """

    @config_class
    class Config(Optimizer.Config):
        weight_decay: NonNegative = 0.1
        b1: Decay = 0.9
        b2: Decay = 0.95
        eps: Positive = 1e-8
        # Dtype in which m and v are stored; they are computed in float32.
        moments_dtype: Literal["float32", "bfloat16"] = "float32"

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        # Relative changes below half a unit in the last place of bfloat16, up to 1/256, round to
        # zero.
        if cfg.moments_dtype == "bfloat16" and 1 - max(cfg.b1, cfg.b2) < 0.02:
            raise ValueError(
                f"optimizer.moments_dtype='bfloat16' with b1={cfg.b1}, b2={cfg.b2}: a moment that "
                "changes by less than 2% per step is lost in rounding; use float32, or at most 0.98"
            )

    def direction(self, params: nnx.State) -> optax.GradientTransformation:
        cfg = self._config
        # optax alone would store moments in the dtype of the parameters.
        adam = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)
        return _stored_in(adam, cfg.moments_dtype)


def _stored_in(
    transformation: optax.GradientTransformation, dtype: str
) -> optax.GradientTransformation:
    """Rounds the floating-point part of a transformation's state to `dtype` between steps."""

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
