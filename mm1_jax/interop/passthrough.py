"""Passthrough of tensors and files of a foreign checkpoint that have no place in a model of ours.

An import keeps them in the subfolder `aside` of the folder of weights; an export writes them back.
They are heads, buffers, unused layers, all of a CLIP beside its vision tower if only that is
imported, and the files of tokenizer and processor.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mm1_jax.interop.tensor_files import TensorFolder, Tensors, TensorWriter

FOLDER = "aside"
_MAX_SHARD_BYTES = 5 * 10**9
# Files of a checkpoint other than its weights and its config.
_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    "spiece.model",
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.json", "chat_template.jinja"),
    *("preprocessor_config.json", "processor_config.json", "generation_config.json"),
)


class Passthrough(Tensors):
    """Tensors kept beside the weights in a folder; `files` lists the other files kept there."""

    def __init__(self, folder: Path):
        self.files = [path for name in _FILES if (path := folder / FOLDER / name).is_file()]
        has_tensors = any((folder / FOLDER).glob("*.safetensors"))
        self._tensors = TensorFolder(folder / FOLDER) if has_tensors else None
        self.specs = {} if self._tensors is None else self._tensors.specs

    def read(self, name: str) -> np.ndarray:
        assert self._tensors is not None, name
        return self._tensors.read(name)


def keep_passthrough(tensors: Tensors, names: Iterable[str], source: Path, folder: Path) -> None:
    """Copies tensors and files of the checkpoint in `source` beside the weights in `folder`."""
    place = folder / FOLDER
    specs = {name: tensors.specs[name] for name in names}
    found = [source / name for name in _FILES if (source / name).is_file()]
    if not specs and not found:
        return
    place.mkdir()
    for path in found:
        shutil.copyfile(path, place / path.name)
    if specs:
        TensorWriter(place, specs, _MAX_SHARD_BYTES).write(tensors.read)
