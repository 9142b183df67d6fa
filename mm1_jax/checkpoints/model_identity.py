"""Check that a checkpoint fits the model, by parameter shapes and config."""

from typing import Any

import jax
from etils import epath

from mm1_jax.config import InstantiableConfig
from mm1_jax.layers.parameter_paths import parameter_path
from mm1_jax.stored_config import Stored, config_differences

# Fields of the model config that do not change the meaning of its parameters.
_IGNORED_FIELDS = (
    "dtype",
    "remat",
    "saved_names",
    "offloaded_names",
    "kernel",
    "image_group_rows",
)
_MAX_LINES = 12


def raise_if_another_model(
    checkpoint: epath.Path,
    *,
    saved_params: Any,
    params: Any,
    saved_config: Stored | None,
    model: InstantiableConfig | None,
) -> None:
    """Raises ValueError with a list of differences if a checkpoint is of another model.

    Args:
        saved_params: Tree of leaves with shapes, in the checkpoint.
        params: The same of the present model.
        saved_config: Config in the checkpoint; None if it has none.
        model: Config of the present model; None skips the comparison of configs.
    """
    saved, here = _shapes(saved_params), _shapes(params)
    lines = [
        f"  {path}: {saved.get(path, 'absent')} -> {here.get(path, 'absent')}"
        for path in sorted(saved.keys() | here.keys())
        if saved.get(path) != here.get(path)
    ]
    if saved_config is not None and model is not None:
        lines += [
            f"  model.{each}"
            for each in config_differences(saved_config, model)
            if each.path.rpartition(".")[2].split("[")[0] not in _IGNORED_FIELDS
        ]
    if lines:
        more = f"\n  and {len(lines) - _MAX_LINES} more" if len(lines) > _MAX_LINES else ""
        raise ValueError(
            f"the checkpoint {checkpoint} is of another model (saved -> now):\n"
            + "\n".join(lines[:_MAX_LINES])
            + more
        )


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {
        parameter_path(path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
