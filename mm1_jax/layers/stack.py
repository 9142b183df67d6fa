"""Layers in a row: parameters stacked along a leading dim and run by a scan.

Compile time then does not grow with depth. Layers may come in groups whose last one differs (a
sparse layer after n - 1 dense ones): one body for each of the two kinds, however many layers.
"""

import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mm1_jax.config import REQUIRED, InstantiableConfig, Required, config_class
from mm1_jax.layers.attention import Cache
from mm1_jax.layers.module import Module
from mm1_jax.layers.moe import RouterStatistics
from mm1_jax.layers.saved_names import check_saved_names


class Remat(enum.Enum):
    """What a layer keeps for the backward pass: everything, its input, or also matrix products.

    Values that layers name (`jax.ad_checkpoint.checkpoint_name`) can be kept besides.
    """

    NONE = "none"
    FULL = "full"
    DOTS = "dots"


class Stack(Module):
    """`num_layers` blocks; with `last_layer`, every `group_size`-th is one of those."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[int] = REQUIRED
        num_layers: Required[int] = REQUIRED
        layer: Required[InstantiableConfig] = REQUIRED
        last_layer: InstantiableConfig | None = None
        group_size: int = 1
        remat: Remat = Remat.FULL
        saved_names: tuple[str, ...] = ()  # named values that are kept too, with Remat.FULL
        unroll: bool = False  # a Python loop instead of the scan, for tests: compiles every layer

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.group_size = check_groups(cfg)
        num_groups = cfg.num_layers // self.group_size
        if cfg.last_layer is None:
            shape: tuple[int, ...] = (cfg.num_layers,)
        else:
            shape = (num_groups, self.group_size - 1)
        self.layer = stacked(cfg.layer.set(input_dim=cfg.input_dim), shape, rngs=rngs)
        self.last_layer = (
            None
            if cfg.last_layer is None
            else stacked(cfg.last_layer.set(input_dim=cfg.input_dim), (num_groups,), rngs=rngs)
        )
        self.remat = Remat(cfg.remat)
        self.saved_names = tuple(cfg.saved_names)
        check_saved_names(self.saved_names)
        self.unroll = cfg.unroll

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: Cache | None = None,
        dropless: bool = False,
        prefix_lengths: Int[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None, RouterStatistics | None]:
        """Runs all layers; caches and statistics carry a leading dim in layer order.

        Statistics have entries of the sparse layers only, and are None without any.
        """

        def run_layer(x: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
            layer, keys_values = inputs
            layer_cache = None
            if cache is not None:
                layer_cache = cache._replace(keys=keys_values[0], values=keys_values[1])
            x, layer_cache, statistics = layer(
                x,
                positions=positions,
                segment_ids=segment_ids,
                cache=layer_cache,
                dropless=dropless,
                prefix_lengths=prefix_lengths,
            )
            return x, (layer_cache and (layer_cache.keys, layer_cache.values), statistics)

        run_layer = rematerialise(
            run_layer, self.remat, saved_names=self.saved_names, prevent_cse=self.unroll
        )

        def run_group(x: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
            layers, last_layer, keys_values = inputs
            first = jax.tree.map(lambda a: a[:-1], keys_values)
            last = jax.tree.map(lambda a: a[-1], keys_values)
            x, (first, statistics) = scan(run_layer, x, (layers, first))
            x, (last, last_statistics) = run_layer(x, (last_layer, last))
            keys_values = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), first, last)
            assert statistics is None, "only the last layer of a group may be sparse"
            return x, (keys_values, last_statistics)

        scan = _loop if self.unroll else jax.lax.scan
        keys_values = None if cache is None else (cache.keys, cache.values)
        if self.last_layer is None:
            x, (keys_values, statistics) = scan(run_layer, x, (self.layer, keys_values))
        else:
            n = self.group_size
            grouped = jax.tree.map(lambda a: a.reshape(-1, n, *a.shape[1:]), keys_values)
            x, (grouped, statistics) = scan(run_group, x, (self.layer, self.last_layer, grouped))
            keys_values = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), grouped)
        if cache is not None:
            cache = cache._replace(keys=keys_values[0], values=keys_values[1])
        return x, cache, statistics


def check_groups(cfg: Stack.Config) -> int:
    """The group size.

    Raises:
        ValueError: The layers do not divide into such groups.
    """
    if cfg.last_layer is None and cfg.group_size != 1:
        raise ValueError(
            f"stack: group_size is {cfg.group_size} but there is no last_layer; "
            "set it, or group_size=1"
        )
    if cfg.last_layer is not None and cfg.group_size < 2:
        raise ValueError(
            f"stack: group_size is {cfg.group_size}; with a last_layer it must be at least 2 "
            "(to have only such layers, make them `layer`)"
        )
    if cfg.num_layers % cfg.group_size:
        raise ValueError(
            f"stack: num_layers is {cfg.num_layers}, which group_size {cfg.group_size} must divide"
        )
    return cfg.group_size


def stacked(cfg: InstantiableConfig, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> Any:
    """Modules drawn independently, as one with leading dims `shape`, each named "layers"."""

    def make(key: jax.Array) -> Any:
        return cfg.instantiate(rngs=nnx.Rngs(params=key))

    for _ in shape:
        make = jax.vmap(nnx.transform_metadata(make, in_axes=0, out_axes=0, partition="layers"))
    return make(jax.random.split(rngs.params(), shape))


def rematerialise(
    function: Callable,
    remat: Remat,
    *,
    saved_names: tuple[str, ...] = (),
    prevent_cse: bool = False,
) -> Callable:
    """`function`, recomputed in the backward pass except for what `remat` keeps.

    Args:
        saved_names: With `Remat.FULL`, values of these names are kept as well.
        prevent_cse: Needed outside a scan, where the compiler could undo the recomputation.
    """
    if saved_names and remat is not Remat.FULL:
        raise ValueError(f"saved_names={saved_names} need remat=full, got {remat.value}")
    if remat is Remat.NONE:
        return function
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if remat is Remat.DOTS else None
    if saved_names:
        policy = policies.save_only_these_names(*saved_names)
    return jax.checkpoint(function, policy=policy, prevent_cse=prevent_cse)


def _loop(body: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    # What jax.lax.scan does, without it.
    outputs = []
    for i in range(jax.tree.leaves(xs)[0].shape[0]):
        carry, output = body(carry, jax.tree.map(lambda a, i=i: a[i], xs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *outputs)
