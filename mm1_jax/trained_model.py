"""The model of a run folder, for tools that use it."""

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from mm1_jax.models.mm1 import MM1
from mm1_jax.train.train_state import abstract_model


def load_model(folder: Path, cfg: Any, step: int | None = None) -> tuple[MM1, int]:
    """The model with the parameters of a checkpoint, on the first device; and its step.

    Args:
        cfg: The resolved config of the run.
        step: Which checkpoint; the newest if None.

    Raises:
        ValueError: There is no such checkpoint.
    """
    graphdef, params = abstract_model(
        lambda prng_key: cfg.model.instantiate(rngs=nnx.Rngs(params=prng_key))
    )
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), nnx.to_pure_dict(params)
    )
    checkpointer = cfg.trainer.checkpointer.instantiate(
        directory=folder / "checkpoints", read_only=True
    )
    try:
        found = checkpointer.latest_step() if step is None else step
        return nnx.merge(graphdef, checkpointer.restore_params(shapes, step=found)), found
    finally:
        checkpointer.close()
