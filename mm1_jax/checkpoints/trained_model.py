"""The model of a run folder, for tools that use it."""

import math
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.parallelism import Parallelism, choose, devices_name, mesh_sizes
from mm1_jax.parallel.sharding import Placement, parameter_shardings
from mm1_jax.train.train_state import abstract_model


def load_model(
    folder: Path, cfg: Any, step: int | None = None, *, placement: Placement | None = None
) -> tuple[MM1, int]:
    """The model with the parameters of a checkpoint, and its step.

    Args:
        cfg: The resolved config of the run.
        step: Which checkpoint; the newest if None.
        placement: Where the parameters go, each shard straight to its device; None: all to the
            first one. The model is used inside `use_mesh` of the same.

    Raises:
        ValueError: There is no such checkpoint, or the mesh does not divide a parameter.
    """
    graphdef, params = abstract_model(
        lambda prng_key: cfg.model.instantiate(rngs=nnx.Rngs(params=prng_key))
    )
    if placement is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: device, nnx.to_pure_dict(params))
    else:
        shardings = nnx.to_pure_dict(parameter_shardings(params, placement.mesh, placement.rules))
    shapes = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nnx.to_pure_dict(params),
        shardings,
    )
    checkpointer = cfg.trainer.checkpointer.instantiate(
        directory=folder / "checkpoints", read_only=True
    )
    try:
        found = checkpointer.latest_step() if step is None else step
        return nnx.merge(graphdef, checkpointer.restore_params(shapes, step=found)), found
    finally:
        checkpointer.close()


def newest_step(folder: Path, cfg: Any) -> int | None:
    """The step of the newest checkpoint of a run; None where it has none."""
    checkpointer = cfg.trainer.checkpointer.instantiate(
        directory=folder / "checkpoints", read_only=True
    )
    try:
        return checkpointer.latest_step()
    finally:
        checkpointer.close()


def placement_of(cfg: Any, text: str) -> Placement:
    """Returns the placement of a run's model: "run", as in training; or sizes, "data=2,model=4".

    Of more devices than the sizes need, the first ones are taken; an axis of -1 takes all.

    Args:
        cfg: The resolved config of the run.

    Raises:
        ValueError: There are no such axes, or too few devices.
    """
    trainer, devices = cfg.trainer, jax.devices()
    if text == "run":
        parallelism = choose(trainer.mesh_rules, trainer.parallelism, devices_name(devices))
    else:
        sizes = mesh_sizes(text)
        number = math.prod(sizes.values())
        if 0 < number < len(devices) and jax.process_count() > 1:
            raise ValueError(
                f"a mesh of {text} leaves out {len(devices) - number} of {len(devices)} devices; "
                "several processes use all of theirs (an axis of -1 takes what is left)"
            )
        if 0 < number <= len(devices):
            devices = devices[:number]
        parallelism = Parallelism.default_config().set(**{"data": 1, **sizes})
    made = parallelism.instantiate()
    return Placement(made.mesh(devices), made.rules)
