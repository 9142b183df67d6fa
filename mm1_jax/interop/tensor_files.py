"""Reads and writes safetensors files, one tensor at a time.

A file consists of the header's length (eight bytes), the header (JSON with dtype, shape and byte
range of every tensor) and the values. NumPy suffices to read it, and nothing in it can run. The
whole header is checked before any value is read: a byte range beyond the end of the file, or one
that does not match its shape, raises an error that names the tensor.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mm1_jax.storage import read_json_object

INDEX = "model.safetensors.index.json"
# The largest header that the `safetensors` library reads.
MAX_HEADER_BYTES = 100_000_000
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorSpec(NamedTuple):
    """Shape and dtype of a tensor, known before its values are read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors:
    """Named tensors of a checkpoint, each read on demand; `specs` describes all of them."""

    specs: Mapping[str, TensorSpec]

    def read(self, name: str) -> np.ndarray:
        raise NotImplementedError(type(self))


class TensorFile(Tensors):
    """One safetensors file."""

    def __init__(self, path: Path):
        """Reads and checks the header.

        Raises:
            ValueError: The file is not safetensors or is damaged; the message names the tensor.
        """
        self.path = path
        self.specs = specs = {}
        self._starts: dict[str, int] = {}
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if len(first) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"{path}: not a safetensors file, or truncated in its header")
            try:
                header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: its header cannot be read ({error})") from None
        if not isinstance(header, dict):
            raise ValueError(f"{path}: its header is not a JSON object")
        header.pop("__metadata__", None)
        for name, entry in header.items():
            spec, start, end = _entry(path, name, entry)
            if 8 + length + end > size:
                raise ValueError(
                    f"{path}: the tensor {name} ends at byte {8 + length + end}, but the file has "
                    f"only {size}: it is truncated; fetch it again"
                )
            specs[name] = spec
            self._starts[name] = 8 + length + start

    def read(self, name: str) -> np.ndarray:
        shape, dtype = self.specs[name]
        values = np.fromfile(self.path, dtype, math.prod(shape), offset=self._starts[name])
        return values.reshape(shape)


class TensorFolder(Tensors):
    """Tensors of one file, or of all shards of a checkpoint."""

    def __init__(self, path: Path):
        """Reads and checks the headers of all shards.

        Args:
            path: A file; or a folder with an index of shards, or with safetensors files that
                together form one checkpoint.

        Raises:
            ValueError: There is no file, a shard is damaged or missing, or a tensor is in two
                shards or in none.
        """
        index: dict[str, str] = {}
        if path.is_file():
            paths = [path]
        else:
            indices = sorted(path.glob("*.safetensors.index.json"))
            # Files beside it may hold the same weights under other names.
            whole = path / "model.safetensors"
            if len(indices) > 1:
                raise ValueError(f"{path}: several indices, {', '.join(p.name for p in indices)}")
            if indices:
                index = _weight_map(indices[0])
                paths = [path / name for name in sorted(set(index.values()))]
            elif whole.is_file():
                paths = [whole]
            else:
                paths = sorted(path.glob("*.safetensors"))
        if not paths:
            raise ValueError(f"{path}: no *.safetensors in it")
        for each in paths:
            if not each.is_file():
                raise ValueError(f"{each}: this shard of the checkpoint is missing")
        self._files: dict[str, TensorFile] = {}
        for file in map(TensorFile, paths):
            for name in file.specs:
                if name in self._files:
                    other = self._files[name].path.name
                    raise ValueError(f"{path}: {name} is in {other} and in {file.path.name}")
                self._files[name] = file
        if index and (lost := sorted(index.keys() ^ self._files.keys())):
            raise ValueError(
                f"{path}: index and shards disagree about {_first_of(lost)}; a shard belongs to "
                "another checkpoint, or is incomplete"
            )
        self.specs = {name: file.specs[name] for name, file in self._files.items()}
        self.paths = paths

    def read(self, name: str) -> np.ndarray:
        return self._files[name].read(name)


def _weight_map(path: Path) -> dict[str, str]:
    """Returns tensor -> file name of its shard, from an index."""
    found = read_json_object(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path}: weight_map={found!r}: expected the file of every tensor")
    for name, file in found.items():
        if not isinstance(file, str) or file in ("", "..") or "/" in file or "\0" in file:
            raise ValueError(
                f"{path}: weight_map has {file!r} for {name}: expected the name of a file beside it"
            )
    return found


class TensorWriter:
    """Writes a folder of safetensors, one tensor at a time, in the order of `specs`."""

    def __init__(self, folder: Path, specs: Mapping[str, TensorSpec], max_shard_bytes: int):
        self._folder = folder
        self._shards = list(_shards(specs, max_shard_bytes))
        self._specs = specs

    def write(self, read: Callable[[str], np.ndarray]) -> None:
        """Writes all tensors; calls `read` once for each."""
        weight_map = {}
        for number, names in enumerate(self._shards, 1):
            file_name = "model.safetensors"
            if len(self._shards) > 1:
                file_name = f"model-{number:05}-of-{len(self._shards):05}.safetensors"
            with (self._folder / file_name).open("wb") as file:
                file.write(_header({name: self._specs[name] for name in names}))
                for name in names:
                    value = read(name)
                    assert (value.shape, value.dtype) == self._specs[name], name
                    # Writes a byte buffer, since `tofile` would copy a non-contiguous array twice.
                    file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
                    weight_map[name] = file_name
        if len(self._shards) > 1:
            total = sum(spec.num_bytes for spec in self._specs.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _entry(path: Path, name: str, entry: Any) -> tuple[TensorSpec, int, int]:
    try:
        dtype, shape = entry["dtype"], tuple(map(int, entry["shape"]))
        start, end = map(int, entry["data_offsets"])
        is_known = dtype in DTYPES
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{path}: the header's entry of {name} is damaged: {entry!r}") from None
    if not is_known:
        raise ValueError(f"{path}: {name} has dtype {dtype}; expected one of {', '.join(DTYPES)}")
    spec = TensorSpec(shape, DTYPES[dtype])
    if min((0, *shape)) < 0 or start < 0 or end - start != spec.num_bytes:
        raise ValueError(
            f"{path}: {name} has {end - start} bytes, but its shape {list(shape)} of {dtype} "
            f"takes {spec.num_bytes}"
        )
    return spec, start, end


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)} occurs twice")
    return result


def _shards(specs: Mapping[str, TensorSpec], max_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, spec in specs.items():
        if names and size + spec.num_bytes > max_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += spec.num_bytes
    yield names


def _header(specs: Mapping[str, TensorSpec]) -> bytes:
    # transformers rejects files whose metadata name no format.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (shape, dtype) in specs.items():
        end = start + specs[name].num_bytes
        header[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # Padding aligns the values.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _first_of(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
