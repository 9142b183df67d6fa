"""Logistic regression on features, fitted by L-BFGS with all examples at once.

Minimizes the mean cross-entropy + l2 / 2 * |W|^2, where the bias is not penalized. scikit-learn's
`LogisticRegression` has the same minimum at C = 1 / (l2 * n). Loss and gradient are computed on the
first device of each process in chunks; SciPy takes the steps.

n examples   D features   C classes
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float, Float32, Int

# Examples whose logits are held at once.
_CHUNK = 4096


class Classifier(NamedTuple):
    """Kernel and bias of a linear classifier."""

    kernel: Float32[np.ndarray, "D C"]
    bias: Float32[np.ndarray, "C"]

    def logits(self, features: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n C"]:
        return features @ self.kernel + self.bias


class Scaling(NamedTuple):
    """Mean and standard deviation of each feature, by which features are standardized."""

    mean: Float32[np.ndarray, "D"]
    std: Float32[np.ndarray, "D"]

    @classmethod
    def of(cls, features: Float32[np.ndarray, "n D"]) -> "Scaling":
        std = features.std(axis=0, dtype=np.float64)
        # A constant feature stays zero.
        std = np.where(std > 0, std, 1.0).astype(np.float32)
        return cls(features.mean(axis=0, dtype=np.float64).astype(np.float32), std)

    def __call__(self, features: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n D"]:
        return (features - self.mean) / self.std


def fit(
    features: Float32[np.ndarray, "n D"],
    labels: Int[np.ndarray, "n"],
    num_classes: int,
    l2: float,
    *,
    start: Classifier | None = None,
    max_iterations: int = 1000,
) -> Classifier:
    """Returns the classifier with the least penalized loss.

    Args:
        start: Where the search starts; zeros by default.
    """
    number, dim = features.shape
    size = min(_CHUNK, number)
    padding = -number % size
    device = jax.local_devices()[0]
    chunks = np.pad(features, ((0, padding), (0, 0))).reshape(-1, size, dim)
    # A label of -1 is padding.
    targets = np.pad(labels.astype(np.int32), (0, padding), constant_values=-1).reshape(-1, size)
    chunks, targets = jax.device_put((chunks, targets), device)

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = _unpacked(values.astype(np.float32), dim, num_classes)
        weights = jax.device_put((kernel, bias), device)
        loss, (of_kernel, of_bias) = _loss_and_gradient(
            weights, chunks, targets, np.float32(number), np.float32(l2)
        )
        gradient = np.concatenate([np.asarray(of_kernel).ravel(), np.asarray(of_bias)])
        return float(loss), gradient.astype(np.float64)

    first = np.zeros(dim * num_classes + num_classes)
    if start is not None:
        first = np.concatenate([start.kernel.ravel(), start.bias]).astype(np.float64)
    found = scipy.optimize.minimize(
        objective,
        first,
        jac=True,
        method="L-BFGS-B",
        # Losses are float32, so that smaller changes are rounding errors.
        options={"maxiter": max_iterations, "maxfun": 2 * max_iterations, "ftol": 1e-9},
    )
    return Classifier(*_unpacked(found.x.astype(np.float32), dim, num_classes))


def _unpacked(values: np.ndarray, dim: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    return values[: dim * num_classes].reshape(dim, num_classes), values[dim * num_classes :]


Weights = tuple[Float[Array, "D C"], Float[Array, "C"]]


@jax.jit
def _loss_and_gradient(
    weights: Weights,
    chunks: Float[Array, "chunks size D"],
    targets: Int[Array, "chunks size"],
    number: Float[Array, ""],
    l2: Float[Array, ""],
) -> tuple[Float[Array, ""], Weights]:
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def add(total: tuple[Array, Weights], chunk: tuple[Array, Array]) -> tuple[Any, None]:
        features, labels = chunk

        def loss_of(weights: Weights) -> Array:
            logits = product(features, weights[0]) + weights[1][None]
            normalizer = jax.nn.logsumexp(logits, axis=-1)
            right = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=-1)[:, 0]
            return jnp.sum(jnp.where(labels >= 0, normalizer - right, 0.0)) / number

        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_of)(weights)), None

    kernel, bias = weights
    penalty = 0.5 * l2 * jnp.sum(jnp.square(kernel))
    start = (penalty, (l2 * kernel, jnp.zeros_like(bias)))
    total, _ = jax.lax.scan(add, start, (chunks, targets))
    return total
