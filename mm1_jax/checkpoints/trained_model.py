"""Loading of the trained model of a run, for tools."""

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
    """Loads the model with the parameters of a checkpoint.

    Args:
        cfg: Resolved config of the run.
        step: Step of the checkpoint; defaults to the newest.
        placement: Mesh and rules that shard the parameters; each shard is loaded directly onto its
            device. None loads everything onto the first device. The model must be used inside
            `use_mesh` with the same placement.

    Returns:
        The model, and the step of the checkpoint.

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


def random_model(cfg: Any, seed: int, *, placement: Placement | None = None) -> Any:
    """Returns the model of a resolved config with random parameters, placed as by `load_model`."""

    def make(prng_key: jax.Array) -> nnx.Module:
        return cfg.model.instantiate(rngs=nnx.Rngs(params=prng_key))

    graphdef, params = abstract_model(make)
    shardings = None
    if placement is not None:
        shardings = nnx.to_pure_dict(parameter_shardings(params, placement.mesh, placement.rules))
    draw = jax.jit(
        lambda prng_key: nnx.to_pure_dict(nnx.state(make(prng_key), nnx.Param)),
        out_shardings=shardings,
    )
    return nnx.merge(graphdef, draw(jax.random.key(seed)))


def newest_step(folder: Path, cfg: Any) -> int | None:
    """Returns the step of the newest checkpoint of a run; None if it has none."""
    checkpointer = cfg.trainer.checkpointer.instantiate(
        directory=folder / "checkpoints", read_only=True
    )
    try:
        return checkpointer.latest_step()
    finally:
        checkpointer.close()


def placement_of(cfg: Any, text: str) -> Placement:
    """Returns the placement of a run's model.

    Args:
        cfg: Resolved config of the run.
        text: "run" for the mesh used in training, or mesh axis sizes such as "data=2,model=4". If
            there are more devices than the sizes need, the first ones are used; an axis of -1 uses
            all of them.

    Raises:
        ValueError: An axis is unknown, or there are too few devices.
    """
    trainer, devices = cfg.trainer, jax.devices()
    if text == "run":
        parallelism = choose(trainer.mesh_rules, trainer.parallelism, devices_name(devices))
    else:
        sizes = mesh_sizes(text)
        number = math.prod(sizes.values())
        if 0 < number < len(devices) and jax.process_count() > 1:
            raise ValueError(
                f"a mesh of {text} leaves {len(devices) - number} of {len(devices)} devices "
                "unused; several processes must use all of them (an axis of -1 uses the rest)"
            )
        if 0 < number <= len(devices):
            devices = devices[:number]
        parallelism = Parallelism.default_config().set(**{"data": 1, **sizes})
    made = parallelism.instantiate()
    return Placement(made.mesh(devices), made.rules)
