"""What comparisons with a reference share: random weights, how they get in, the one tolerance."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

# Largest difference in float32, as a share of the largest value. The order of sums makes up to
# 1.2e-6 in all that is compared; GELU in place of its tanh approximation makes 1e-4, positions
# resized without antialiasing 4e-2. A wrong epsilon would hide (2e-6): tests compare it directly.
TOLERANCE = 4e-6

# Vectors that are looked up or added, which no product scales down.
TABLES = ("position_embedding.weight", "embed_tokens.weight", "pos_emb")

Weights = dict[str, np.ndarray]


def assert_equal(actual: jax.Array, expected: torch.Tensor) -> None:
    expected = expected.detach().numpy()
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws all parameters: no zero bias and no unit scale hides a mistake, and no layer fades.

    Matrices and kernels have their outputs first and keep the size of what they multiply.
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
                # The kernels of a Mixtral's experts are three-dimensional: matrices in a stack.
                inputs = parameter.shape[-1] if parameter.ndim == 3 else parameter[0].numel()
                parameter.copy_(noise * inputs**-0.5)
    return module.eval()


def numpy_weights(module: torch.nn.Module) -> Weights:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def with_weights(cfg, weights: Weights) -> nnx.Module:
    """The module of `cfg` with `weights`, which name every parameter by its path and no other."""
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
    """A torch Linear, with its bias if it has one."""
    result = {"kernel": weights[f"{name}.weight"].T}
    if f"{name}.bias" in weights:
        result["bias"] = weights[f"{name}.bias"]
    return result


def down(weights: Weights, name: str) -> Weights:
    """A torch Linear that leads back to the model dim: ours stores it as torch does."""
    return {**linear(weights, name), "kernel": weights[f"{name}.weight"]}


def pointwise(weights: Weights, name: str) -> Weights:
    """A 1x1 torch convolution, which is a Linear over the channels."""
    flat = {f"{name}.weight": weights[f"{name}.weight"][:, :, 0, 0]}
    if f"{name}.bias" in weights:
        flat[f"{name}.bias"] = weights[f"{name}.bias"]
    return linear(flat, name)


def patch_kernel(weights: Weights, name: str) -> np.ndarray:
    """A strided convolution as a matrix from the pixels of a patch, colour innermost."""
    kernel = weights[f"{name}.weight"]
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))


def split_heads(weights: Weights, name: str, head_dim: int) -> Weights:
    """A Linear whose outputs are heads."""
    return {k: v.reshape(*v.shape[:-1], -1, head_dim) for k, v in linear(weights, name).items()}


def join_heads(weights: Weights, name: str, head_dim: int) -> Weights:
    """A Linear whose inputs are heads."""
    result = down(weights, name)
    kernel = result["kernel"]
    return {**result, "kernel": kernel.reshape(len(kernel), -1, head_dim)}


def layer_norm(weights: Weights, name: str) -> Weights:
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def stacked(layers: list[dict]) -> dict:
    """The weights of layers, as one with a leading dim."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)


def flat(tree: dict, path: str = "") -> Weights:
    """{"a": {"b": x}} as {"a/b": x}."""
    result = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            result |= flat(value, f"{path}{name}/")
        else:
            result[f"{path}{name}"] = value
    return result
