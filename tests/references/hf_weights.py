"""Weights of Hugging Face models under our names, from the importer that users run."""

from pathlib import Path

import torch
from parity import Weights

from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.interop.importer import import_checkpoint


def imported_weights(model: torch.nn.Module, folder: Path) -> Weights:
    """Returns the parameters of a model that is a single part, by path."""
    model.save_pretrained(folder / "theirs")
    import_checkpoint(folder / "theirs", folder / "ours", skip_comparison=True)
    stored = StoredParams(folder / "ours")
    return {path.partition("/")[2]: stored.read(path) for path in stored.shapes}
