"""Parameters of adapted models on disk: without their adapters, or with these merged into kernels.

A merged kernel is W + scale A B, computed in float32 per layer when it is read.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.layers.linear import LinearMap
from mm1_jax.layers.lora import NAME, adapters_of, is_adapter


class AdaptedLayer(NamedTuple):
    """The adapter of one linear layer, or of a stack of them.

    Attributes:
        scale: Factor of (x A) B.
        rank: Number of columns of A.
        input_dims: Dims of a layer's kernel that it sums over.
        num_stacked: Number of leading dims of the kernel that stack layers.
    """

    scale: float
    rank: int
    input_dims: tuple[int, ...]
    num_stacked: int


class AdaptedModel(NamedTuple):
    """Adapters of a model, and the parameters that it trains as a whole.

    Attributes:
        layers: Adapted layers by path.
        trained: Paths of the parameters that are trained as a whole.
        input_dims: Dims of a kernel that are summed over, by the path of every linear layer.
    """

    layers: dict[str, AdaptedLayer]
    trained: frozenset[str]
    input_dims: dict[str, tuple[int, ...]]
    is_rank_stabilized: bool = False


def adapted_model(model: Any) -> AdaptedModel:
    """Returns the adapters and trained parameters of an `MM1.Config`, without creating arrays."""
    module = nnx.eval_shape(lambda: model.instantiate(rngs=nnx.Rngs(params=0)))
    maps: dict[str, LinearMap] = {
        "/".join(map(str, path)): layer
        for path, layer in nnx.iter_modules(module)
        if isinstance(layer, LinearMap)
    }
    layers = {}
    for path, adapter in adapters_of(module).items():
        inputs = maps[path].input_dims
        layers[path] = AdaptedLayer(
            adapter.scale, adapter.a.shape[-1], inputs, adapter.a.ndim - len(inputs) - 1
        )
    params = nnx.to_flat_state(nnx.state(module, nnx.Param))
    paths = {"/".join(map(str, path)): x.get_metadata("is_frozen", False) for path, x in params}
    trained = {path for path, is_frozen in paths.items() if not (is_frozen or is_adapter(path))}
    return AdaptedModel(
        layers,
        frozenset(trained),
        {path: layer.input_dims for path, layer in maps.items()},
        model.lora is not None and model.lora.rank_stabilized,
    )


class BaseParams(StoredParams):
    """Parameters of a checkpoint without the adapters in it."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {path: x for path, x in super().shapes.items() if not is_adapter(path)}


class MergedParams(BaseParams):
    """Parameters of a checkpoint with its adapters merged into the kernels."""

    def __init__(self, folder: Path, step: int | None, layers: dict[str, AdaptedLayer]):
        super().__init__(folder, step)
        self._layers = layers

    def read(self, path: str, index: tuple[int | slice, ...] = ()) -> np.ndarray:
        value = super().read(path, index)
        layer_path, _, name = path.rpartition("/")
        layer = self._layers.get(layer_path) if name == "kernel" else None
        if layer is None:
            return value
        a, b = (super(BaseParams, self).read(f"{layer_path}/{NAME}/{x}", index) for x in "ab")
        num_taken = sum(isinstance(i, int) for i in index)
        return value.astype(np.float32) + kernel_update(layer, a, b, layer.num_stacked - num_taken)


def kernel_update(
    layer: AdaptedLayer, a: np.ndarray, b: np.ndarray, num_stacked: int
) -> np.ndarray:
    """Returns scale A B with the dims of the layer's kernel, after `num_stacked` leading dims."""
    stacked, inputs, outputs = (
        a.shape[:num_stacked],
        a.shape[num_stacked:-1],
        b.shape[num_stacked + 1 :],
    )
    product = np.matmul(
        a.astype(np.float32).reshape(*stacked, math.prod(inputs), layer.rank),
        b.astype(np.float32).reshape(*stacked, layer.rank, math.prod(outputs)),
    )
    product = product.reshape(*stacked, *inputs, *outputs) * np.float32(layer.scale)
    num_own = len(inputs) + len(outputs)
    own = (*layer.input_dims, *(d for d in range(num_own) if d not in layer.input_dims))
    order = [own.index(dim) for dim in range(num_own)]
    return product.transpose(*range(num_stacked), *(num_stacked + place for place in order))
