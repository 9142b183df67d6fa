"""Learning rate: scaling law for its peak (MM1, section 3), and schedules relative to the peak."""

import enum
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


def mm1_learning_rate(num_parameters: int | float) -> float:
    """Returns the peak rate for N non-embedding decoder parameters: exp(-0.4214 ln N - 0.5535).

    The law is a regression over grid searches at 9M, 85M, 302M and 1.2B parameters. For an MoE, N
    is that of its dense counterpart.
    """
    if num_parameters < 1:
        raise ValueError(f"num_parameters={num_parameters}: must be at least 1")
    return math.exp(-0.4214 * math.log(num_parameters) - 0.5535)


@dataclass(frozen=True)
class LearningRateLaw:
    """A law that was fitted to grid searches: a line in the logarithms of size and peak rate.

    Attributes:
        center: Number of non-embedding decoder parameters at which `intercept` is ln rate.
    """

    center: float
    intercept: float
    slope: float

    def learning_rate(self, num_parameters: int | float) -> float:
        """Returns the peak rate for N non-embedding decoder parameters."""
        return math.exp(self.intercept + self.slope * math.log(num_parameters / self.center))

    @classmethod
    def read(cls, path: str) -> "LearningRateLaw":
        """Reads a file that `fit_learning_rate` wrote; raises ValueError if it is none."""
        try:
            stored = json.loads(Path(path).read_text())
            return cls(*(float(stored[name]) for name in ("center", "intercept", "slope")))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: expected a law that fit_learning_rate wrote ({error!r})"
            ) from error


class Schedule(enum.Enum):
    """Decay of the learning rate after warm-up.

    COSINE and LINEAR reach the final fraction at the end and stay there. With stable steps at the
    peak, they are the cooldown of a warmup-stable-decay schedule (arXiv 2404.06395).
    INVERSE_SQUARE_ROOT is sqrt((warmup_steps + stable_steps) / steps) and has no end (arXiv
    1706.03762).
    """

    COSINE = "cosine"
    LINEAR = "linear"
    INVERSE_SQUARE_ROOT = "inverse_square_root"
    CONSTANT = "constant"

    @property
    def has_end(self) -> bool:
        """True if the schedule depends on the last step of the decay."""
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
    """Returns the rate of update `step`, counted from 0, as a fraction of the peak.

    The rate rises linearly to the peak at update `warmup_steps - 1`, stays there for another
    `stable_steps`, and then decays. If the schedule has an end, update `decay_steps - 1` has the
    final fraction.
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
