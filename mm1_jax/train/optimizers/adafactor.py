"""AdaFactor (arXiv 1804.04235): second moments kept as rows and columns.

    R, C, V    means of squared gradients over the columns, over the rows, and their estimate
    u          gradient / sqrt(V), where V = R C / mean(R); clipped to a root mean square of 1

Every layer of a stack, and every expert, is a matrix of its own: it is clipped and scaled alone.
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
from mm1_jax.train.optimizers.optimizer import Optimizer, own_dims, tree_of

# The step that a parameter of zeros, a new bias say, can leave zero with (section 8 of the paper).
_MIN_SCALE = 1e-3
# Keeps a gradient of zero from a division by zero; so small that it changes no other.
_EPS = 1e-30


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
            return Matrix.of(shape, own_dims(variable), cfg.min_factored_dim)

        return scale_by_adafactor(
            tree_of(params, matrix),
            decay_exponent=cfg.decay_exponent,
            update_clip=cfg.update_clip,
            relative=cfg.relative,
        )


class AdafactorState(NamedTuple):
    """Updates made, and second moments: trees of the parameters, with size 1 where a mean is over.

    A parameter that is not factored has all of its moments in `rows`, and 1 in `columns`.
    """

    count: Int[Array, ""]
    rows: Any
    columns: Any


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The dims of a parameter that make up one matrix, and the two of them that are factored."""

    dims: tuple[int, ...]
    row: int | None = None
    column: int | None = None

    @classmethod
    def of(cls, shape: tuple[int, ...], dims: tuple[int, ...], min_factored_dim: int) -> "Matrix":
        """The two largest of `dims` are factored if both are at least `min_factored_dim`."""
        if len(dims) < 2:
            return cls(dims)
        # As `optax.adafactor` orders them, ties included.
        *_, row, column = (dims[i] for i in np.argsort([shape[dim] for dim in dims]))
        return cls(dims, row, column) if shape[row] >= min_factored_dim else cls(dims)


def scale_by_adafactor(
    matrices: Any, *, decay_exponent: float, update_clip: float | None, relative: bool
) -> optax.GradientTransformation:
    """Gradient -> step of about 1 per entry or, if relative, of about the parameter's own size.

    Args:
        matrices: A `Matrix` for each parameter.
        decay_exponent: The moments of step t, from 1, are a mean that forgets 1 - t ** -exponent.
        update_clip: Largest root mean square of a matrix's step; None: not clipped.
        relative: Multiply by the root mean square of the parameter.
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
