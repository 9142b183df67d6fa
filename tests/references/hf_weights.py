"""Weights of Hugging Face models under our names, by the conversion that users run."""

from pathlib import Path

import torch
from parity import Weights

from mm1_jax.checkpoints.weights_folder import StoredParams
from mm1_jax.interop.importer import import_checkpoint


def imported_weights(model: torch.nn.Module, folder: Path) -> Weights:
    """The parameters of the one part that the model is, by path."""
    model.save_pretrained(folder / "theirs")
    import_checkpoint(folder / "theirs", folder / "ours", skip_comparison=True)
    stored = StoredParams(folder / "ours")
    return {path.partition("/")[2]: stored.read(path) for path in stored.shapes}
