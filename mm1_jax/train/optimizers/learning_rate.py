"""The learning rate: the law for its peak (MM1, section 3), and its course as a fraction of it."""

import enum
import math
from typing import Any

import jax
import jax.numpy as jnp


def mm1_learning_rate(num_parameters: int | float) -> float:
    """Peak learning rate for a decoder of N non-embedding parameters: exp(-0.4214 ln N - 0.5535).

    A regression over grid searches at 9M, 85M, 302M and 1.2B. For an MoE, N is that of its dense
    parent.
    """
    if num_parameters < 1:
        raise ValueError(f"num_parameters={num_parameters}: a learning rate needs at least 1")
    return math.exp(-0.4214 * math.log(num_parameters) - 0.5535)


class Schedule(enum.Enum):
    """The decline of the rate after the warm-up.

    COSINE and LINEAR reach the final fraction at the end and stay there. With steps at the peak
    before, they are the cooldown of a warm-up-stable-decay schedule (arXiv 2404.06395).
    INVERSE_SQUARE_ROOT is sqrt(warmup_steps / steps done) and has no end (arXiv 1706.03762).
    """

    COSINE = "cosine"
    LINEAR = "linear"
    INVERSE_SQUARE_ROOT = "inverse_square_root"
    CONSTANT = "constant"

    @property
    def has_end(self) -> bool:
        """Tells if it depends on when training ends."""
        return self in (Schedule.COSINE, Schedule.LINEAR)


def fraction_of_peak(
    schedule: Schedule,
    step: Any,
    *,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    final_fraction: float,
) -> jax.Array:
    """The rate of update number `step`, from 0, over the peak: linear up to 1, then down.

    Update `warmup_steps - 1` has the peak, and so have the `stable_steps` after it; update
    `decay_steps - 1` has the final fraction, where the schedule has an end.
    """
    done = jnp.asarray(step, jnp.float32) + 1
    warmup = done / max(warmup_steps, 1)
    start = warmup_steps + stable_steps
    match schedule:
        case Schedule.COSINE:
            progress = (done - start) / max(decay_steps - start, 1)
            cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
            decayed = final_fraction + (1 - final_fraction) * cosine
        case Schedule.LINEAR:
            progress = (done - start) / max(decay_steps - start, 1)
            decayed = 1 - (1 - final_fraction) * jnp.clip(progress, 0, 1)
        case Schedule.INVERSE_SQUARE_ROOT:
            decayed = jnp.sqrt(max(start, 1) / jnp.maximum(done, max(start, 1)))
        case Schedule.CONSTANT:
            decayed = jnp.ones_like(done)
    return jnp.where(done <= warmup_steps, warmup, decayed)
