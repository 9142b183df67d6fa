"""Reads files of `torch.save` with torch's weights-only loader, which runs no code in them."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mm1_jax.interop.tensor_files import Tensors, TensorSpec


class PickledTensors(Tensors):
    """Tensors of state dicts, memory-mapped and copied one at a time.

    `tensors` holds them as torch tensors.
    """

    def __init__(self, paths: Sequence[Path]):
        try:
            self._torch: Any = importlib.import_module("torch")
        except ImportError as error:
            raise ValueError(
                f"{paths[0]}: reading a pickle needs torch ({error}): pip install 'mm1_jax[hf]'"
            ) from error
        self.tensors: dict[str, Any] = {}
        for path in paths:
            try:
                state = self._torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:  # torch's errors have no common base.
                raise ValueError(f"{path}: torch finds no weights in it ({error})") from error
            # Trainers nest the state dict beside their own state.
            while isinstance(state, dict):
                inner = state.get("state_dict", state.get("model"))
                if not isinstance(inner, dict):
                    break
                state = inner
            if not isinstance(state, dict):
                raise ValueError(
                    f"{path}: expected a dict of weights, but torch finds a {type(state)}"
                )
            self.tensors |= {k: v for k, v in state.items() if self._torch.is_tensor(v)}
        self.specs = {name: self._spec(value) for name, value in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        value = self.tensors[name].contiguous()
        if value.dtype == self._torch.bfloat16:
            return value.view(self._torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
        return value.numpy().copy()

    def _spec(self, value: Any) -> TensorSpec:
        name = str(value.dtype).removeprefix("torch.")
        dtype = ml_dtypes.bfloat16 if name == "bfloat16" else name
        return TensorSpec(tuple(value.shape), np.dtype(dtype))
