"""Sparse upcycling: initializes a sparse decoder from a dense one (arXiv 2212.05055).

Every expert starts as a copy of the feed-forward layer that it replaces; the router is new. Since
the weights of a token sum to one, the sparse model computes the same function as the dense model
until an expert drops tokens or training makes the copies differ.

Legend: L dense layers, G groups of layers, E experts, D model dim, F feed-forward dim.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Children of a sparse layer: the router has no dense counterpart; the experts are copies.
_ROUTER, _EXPERTS = "router", "experts"
_KERNELS = ("gate", "up", "down")


def upcycle(dense: Any, sparse: Any) -> dict[str, Any]:
    """Converts dense parameters to those of a sparse model that differs only in its experts.

    This is a pure function. Jit it with the shardings of the sparse model as `out_shardings`, so
    that the experts are copied directly to their devices.

    Args:
        dense: Parameters of an `MM1` or a `Decoder`, as nested dicts of arrays.
        sparse: Parameters of a new sparse model of the same class; only the routers are used.

    Returns:
        Parameters with the structure and shapes of `sparse`.

    Raises:
        ValueError: The models differ in more than the experts; the message names the parameter.
    """
    return _upcycled(dense, sparse, "")


class DenseParameter(NamedTuple):
    """Dense source of a sparse parameter, for upcycling one array at a time.

    Attributes:
        path: Path in the dense model.
        shape: Shape in the dense model.
        group_size: Number of layers per group of the sparse stack; 0 outside of stacks.
        is_last: Whether the sparse parameter belongs to the last layer of each group.
        has_experts: Whether the sparse parameter consists of copies, one per expert.
    """

    path: str
    shape: tuple[int, ...]
    group_size: int
    is_last: bool
    has_experts: bool

    def read(
        self,
        read: Callable[[tuple[Any, ...]], np.ndarray],
        shape: tuple[int, ...],
        index: tuple[slice, ...],
    ) -> np.ndarray:
        """Returns the values of the sparse parameter at `index`, reading nothing else.

        Args:
            read: Returns the values of the dense parameter at an index.
            shape: Shape of the sparse parameter.
        """
        if not self.group_size:
            return read(index)
        ranges = [range(*each.indices(size)) for each, size in zip(index, shape, strict=True)]
        size, num_leading = self.group_size, 1
        if size == 1:
            layers = list(ranges[0])
        elif self.is_last:
            layers = [(group + 1) * size - 1 for group in ranges[0]]
        else:
            num_leading = 2
            layers = [group * size + place for group in ranges[0] for place in ranges[1]]
        inner = index[num_leading + self.has_experts :]
        values = np.stack([read((layer, *inner)) for layer in layers])
        values = values.reshape(*map(len, ranges[:num_leading]), *values.shape[1:])
        if not self.has_experts:
            return values
        values = np.expand_dims(values, num_leading)
        copies = (*values.shape[:num_leading], len(ranges[num_leading]))
        return np.broadcast_to(values, (*copies, *values.shape[num_leading + 1 :]))


def dense_parameter(path: str, shapes: Mapping[str, tuple[int, ...]]) -> DenseParameter | None:
    """Returns the dense source of a sparse parameter; None for a router, which is new.

    Args:
        shapes: Shapes of all parameters of the sparse model, by path.
    """
    shape = shapes[path]
    found = re.fullmatch(r"(.*\bstack)/(layer|last_layer)/(.*)", path)
    if found is None:
        return DenseParameter(path, shape, 0, False, False)
    stack, name, rest = found.groups()
    if rest.endswith(f"/{_ROUTER}"):
        return None
    group_size = 1
    if any(other.startswith(f"{stack}/last_layer/") for other in shapes):
        layer = next(other for other in shapes if other.startswith(f"{stack}/layer/"))
        group_size += shapes[layer][1]
    is_last = name == "last_layer"
    num_leading = 1 if group_size == 1 or is_last else 2
    experts = re.fullmatch(rf"(.*)/{_EXPERTS}/({'|'.join(_KERNELS)})", rest)
    if experts is not None:
        rest = f"{experts[1]}/{experts[2]}/kernel"
    inner = shape[num_leading + (experts is not None) :]
    return DenseParameter(
        f"{stack}/layer/{rest}",
        (shape[0] * group_size, *inner),
        group_size,
        is_last,
        experts is not None,
    )


def _upcycled(dense: Any, sparse: Any, path: str) -> Any:
    if not isinstance(sparse, dict):
        if jnp.shape(dense) != jnp.shape(sparse):
            raise ValueError(
                f"upcycling: {path} is {list(jnp.shape(dense))} in the dense model and "
                f"{list(jnp.shape(sparse))} in the sparse one; only experts may differ"
            )
        return dense
    if _is_stack(sparse):
        dense = {**dense, **_regrouped(dense, sparse, path)}
    if _is_sparse(sparse) and not _is_sparse(dense):
        return _sparse_layer(dense, sparse, path)
    if dense.keys() != sparse.keys():
        differing = ", ".join(sorted(map(str, dense.keys() ^ sparse.keys())))
        raise ValueError(
            f"upcycling: {path or 'the model'} has {differing} in only one of the two models; "
            "they may differ only in their experts"
        )
    return {
        name: _upcycled(dense[name], child, f"{path}/{name}".strip("/"))
        for name, child in sparse.items()
    }


def _is_stack(sparse: dict[str, Any]) -> bool:
    return "layer" in sparse and "last_layer" in sparse


def _is_sparse(layer: Any) -> bool:
    return isinstance(layer, dict) and layer.keys() == {_ROUTER, _EXPERTS}


def _regrouped(dense: dict[str, Any], sparse: dict[str, Any], path: str) -> dict[str, Any]:
    """Splits layers stacked [L] into [G, L / G - 1] and the last of each group, [G]."""
    if "last_layer" in dense:
        return {}
    num_groups, others = jnp.shape(jax.tree.leaves(sparse["layer"])[0])[:2]
    num_layers = len(jax.tree.leaves(dense["layer"])[0])
    if num_layers != num_groups * (others + 1):
        raise ValueError(
            f"upcycling: {path} has {num_layers} layers in the dense model and "
            f"{num_groups * (others + 1)} in the sparse one"
        )
    grouped = jax.tree.map(
        lambda x: x.reshape(num_groups, others + 1, *x.shape[1:]), dense["layer"]
    )
    return {
        "layer": jax.tree.map(lambda x: x[:, :-1], grouped),
        "last_layer": jax.tree.map(lambda x: x[:, -1], grouped),
    }


def _sparse_layer(dense: Any, sparse: dict[str, Any], path: str) -> dict[str, Any]:
    if not isinstance(dense, dict) or dense.keys() != set(_KERNELS):
        raise ValueError(
            f"upcycling: {path} of the dense model must be a gated feed-forward layer without "
            "biases, like an expert"
        )
    num_experts = jnp.shape(sparse[_EXPERTS]["gate"])[-3]
    copies = {name: _copies(dense[name]["kernel"], num_experts) for name in _KERNELS}
    experts = _upcycled(copies, sparse[_EXPERTS], f"{path}/{_EXPERTS}")
    return {_ROUTER: sparse[_ROUTER], _EXPERTS: experts}


def _copies(kernel: Float[Array, "*L D F"], num_experts: int) -> Float[Array, "*L E D F"]:
    shape = (*kernel.shape[:-2], num_experts, *kernel.shape[-2:])
    return jnp.broadcast_to(kernel[..., None, :, :], shape)
