"""Low-rank adaptation (LoRA, arXiv 2106.09685): trained updates of layers with frozen kernels.

    y = x W + scale (x A) B,    scale = alpha / rank

A is drawn as in PEFT and B starts at zero, so an adapted model starts equal to its base. Both
products are computed inside the layer, so no gradient of W is ever formed.

    cfg.model.lora = LoRA.default_config().set(
        adapters={"decoder/stack": Adapter.default_config().set(rank=16, alpha=32)},
        trained=("connector",),
    )
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mm1_jax.config import Configurable, config_class
from mm1_jax.field_types import Positive, PositiveInt
from mm1_jax.layers.linear import LinearMap
from mm1_jax.layers.module import Module, param
from mm1_jax.layers.moe import Experts
from mm1_jax.layers.parameter_paths import picked, picks

# Name of the adapter below an adapted layer in parameter paths.
NAME = "lora"
_FIELD = "model.lora"


class Adapter(Module):
    """Low-rank update of one linear layer, or of a stack of them: scale (x A) B.

    A and B are stored in float32 regardless of `optimizer.parameters_dtype`, because updates are
    often too small for bfloat16, and are cast to the dtype of x.
    """

    @config_class
    class Config(Module.Config):
        rank: PositiveInt = 8
        alpha: Positive = 16.0

    def __init__(self, cfg: Config, *, layer: LinearMap, is_rank_stabilized: bool, rngs: nnx.Rngs):
        rank, kernel = cfg.rank, layer.kernel
        self.scale = cfg.alpha / (math.sqrt(rank) if is_rank_stabilized else rank)
        shape, names = kernel.shape, kernel.get_metadata("out_sharding")
        num_stacked = sum(name == "layers" for name in names)
        stacked = tuple(range(num_stacked))
        inputs = tuple(num_stacked + dim for dim in layer.input_dims)
        outputs = tuple(d for d in range(len(shape)) if d not in {*stacked, *inputs})

        def of(dims: tuple[int, ...], values: tuple) -> tuple:
            return tuple(values[dim] for dim in dims)

        fan_in = math.prod(of(inputs, shape))
        self.a = param(
            rngs,
            (*of(stacked, shape), *of(inputs, shape), rank),
            (*of(stacked, names), *of(inputs, names), None),
            _uniform(1 / math.sqrt(fan_in)),
            keep_float32=True,
        )
        self.b = param(
            rngs,
            (*of(stacked, shape), rank, *of(outputs, shape)),
            (*of(stacked, names), None, *of(outputs, names)),
            zeros,
            keep_float32=True,
        )

    def __call__(self, x: Float[Array, "*inputs"]) -> Float[Array, "*outputs"]:
        a, b = self.a[...].astype(x.dtype), self.b[...].astype(x.dtype)
        return jnp.tensordot(self.scale * jnp.tensordot(x, a, a.ndim - 1), b, 1)


class LoRA(Configurable):
    """Choice of the linear layers that get adapters, and of the parameters trained beside them.

    All other parameters are frozen.
    """

    @config_class
    class Config(Configurable.Config):
        # Adapters by rule (see `parameter_paths`); a rule picks linear layers by their paths, such
        # as "decoder/stack" or ".*/attention/(query|value)". The first rule that picks a layer
        # applies.
        adapters: dict[str, Adapter.Config] = {"decoder/stack": Adapter.default_config()}
        # Rules for parameters that are trained as a whole, such as "connector".
        trained: tuple[str, ...] = ()
        # Uses the scale alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732).
        rank_stabilized: bool = False

    def attach(self, model: nnx.Module, *, rngs: nnx.Rngs) -> None:
        """Adds the adapters to `model`, and marks the parameters that stay as they are as frozen.

        Raises:
            ValueError: A rule picks nothing, or picks experts, which cannot be adapted.
        """
        cfg = self._config
        modules = {_joined(path): module for path, module in nnx.iter_modules(model)}
        layers = {path: x for path, x in modules.items() if isinstance(x, LinearMap)}
        field = f"{_FIELD}.adapters"
        if not cfg.adapters:
            raise ValueError(f"{field} is empty: expected a rule, such as 'decoder/stack'")
        for rule in cfg.adapters:
            adapted = picked([rule], sorted(layers), field, what="linear layer")
            for path, module in modules.items():
                if isinstance(module, Experts) and picks(rule, path):
                    raise ValueError(
                        f"{field}: {rule!r} picks the experts {path}, which cannot be adapted; "
                        f"expected a rule for other layers, such as {_without_experts(adapted)!r}"
                    )
        paths = [_joined(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
        trained = picked(cfg.trained, paths, f"{_FIELD}.trained")
        for path, layer in layers.items():
            adapter = next((a for rule, a in cfg.adapters.items() if picks(rule, path)), None)
            if adapter is None:
                continue
            if f"{path}/kernel" in trained:
                raise ValueError(
                    f"{_FIELD}.trained picks {path}, which has an adapter; train it either as a "
                    "whole or by an adapter"
                )
            layer.lora = adapter.instantiate(
                layer=layer, is_rank_stabilized=cfg.rank_stabilized, rngs=rngs
            )
        for path, node in nnx.iter_graph(model):
            name = _joined(path)
            if isinstance(node, nnx.Param) and not is_adapter(name) and name not in trained:
                node.set_metadata(is_frozen=True)


def is_adapter(path: str) -> bool:
    """Returns whether the parameter at `path` belongs to an adapter."""
    return path.split("/")[-2:-1] == [NAME]


def adapters_of(model: nnx.Module) -> dict[str, Adapter]:
    """Returns the adapters of a model by the paths of the adapted layers."""
    return {
        _joined(path): module.lora
        for path, module in nnx.iter_modules(model)
        if isinstance(module, LinearMap) and module.lora is not None
    }


def _uniform(bound: float) -> Any:
    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _joined(path: Any) -> str:
    return "/".join(str(part) for part in path)


def _without_experts(adapted: Any) -> str:
    parts = sorted({path.rpartition("/")[0] for path in adapted if "attention" in path})
    return parts[0] if parts else ".*/attention"
