"""Comparisons with a reference: random weights, their conversion, and the one tolerance."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

# Largest difference in float32, as a share of the largest value. The order of sums causes up to
# 1.2e-6 in all comparisons; GELU instead of its tanh approximation causes 1e-4, positions resized
# without antialiasing 4e-2. A wrong epsilon (2e-6) would pass, so tests compare epsilons directly.
TOLERANCE = 4e-6

# Tables of vectors that are looked up or added, so that no product scales them down.
TABLES = ("position_embedding.weight", "embed_tokens.weight", "pos_emb")

Weights = dict[str, np.ndarray]


def assert_equal(actual: jax.Array, expected: torch.Tensor) -> None:
    expected = expected.detach().numpy()
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws all parameters, as zero biases and unit scales would hide mistakes.

    Matrices and kernels, whose first dim is the output, keep the scale of their inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim <= 1:
                parameter.copy_(0.3 * noise + (1 if name.endswith("weight") else 0))
            elif name.endswith(TABLES):
                parameter.copy_(noise)
            else:
                # The kernels of a Mixtral's experts are stacks of matrices.
                inputs = parameter.shape[-1] if parameter.ndim == 3 else parameter[0].numel()
                parameter.copy_(noise * inputs**-0.5)
    return module.eval()


def numpy_weights(module: torch.nn.Module) -> Weights:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def with_weights(cfg, weights: Weights) -> nnx.Module:
    """Makes the module of `cfg` with `weights`, which must hold exactly its parameters by path."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0))))
    unused = dict(weights)

    def fill(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        value = unused.pop("/".join(map(str, path)))
        assert variable.shape == value.shape, (path, variable.shape, value.shape)
        return variable.replace(jnp.asarray(value))

    params = nnx.map_state(fill, params)
    assert not unused, f"no parameters for {list(unused)}"
    return nnx.merge(graphdef, params)


def linear(weights: Weights, name: str) -> Weights:
    """Converts a torch Linear, with or without a bias."""
    result = {"kernel": weights[f"{name}.weight"].T}
    if f"{name}.bias" in weights:
        result["bias"] = weights[f"{name}.bias"]
    return result


def down(weights: Weights, name: str) -> Weights:
    """Converts a torch Linear that outputs the model dim, which ours stores as torch does."""
    return {**linear(weights, name), "kernel": weights[f"{name}.weight"]}


def pointwise(weights: Weights, name: str) -> Weights:
    """Converts a 1x1 torch convolution to a Linear over the channels."""
    flat = {f"{name}.weight": weights[f"{name}.weight"][:, :, 0, 0]}
    if f"{name}.bias" in weights:
        flat[f"{name}.bias"] = weights[f"{name}.bias"]
    return linear(flat, name)


def patch_kernel(weights: Weights, name: str) -> np.ndarray:
    """Converts a strided convolution to a matrix from the pixels of a patch, color innermost."""
    kernel = weights[f"{name}.weight"]
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))


def split_heads(weights: Weights, name: str, head_dim: int) -> Weights:
    """Converts a Linear whose outputs are heads."""
    return {k: v.reshape(*v.shape[:-1], -1, head_dim) for k, v in linear(weights, name).items()}


def join_heads(weights: Weights, name: str, head_dim: int) -> Weights:
    """Converts a Linear whose inputs are heads."""
    result = down(weights, name)
    kernel = result["kernel"]
    return {**result, "kernel": kernel.reshape(len(kernel), -1, head_dim)}


def layer_norm(weights: Weights, name: str) -> Weights:
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def stacked(layers: list[dict]) -> dict:
    """Stacks the weights of layers along a new leading dim."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)


def flat(tree: dict, path: str = "") -> Weights:
    """Flattens {"a": {"b": x}} to {"a/b": x}."""
    result = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            result |= flat(value, f"{path}{name}/")
        else:
            result[f"{path}{name}"] = value
    return result
