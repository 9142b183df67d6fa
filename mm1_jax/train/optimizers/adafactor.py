"""AdaFactor (arXiv 1804.04235): second moments factored into rows and columns.

    R, C    means of squared gradients over the columns and over the rows
    V       estimate of the second moments, R C / mean(R)
    u       gradient / sqrt(V), clipped to a root mean square of 1

Every layer of a stack and every expert is a separate matrix, clipped and scaled on its own.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from mm1_jax.config import config_class
from mm1_jax.field_types import Positive, PositiveInt
from mm1_jax.train.optimizers.optimizer import Optimizer, map_variables, own_dims

# Minimum scale, so that parameters of zeros, such as new biases, can change (paper, section 8).
_MIN_SCALE = 1e-3
# Avoids division by zero for zero gradients; too small to affect other values.
_EPS = 1e-30


class Adafactor(Optimizer):
    """AdaFactor, the optimizer of MM1 fine-tuning, with factored second moments and no momentum.

    The MM1 paper only states the peak learning rate, so the other defaults are those of the
    AdaFactor paper.
    """

    @config_class
    class Config(Optimizer.Config):
        # Matrices with a smaller dim store full second moments.
        min_factored_dim: PositiveInt = 128
        decay_exponent: Positive = 0.8
        # Maximum root mean square of the direction per matrix; None disables clipping.
        update_clip: Positive | None = 1.0
        # Multiplies by the root mean square of the matrix, so that the rate is a relative change.
        relative: bool = True

    def direction(self, params: nnx.State) -> optax.GradientTransformation:
        cfg = self._config

        def matrix(path: str, variable: nnx.Variable) -> Matrix:
            shape = variable.get_value().shape
            return Matrix.of(shape, own_dims(variable), cfg.min_factored_dim)

        return scale_by_adafactor(
            map_variables(params, matrix),
            decay_exponent=cfg.decay_exponent,
            update_clip=cfg.update_clip,
            relative=cfg.relative,
        )


class AdafactorState(NamedTuple):
    """Number of updates, and second moments as trees with the structure of the parameters.

    Dims that are averaged over have size 1. A parameter that is not factored has its full moments
    in `rows`, and 1 in `columns`.
    """

    count: Int[Array, ""]
    rows: Any
    columns: Any


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Dims of a parameter that form one matrix, and the two of them that are factored."""

    dims: tuple[int, ...]
    row: int | None = None
    column: int | None = None

    @classmethod
    def of(cls, shape: tuple[int, ...], dims: tuple[int, ...], min_factored_dim: int) -> "Matrix":
        """Factors the two largest of `dims` if both are at least `min_factored_dim`."""
        if len(dims) < 2:
            return cls(dims)
        # Same order as in `optax.adafactor`, including ties.
        *_, row, column = (dims[i] for i in np.argsort([shape[dim] for dim in dims]))
        return cls(dims, row, column) if shape[row] >= min_factored_dim else cls(dims)


def scale_by_adafactor(
    matrices: Any, *, decay_exponent: float, update_clip: float | None, relative: bool
) -> optax.GradientTransformation:
    """Scales gradients to steps of about 1 per entry or, if relative, of the parameter's scale.

    Args:
        matrices: A `Matrix` per parameter.
        decay_exponent: The moments are exponential averages with decay 1 - t ** -decay_exponent in
            step t, counted from 1.
        update_clip: Maximum root mean square of the step per matrix; None disables clipping.
        relative: Multiplies by the root mean square of the parameter.
    """

    def init(params: Any) -> AdafactorState:
        rows = jax.tree.map(lambda x, matrix: _zeros(x, matrix.column), params, matrices)
        columns = jax.tree.map(
            lambda x, matrix: (
                jnp.ones((1,) * x.ndim, jnp.float32)
                if matrix.row is None
                else _zeros(x, matrix.row)
            ),
            params,
            matrices,
        )
        return AdafactorState(jnp.zeros((), jnp.int32), rows, columns)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AdafactorState]:
        gradient = updates
        count: Any = optax.safe_increment(state.count)
        kept = 1 - count.astype(jnp.float32) ** -decay_exponent

        def moment(old: jax.Array, g: jax.Array, dim: int | None) -> jax.Array:
            new = jnp.square(g.astype(jnp.float32)) + _EPS
            if dim is not None:
                new = jnp.mean(new, axis=dim, keepdims=True)
            return kept * old + (1 - kept) * new

        def step(g: Any, row: Any, column: Any, parameter: Any, matrix: Matrix) -> Any:
            if matrix.row is not None:
                row = row / jnp.mean(row, axis=matrix.row, keepdims=True)
            u = g.astype(jnp.float32) * row**-0.5 * column**-0.5
            if update_clip is not None:
                u /= jnp.maximum(1.0, _rms(u, matrix) / update_clip)
            if relative:
                u *= jnp.maximum(_rms(parameter.astype(jnp.float32), matrix), _MIN_SCALE)
            return u

        rows = jax.tree.map(
            lambda old, g, matrix: moment(old, g, matrix.column), state.rows, gradient, matrices
        )
        columns = jax.tree.map(
            lambda old, g, matrix: old if matrix.row is None else moment(old, g, matrix.row),
            state.columns,
            gradient,
            matrices,
        )
        updates = jax.tree.map(step, gradient, rows, columns, params, matrices)
        return updates, AdafactorState(count, rows, columns)

    return optax.GradientTransformation(init, update)


def _zeros(x: Any, dim: int | None) -> Float[Array, "..."]:
    shape = tuple(1 if i == dim else size for i, size in enumerate(x.shape))
    return jnp.zeros(shape, jnp.float32)


def _rms(x: jax.Array, matrix: Matrix) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=matrix.dims, keepdims=True))
