"""Converts foreign tensors to a folder of weights, and our parameters to safetensors.

Each tensor is read, rearranged as a view, and written in blocks. Peak memory is the largest tensor
plus some tens of megabytes; reading everything back for verification takes twice the largest.
Nothing is written until all names and shapes fit.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mm1_jax.checkpoints.weights_folder import StoredParams, WeightsWriter
from mm1_jax.interop.mapping import Entry, Table, parameter_dtypes, raise_if_misfit
from mm1_jax.interop.tensor_files import Tensors, TensorSpec, TensorWriter

# (path, index of the leading dims) -> that slice of one of our parameters.
ReadSlice = Callable[[str, tuple[int, ...]], np.ndarray]
# Called with the name and the bytes of each tensor.
Watch = Callable[[str, int], None]

# Rows per block: at most 64 MiB for the widest tables of current models.
_ROWS = 2048


def import_params(
    table: Table, tensors: Tensors, folder: Path, *, where: Any, seed: int = 0, watch: Watch
) -> None:
    """Writes the parameters of a checkpoint into a folder of weights.

    Args:
        where: Name of the checkpoint in errors.
        seed: Seed of the routers of an upcycled decoder, which no source has.
        watch: Called after each tensor is written.

    Raises:
        ValueError: The tensors do not fit the table, or hold values that are not finite.
    """
    raise_if_misfit(table, tensors.specs, where)
    shapes, dtypes = table.shapes(), parameter_dtypes(table, tensors.specs)
    leading = {piece.parameter: len(piece.index) for e in table.entries for piece in e.pieces}
    routers = table.unfilled()
    assert all(path.endswith("/router") for path in routers), routers
    dtypes |= dict.fromkeys(routers, np.dtype(np.float32))
    writer = WeightsWriter(folder, shapes, dtypes, leading)
    for path in routers:
        writer.write(path, (), _router(shapes[path], seed))
    for entry in table.entries:
        # Single numbers are lists of one here.
        value = np.atleast_1d(tensors.read(entry.name))
        _raise_if_not_finite(value, entry.name, where)
        for piece in entry.pieces:
            x = piece.layout.to_ours(value[piece.rows])
            if not shapes[piece.parameter]:
                writer.write(piece.parameter, piece.index, x[0, ...])
                continue
            writer.write(piece.parameter, piece.index, x, piece.place)
            missing = shapes[piece.parameter][len(piece.index)] - len(x)
            if missing and not piece.place:
                mean = np.broadcast_to(_mean(x).astype(x.dtype), (missing, *x.shape[1:]))
                writer.write(piece.parameter, piece.index, mean, len(x))
        watch(entry.name, value.nbytes)


def differences(entries: Iterable[Entry], tensors: Tensors, read: ReadSlice) -> list[str]:
    """Returns the names of tensors that do not read back bit for bit."""
    wrong = []
    for entry in entries:
        value = np.atleast_1d(tensors.read(entry.name))
        for piece in entry.pieces:
            theirs = value[piece.rows]
            stored = np.atleast_1d(read(piece.parameter, piece.index))
            stored = stored[piece.place : piece.place + len(piece.layout.to_ours(theirs))]
            if not same_bits(piece.layout.to_theirs(stored), theirs):
                wrong.append(entry.name)
                break
    return wrong


def unequal_tensors(names: Iterable[str], tensors: Tensors, others: Tensors) -> list[str]:
    """Returns the names of tensors that `others` lacks or holds with different bits."""
    return [
        name
        for name in names
        if name not in others.specs
        or others.specs[name] != tensors.specs[name]
        or others.read(name).tobytes() != tensors.read(name).tobytes()
    ]


class _Converted(Tensors):
    """Our parameters and the tensors kept beside them, read as the foreign tensors of a table."""

    def __init__(
        self,
        entries: Iterable[Entry],
        read: ReadSlice,
        dtypes: Mapping[str, np.dtype],
        passthrough: Tensors | None,
    ):
        self._entries = {entry.name: entry for entry in entries}
        self._read, self._passthrough = read, passthrough
        self.specs = {
            name: TensorSpec(entry.shape, dtypes[name]) for name, entry in self._entries.items()
        }

    def read(self, name: str) -> np.ndarray:
        entry, dtype = self._entries[name], self.specs[name].dtype
        if entry.passthrough is not None:
            assert self._passthrough is not None, name
            return self._passthrough.read(entry.passthrough).astype(dtype, copy=False)
        value = np.full(entry.shape, entry.fill, dtype)
        rows = value.reshape(entry.shape or 1)
        for piece in entry.pieces:
            ours = np.atleast_1d(self._read(piece.parameter, piece.index))
            ours = ours[piece.place : piece.place + piece.layout.our_shape[0]]
            rows[piece.rows] = piece.layout.to_theirs(ours)
        return value


def export_params(
    entries: Iterable[Entry],
    read: ReadSlice,
    folder: Path,
    *,
    dtype: np.dtype | Mapping[str, np.dtype],
    passthrough: Tensors | None = None,
    max_shard_bytes: int = 5 * 10**9,
    watch: Watch = lambda name, size: None,
) -> None:
    """Writes our parameters as the safetensors of a foreign checkpoint.

    Args:
        dtype: One for all tensors, or one per tensor name.
        passthrough: Tensors kept beside the weights, for entries that copy one of them.
    """
    entries = list(entries)
    if not isinstance(dtype, Mapping):
        dtype = {entry.name: dtype for entry in entries}
    converted = _Converted(entries, read, dtype, passthrough)

    def read_and_tell(name: str) -> np.ndarray:
        value = converted.read(name)
        watch(name, value.nbytes)
        return value

    TensorWriter(folder, converted.specs, max_shard_bytes).write(read_and_tell)


def raise_if_params_misfit(
    entries: Iterable[Entry], stored: StoredParams | Mapping[str, Any], part: str, where: Any
) -> None:
    """Raises ValueError that names the missing and misshapen parameters of a part."""
    shapes = stored.shapes if isinstance(stored, StoredParams) else stored
    complaints = set()
    for piece in (piece for entry in entries for piece in entry.pieces):
        shape = shapes.get(piece.parameter)
        expected = piece.layout.our_shape
        if shape is None:
            complaints.add(f"  {piece.parameter} is missing")
        elif shape[len(piece.index) + 1 :] != expected[1:]:
            complaints.add(f"  {piece.parameter} is {list(shape)}, expected slices of {expected}")
    if complaints:
        raise ValueError(
            f"{where}: parameters do not fit this {part}\n" + "\n".join(sorted(complaints))
        )


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Returns whether both are equal in the dtype of `theirs`, comparing in blocks."""
    for start in range(0, len(theirs), _ROWS):
        rows = slice(start, start + _ROWS)
        if ours[rows].astype(theirs.dtype).tobytes() != theirs[rows].tobytes():
            return False
    return len(ours) == len(theirs)


def _router(shape: tuple[int, ...], seed: int) -> np.ndarray:
    # The initialization of `MoE`: inputs of unit variance give logits of unit variance.
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return values / np.float32(math.sqrt(shape[-2]))


def _raise_if_not_finite(value: np.ndarray, name: str, where: Any) -> None:
    for start in range(0, len(value), _ROWS):
        if not np.isfinite(value[start : start + _ROWS]).all():
            raise ValueError(f"{where}: {name} holds values that are not finite; it is damaged")


def _mean(rows: np.ndarray) -> np.ndarray:
    total = np.zeros(rows.shape[1:], np.float64)
    for start in range(0, len(rows), _ROWS):
        total += rows[start : start + _ROWS].astype(np.float32).sum(0, dtype=np.float64)
    return total / len(rows)
