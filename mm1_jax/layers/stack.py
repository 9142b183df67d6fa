"""Stack of layers, with parameters stacked along a leading dim and run by a scan.

Compile time then does not grow with depth. Layers may form groups whose last layer differs, such as
a sparse layer after n - 1 dense ones; each of the two kinds is still compiled once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mm1_jax.config import REQUIRED, InstantiableConfig, Required, config_class, derived
from mm1_jax.field_types import PositiveInt
from mm1_jax.layers.kv_cache import Caches
from mm1_jax.layers.module import Module, checked, checked_tuple
from mm1_jax.layers.moe import RouterStatistics
from mm1_jax.parallel.rematerialisation import Remat, check_saved_names


class Stack(Module):
    """`num_layers` blocks; if `last_layer` is set, every `group_size`-th block uses it."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        num_layers: Required[PositiveInt] = derived()
        layer: Required[InstantiableConfig] = REQUIRED
        last_layer: InstantiableConfig | None = None
        group_size: PositiveInt = 1
        remat: Remat = Remat.FULL
        saved_names: tuple[str, ...] = ()  # named values to save, with Remat.FULL
        offloaded_names: tuple[str, ...] = ()  # named values to save in host memory, likewise
        unroll: bool = False  # Python loop instead of the scan, for tests; compiles every layer

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.group_size = check_groups(cfg)
        self.num_layers = cfg.num_layers
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
        self.offloaded_names = tuple(cfg.offloaded_names)
        check_saved_names("saved_names", self.saved_names)
        check_saved_names("offloaded_names", self.offloaded_names)
        self.unroll = cfg.unroll

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        caches: Caches | None = None,
        cache_start: Int[Array, "B"] | None = None,
        dropless: bool = False,
        prefix_lengths: Int[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Caches | None, RouterStatistics | None]:
        """Runs all layers.

        Returns:
            x, the caches, and the router statistics with a leading dim over the sparse layers in
            layer order. The statistics are None without sparse layers or with caches.
        """
        if caches is not None:
            assert positions is not None and segment_ids is not None
            return self.unstacked()(
                x,
                positions=positions,
                segment_ids=segment_ids,
                caches=caches,
                cache_start=cache_start,
                dropless=dropless,
            )

        def run_layer(x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
            output = layer(
                x,
                positions=positions,
                segment_ids=segment_ids,
                dropless=dropless,
                prefix_lengths=prefix_lengths,
            )
            y, _, statistics = checked_tuple(layer, output, ("x", "cache", "router statistics"))
            return checked(layer, y, x.shape, x.dtype), statistics

        run_layer = rematerialise(
            run_layer,
            self.remat,
            saved_names=self.saved_names,
            offloaded_names=self.offloaded_names,
            prevent_cse=self.unroll,
        )

        def run_group(x: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
            layers, last_layer = inputs
            x, statistics = scan(run_layer, x, layers)
            assert statistics is None, "only the last layer of a group may be sparse"
            return run_layer(x, last_layer)

        scan = _loop if self.unroll else jax.lax.scan
        if self.last_layer is None:
            x, statistics = scan(run_layer, x, self.layer)
        else:
            x, statistics = scan(run_group, x, (self.layer, self.last_layer))
        return x, None, statistics

    def unstacked(self) -> "UnstackedLayers":
        """Returns the layers as separate modules, in order."""
        layers = []
        for i in range(self.num_layers):
            group, place = divmod(i, self.group_size)
            if self.last_layer is None:
                stacked, index = self.layer, (i,)
            elif place == self.group_size - 1:
                stacked, index = self.last_layer, (group,)
            else:
                stacked, index = self.layer, (group, place)
            layers.append(jax.tree.map(lambda a, index=index: a[index], stacked))
        return UnstackedLayers(layers)


class UnstackedLayers(nnx.Module):
    """Layers with separate parameters and caches, run in a Python loop; for decoding.

    A decoding step reads every parameter once and does little else. A scan would first copy the
    parameters of each layer out of the stack, and copy its cache out of a stacked cache and back.
    """

    def __init__(self, layers: Sequence[Any]):
        self.layers = nnx.List(layers)

    def unstacked(self) -> "UnstackedLayers":
        return self

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        caches: Caches,
        cache_start: Int[Array, "B"] | None,
        dropless: bool = False,
    ) -> tuple[Float[Array, "B T D"], Caches, None]:
        written = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, cache, _ = layer(
                x,
                positions=positions,
                segment_ids=segment_ids,
                cache=cache,
                cache_start=cache_start,
                dropless=dropless,
            )
            written.append(cache)
        return x, tuple(written), None


def check_groups(cfg: Stack.Config) -> int:
    """Returns the group size.

    Raises:
        ValueError: The group size does not fit `last_layer` or does not divide `num_layers`.
    """
    if cfg.last_layer is None and cfg.group_size != 1:
        raise ValueError(
            f"stack: group_size is {cfg.group_size} but there is no last_layer; "
            "set last_layer, or group_size=1"
        )
    if cfg.last_layer is not None and cfg.group_size < 2:
        raise ValueError(
            f"stack: group_size is {cfg.group_size}; with a last_layer it must be at least 2 "
            "(to have only such layers, make them `layer`)"
        )
    if cfg.num_layers % cfg.group_size:
        raise ValueError(
            f"stack: group_size={cfg.group_size} must divide num_layers={cfg.num_layers}"
        )
    return cfg.group_size


def stacked(cfg: InstantiableConfig, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> Any:
    """Initializes modules independently and stacks them along leading dims named "layers"."""

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
    offloaded_names: tuple[str, ...] = (),
    prevent_cse: bool = False,
) -> Callable:
    """Wraps `function` so that the backward pass recomputes the values `remat` does not save.

    Args:
        saved_names: Named values to save as well; only with `Remat.FULL`.
        offloaded_names: Named values to save in host memory: copied there when computed, and
            fetched when the backward pass reaches the layer; only with `Remat.FULL`.
        prevent_cse: Must be set outside a scan, where the compiler could undo the recomputation.

    Raises:
        ValueError: Names are given without `Remat.FULL`, or are both saved and offloaded.
    """
    for field, names in (("saved_names", saved_names), ("offloaded_names", offloaded_names)):
        if names and remat is not Remat.FULL:
            raise ValueError(f"{field}={names} need remat=full, got {remat.value}")
    if both := set(saved_names) & set(offloaded_names):
        raise ValueError(
            f"saved_names and offloaded_names both have {', '.join(sorted(both))}; save a value "
            "either on the device or in host memory"
        )
    if remat is Remat.NONE:
        return function
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if remat is Remat.DOTS else None
    if offloaded_names:
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(saved_names),
            names_which_can_be_offloaded=list(offloaded_names),
            offload_src="device",
            offload_dst="pinned_host",
        )
    elif saved_names:
        policy = policies.save_only_these_names(*saved_names)
    return jax.checkpoint(function, policy=policy, prevent_cse=prevent_cse)


def _loop(body: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    # Python equivalent of jax.lax.scan.
    outputs = []
    for i in range(jax.tree.leaves(xs)[0].shape[0]):
        carry, output = body(carry, jax.tree.map(lambda a, i=i: a[i], xs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *outputs)
